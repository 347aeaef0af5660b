"""`contextlora export`: a run's tasks as ordinary PEFT adapters."""

import os
from collections.abc import Mapping
from typing import Any

from contextlora.adapters import export_adapter
from contextlora.assembly.card import adapter_card
from contextlora.assembly.trained import load_trained
from contextlora.backbones.load import source_of
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.errors import UserError
from contextlora.methods import METHODS
from contextlora.runs import RunFolder
from contextlora.training.module import ContextLoraModule


def export(config: RunConfig, run: RunFolder) -> None:
    """Writes each task of a trained run as an ordinary PEFT adapter."""
    if not METHODS[config.method.name].exports_lora:
        raise UserError(f"{config.method.name} is no ordinary LoRA, which PEFT could load: use the run itself")
    module = load_trained(config, run, CONSOLE.print)
    export_tasks(module, run, run.results if run.state == "finished" else {})
    CONSOLE.print(f"adapters: {os.path.relpath(run.path / 'adapters')}", soft_wrap=True)


def export_tasks(module: ContextLoraModule, run: RunFolder, results: Mapping[str, Any]) -> None:
    """Writes every task's adapter, from the weights as they are, to `adapters/<task>` of the run.

    Args:
        module: the trained model.
        run: gets the adapters.
        results: of its evaluation, for the adapters' cards; may be empty.
    """
    accuracies = {task: row["end_to_end"] for task, row in results.get("tasks", {}).items()}
    base = source_of(module.data.backbone.name)
    for task, use in module.uses.items():
        card = adapter_card(module, task, base, accuracies.get(task))
        export_adapter(module.adapted, task, use, run.folder("adapters") / task, base, card)
