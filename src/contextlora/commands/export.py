"""`contextlora export`: a run's tasks as ordinary PEFT adapters."""

import os

from contextlora.adapters import export_adapter
from contextlora.assembly.build import build_data, build_module
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.errors import UserError
from contextlora.methods import METHODS
from contextlora.runs import RunFolder
from contextlora.training.module import ContextLoraModule
from contextlora.training.stage_files import StageFiles


def export(config: RunConfig, run: RunFolder) -> None:
    """Writes each task of a trained run as an ordinary PEFT adapter."""
    if not run.is_trained:
        raise UserError(f"the run is {run.state}, only a trained one is exported; {run.how_to_resume}")
    if not METHODS[config.method.name].exports_lora:
        raise UserError(f"{config.method.name} is no ordinary LoRA, which PEFT could load: use the run itself")
    module = build_module(config, build_data(config))
    # Says so where the task set has changed: the weights are the same, but they were trained for the prompts of before.
    StageFiles(run.folder("checkpoints"), module, CONSOLE.print).load_last()
    export_tasks(module, run)
    CONSOLE.print(f"adapters: {os.path.relpath(run.path / 'adapters')}", soft_wrap=True)


def export_tasks(module: ContextLoraModule, run: RunFolder) -> None:
    """Writes every task's adapter, from the weights as they are, to `adapters/<task>` of the run."""
    for task, use in module.uses.items():
        export_adapter(module.adapted, task, use, run.folder("adapters") / task, module.data.backbone.name)
