"""`contextlora backbone`: pretrains a backbone from scratch."""

import os
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from contextlora.backbones.pretraining.build import SKILL_TARGETS, build_backbone
from contextlora.backbones.pretraining.pretrain import PretrainConfig
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.evaluation.report import print_in_full, skills_table

LOG_LINES = 50  # of a long job whose output goes to a file


def backbone(config: RunConfig) -> None:
    """Builds a backbone from scratch, as the bundled one was, into `<runs_dir>/backbone/seed-<seed>`."""
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

        def show(step: int, loss: float) -> None:
            bars.update(bar, completed=step, loss=f"loss {loss:.3f}")
            if not CONSOLE.is_terminal and step % max(1, settings.num_steps // LOG_LINES) == 0:
                CONSOLE.print(f"step {step}/{settings.num_steps}, loss {loss:.3f}", highlight=False)

        card = build_backbone(folder, settings, show)
    print_in_full(CONSOLE, skills_table(card["skills"]["test"], SKILL_TARGETS))
    shown = os.path.relpath(folder)
    text = f"backbone: {shown}, {card['train_seconds'] / 60:.0f} min; use it with MODEL={shown}"
    CONSOLE.print(text, soft_wrap=True)
