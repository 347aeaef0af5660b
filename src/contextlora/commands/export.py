"""`contextlora export`: a run's tasks as ordinary PEFT adapters."""

import os

from contextlora.adapters import export_adapter
from contextlora.assembly.trained import load_trained
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
    export_tasks(module, run)
    CONSOLE.print(f"adapters: {os.path.relpath(run.path / 'adapters')}", soft_wrap=True)


def export_tasks(module: ContextLoraModule, run: RunFolder) -> None:
    """Writes every task's adapter, from the weights as they are, to `adapters/<task>` of the run."""
    for task, use in module.uses.items():
        export_adapter(module.adapted, task, use, run.folder("adapters") / task, module.data.backbone.name)
