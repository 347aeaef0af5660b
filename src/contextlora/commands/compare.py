"""`contextlora compare`: the finished runs of one task set over methods, settings and seeds."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from contextlora.commands import CONSOLE
from contextlora.config import default_config, load_config
from contextlora.errors import UserError, tail
from contextlora.evaluation.compare import (
    FinishedRun,
    accuracy_intervals,
    alike,
    collect_runs,
    comparable,
    comparison,
    comparison_markdown,
    flatten,
    group_runs,
    ours_first,
)
from contextlora.evaluation.plots import accuracy_figure, save_figure
from contextlora.evaluation.report import as_rich, print_in_full
from contextlora.files import write_atomically
from contextlora.methods import METHODS
from contextlora.settings import RunConfig

NUM_SEEDS = 3  # of a comparison that is to be made


def compare(config: RunConfig) -> None:
    """Compares the finished runs of the configured task set, model and evaluation over methods, settings and seeds.

    Prints the tables and writes them to `<runs_dir>/comparison.md`, with a picture in `comparison.png`.

    Raises:
        UserError: there is no such run.
    """
    runs = comparable_runs(config)
    groups, rows = ours_first(group_runs(runs)), runs[0].results["tasks"]
    tables = comparison(groups, list(rows))
    for title, header, lines in tables:
        print_in_full(CONSOLE, as_rich(title, header, lines))
    target = Path(config.runs_dir) / "comparison.md"
    write_atomically(target, comparison_markdown(tables))
    figure = accuracy_figure(accuracy_intervals(groups, list(rows)), {task: rows[task]["chance"] for task in rows})
    picture = save_figure(figure, target.with_suffix(".png"))
    CONSOLE.print(f"written: {os.path.relpath(target)}, {os.path.relpath(picture)}", soft_wrap=True)


def flat_defaults(method: str) -> dict[str, object]:
    """ "section.key" -> default of a run with a method."""
    return flatten(asdict(default_config(method)))


def comparable_runs(config: RunConfig) -> list[FinishedRun]:
    """The finished runs of the configured task set, model and evaluation, whatever their method and settings.

    Raises:
        UserError: there is none.
    """
    settings, sections = flatten(asdict(config)), ("taskset.", "model.", "evaluation.")
    found = [
        run
        for run in collect_runs(config.runs_dir, flat_defaults)
        if alike(run, settings, sections, apart_from=["taskset.context"])  # methods differ in it
    ]
    runs = comparable(found)
    if not runs:
        raise UserError(
            f"{tail(config.runs_dir)} holds no finished run of task set {tail(config.taskset.name)} with model "
            f"{tail(config.model.name)} and these evaluation settings; make some with: make train METHOD=NAME"
        )
    return runs


def finished_run(config: RunConfig) -> FinishedRun | None:
    """The newest finished run with this configuration, as far as it changes results."""
    settings = flatten(asdict(config))
    same = [
        run
        for run in collect_runs(config.runs_dir, flat_defaults)
        if run.settings["seed"] == config.seed and alike(run, settings, ("",))
    ]
    return same[-1] if same else None


def compared() -> list[tuple[str, ...]]:
    """Settings of what the comparison of methods runs.

    Each method as configured, and those that train without context also with the right answers of the prerequisites in
    their prompts, since what the context does is not what a method does.
    """
    rows: list[tuple[str, ...]] = []
    for method in (f"method={name}" for name in METHODS):
        without = load_config([method]).taskset.context == "none"
        rows += [(method,), (method, "taskset.context=gold")] if without else [(method,)]
    return rows


def print_jobs(config: RunConfig, settings: Sequence[str], config_dir: Path | None = None) -> None:
    """Prints the commands of the comparison's runs that have not finished, one a line, to be run anywhere.

    Args:
        config: of the comparison.
        settings: as given, for every run; with a method among them it is the only one.
        config_dir: where settings come from, if not from the usual place.
    """
    own = ["--config-dir", str(config_dir)] if config_dir else []
    rows = [()] if any(text.startswith("method=") for text in settings) else compared()
    given = [text for text in settings if not text.startswith("seed=")]
    for row in rows:
        for seed in range(config.seed, config.seed + NUM_SEEDS):
            arguments = [*row, *given, f"seed={seed}", "training.progress=false"]
            if finished_run(load_config(arguments, config_dir)) is None:
                # Not by the console, which breaks lines.
                print(shlex.join([sys.executable, "-m", "contextlora", "train", *own, *arguments]))
