"""`contextlora export`: a run's tasks as ordinary PEFT adapters, or merged into checkpoints of their own."""

import os
import shutil
from collections.abc import Mapping
from typing import Any

from contextlora.adapters import export_adapter, write_merged
from contextlora.assembly.card import adapter_card
from contextlora.assembly.trained import load_trained
from contextlora.backbones.faults import quiet
from contextlora.backbones.load import load_backbone, source_of
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.errors import UserError
from contextlora.methods import METHODS
from contextlora.runs import RunFolder
from contextlora.training.module import ContextLoraModule


def export(config: RunConfig, run: RunFolder, merge: bool = False) -> None:
    """Writes each task of a trained run as an ordinary PEFT adapter, and with `merge` as a whole checkpoint too.

    Raises:
        UserError: the method's tasks are no LoRAs, the run is not trained, or the checkpoints do not fit on the disk.
    """
    if not METHODS[config.method.name].exports_lora:
        raise UserError(f"{config.method.name} is no ordinary LoRA, which PEFT could load: use the run itself")
    module = load_trained(config, run, CONSOLE.print)
    results = run.results if run.state == "finished" else {}
    export_tasks(module, run, results)
    CONSOLE.print(f"adapters: {os.path.relpath(run.path / 'adapters')}", soft_wrap=True)
    if merge:
        _merge_tasks(config, module, run, results)


def export_tasks(module: ContextLoraModule, run: RunFolder, results: Mapping[str, Any]) -> None:
    """Writes every task's adapter, from the weights as they are, to `adapters/<task>` of the run.

    Args:
        module: the trained model.
        run: gets the adapters.
        results: of its evaluation, for the adapters' cards; may be empty.
    """
    base = source_of(module.data.backbone.name)
    for task, use in module.uses.items():
        card = adapter_card(module, task, base, results.get("tasks", {}).get(task))
        export_adapter(module.adapted, task, use, run.folder("adapters") / task, base, card)


def _merge_tasks(config: RunConfig, module: ContextLoraModule, run: RunFolder, results: Mapping[str, Any]) -> None:
    """Writes every task's checkpoint to `merged/<task>` of the run, in the type that the run computes in."""
    name, dtype = config.model.name, module.data.backbone.model.dtype
    for number, task in enumerate(module.uses):
        # Anew for each: its weights get the adapter's share.
        base = load_backbone(name, dtype="float32", trust_remote_code=config.model.trust_remote_code)
        if number == 0:
            _check_space(run, len(module.uses), sum(p.numel() for p in base.model.parameters()) * dtype.itemsize)
        card = adapter_card(module, task, source_of(name), results.get("tasks", {}).get(task), merged=True)
        adapter, folder = run.path / "adapters" / task, run.folder("merged") / task
        with quiet():
            write_merged(base.model, base.processor or base.tokenizer, adapter, folder, dtype, card)
    CONSOLE.print(f"merged: {os.path.relpath(run.path / 'merged')}", soft_wrap=True)


def _check_space(run: RunFolder, num_tasks: int, num_bytes: int) -> None:
    free, needed = shutil.disk_usage(run.path).free, num_tasks * num_bytes
    text = f"{num_tasks} checkpoints of {num_bytes >> 20:,} MiB, {needed >> 20:,} MiB in all"
    if needed > free:
        raise UserError(f"{text}, must fit on the run's disk, which has {free >> 20:,} MiB free; make room there")
    CONSOLE.print(f"merging into {text}; {free >> 20:,} MiB are free", highlight=False)
