"""What the commands do that make what a run starts from, task sets and the bundled backbone: straight recipes."""

import os
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from contextlora.assembly import load_taskset
from contextlora.config import RunConfig
from contextlora.errors import UserError
from contextlora.evaluation.report import skills_table
from contextlora.tasks.checks import check_table, check_taskset

CONSOLE = Console()


def data(config: RunConfig) -> None:
    """Builds the task set where it is not there yet, and prints what it holds."""
    taskset = load_taskset(config)
    CONSOLE.print(f"task set {taskset.name}: {taskset.folder}")
    for task in taskset.graph.tasks:
        counts = ", ".join(f"{len(taskset.items(task, split))} {split}" for split in ("train", "validation", "test"))
        CONSOLE.print(f"  {task}: {counts}")


def data_check(config: RunConfig) -> None:
    """Runs the probes for shortcuts and prints their table.

    Raises:
        UserError: a probe breaks its limit.
    """
    checks = check_taskset(load_taskset(config))
    CONSOLE.print(check_table(checks))
    broken = [check for check in checks if not check.ok]
    if broken:
        raise UserError(f"{len(broken)} of {len(checks)} probes break their limit, see the table; mend the task set")


def backbone(config: RunConfig) -> None:
    """Builds a backbone from scratch, as the bundled one was, into `<runs_dir>/backbone/seed-<seed>`."""
    from contextlora.backbones.build import SKILL_TARGETS, build_backbone
    from contextlora.backbones.pretrain import PretrainConfig

    settings = PretrainConfig(seed=config.seed)
    folder = Path(config.runs_dir) / "backbone" / f"seed-{config.seed}"
    columns = (
        TextColumn("pretraining"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=CONSOLE) as bars:
        bar = bars.add_task("", total=settings.num_steps, loss="")
        card = build_backbone(
            folder, settings, lambda step, loss: bars.update(bar, completed=step, loss=f"loss {loss:.3f}")
        )
    CONSOLE.print(skills_table(card["skills"]["test"], SKILL_TARGETS))
    shown = os.path.relpath(folder)
    text = f"backbone: {shown}, {card['train_seconds'] / 60:.0f} min; use it with MODEL={shown}"
    CONSOLE.print(text, soft_wrap=True)
