"""`contextlora export`: a run's tasks as ordinary PEFT adapters."""

import os

from contextlora.adapters import export_adapter
from contextlora.assembly import Parts, run_parts
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.errors import UserError
from contextlora.runs import RunFolder


def export(config: RunConfig, run: RunFolder) -> None:
    """Writes each task of a finished run as an ordinary PEFT adapter."""
    if run.state != "finished":
        raise UserError(f"{run.path} is {run.state}, only a finished run is exported; {run.how_to_resume}")
    parts = run_parts(config)
    parts.load_stage(run.folder("checkpoints"), len(parts.plan.stages) - 1)
    export_tasks(parts, run)
    CONSOLE.print(f"adapters: {os.path.relpath(run.path / 'adapters')}", soft_wrap=True)


def export_tasks(parts: Parts, run: RunFolder) -> None:
    """Writes every task's adapter, from the weights as they are, to `adapters/<task>` of the run."""
    for task, use in parts.plan.uses.items():
        export_adapter(parts.adapted, task, use, run.folder("adapters") / task, parts.backbone.name)
