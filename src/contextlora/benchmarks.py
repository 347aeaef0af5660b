"""Many runs: makes those that are missing, several at once, and compares what they reached and what they cost."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from contextlora import workflows
from contextlora.config import load_config
from contextlora.errors import ConfigError, UserError
from contextlora.evaluation.compare import (
    FinishedRun,
    accuracy_intervals,
    alike,
    collect_runs,
    comparison,
    comparison_markdown,
    cost_rows,
    flatten,
    group_runs,
    ours_first,
)
from contextlora.evaluation.plots import accuracy_figure, save_figure
from contextlora.evaluation.report import as_rich, print_in_full
from contextlora.methods import METHODS
from contextlora.runs import write_atomically
from contextlora.settings import RunConfig

BENCH_SEEDS = 3


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


def bench(config: RunConfig) -> None:
    """Runs the configuration with `BENCH_SEEDS` seeds and prints medians and spread of time, memory and accuracy."""
    runs = run_missing([replace(config, seed=config.seed + k) for k in range(BENCH_SEEDS)])
    print_in_full(workflows.CONSOLE, as_rich(f"{config.method.name}, {BENCH_SEEDS} seeds", *cost_rows(runs)))


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
        print_in_full(workflows.CONSOLE, as_rich(title, header, lines))
    target = Path(config.runs_dir) / "comparison.md"
    write_atomically(target, comparison_markdown(tables))
    figure = accuracy_figure(accuracy_intervals(groups, list(rows)), {task: rows[task]["chance"] for task in rows})
    picture = save_figure(figure, target.with_suffix(".png"))
    workflows.CONSOLE.print(f"written: {os.path.relpath(target)}, {os.path.relpath(picture)}", soft_wrap=True)


def comparable_runs(config: RunConfig) -> list[FinishedRun]:
    """The finished runs of the configured task set, model and evaluation, whatever their method and settings.

    Raises:
        UserError: there is none.
    """
    settings, sections = flatten(asdict(config)), ("taskset.", "model.", "evaluation.")
    runs = [
        run
        for run in collect_runs(config.runs_dir, flatten(asdict(RunConfig())))
        if alike(run, settings, sections, apart_from=["taskset.context"])  # methods differ in it
    ]
    if not runs:
        raise UserError(
            f"{config.runs_dir} holds no finished run of task set {config.taskset.name} with model {config.model.name} "
            "and these evaluation settings; make some with: make train METHOD=... SEED=..."
        )
    return runs


def run_missing(configs: Sequence[RunConfig], jobs: int = 1) -> list[FinishedRun]:
    """The finished run of each configuration, made where there is none.

    Each run has a process of its own, so that peak memory and time are those of a run started from a terminal.

    Args:
        configs: what to run.
        jobs: processes at once; each gets its share of the cores. The number of threads changes the last digits of
            every product, so compare runs made with the same `jobs`.
    """
    if jobs < 1:
        raise ConfigError(f"jobs must be at least 1, got {jobs}")
    missing = [config for config in configs if _find(config) is None]
    num_threads = max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=_prepare, initargs=(num_threads, jobs > 1), max_tasks_per_child=1
    ) as pool:
        for number, run in enumerate(pool.map(workflows.train, missing), start=1):
            workflows.CONSOLE.print(f"{number}/{len(missing)}: {run.path}", soft_wrap=True)
    return [_find(config) for config in configs]


def read_arguments(arguments: Sequence[str], **options: int | str) -> tuple[list[Any], list[str]]:
    """Takes `name=value` arguments out of a bench script's command line.

    Args:
        arguments: the command line.
        options: the names to take out, with their defaults; where that is a number, the value must be a whole number.

    Returns:
        The values in the order of `options`, and the other arguments: settings of the runs.
    """
    found, settings = dict(options), []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in options:
            settings.append(argument)
        elif isinstance(options[name], str):
            found[name] = value
        elif not value.isdigit():
            raise ConfigError(f"{name} must be a whole number, got {value!r}")
        else:
            found[name] = int(value)
    return list(found.values()), settings


def _prepare(num_threads: int, quiet: bool) -> None:
    """In a run's process: its share of the cores; no progress bars where several would overwrite each other."""
    torch.set_num_threads(num_threads)
    workflows.CONSOLE.quiet = quiet


def _find(config: RunConfig) -> FinishedRun | None:
    settings: dict[str, Any] = flatten(asdict(config))
    same = [
        run
        for run in collect_runs(config.runs_dir, flatten(asdict(RunConfig())))
        if run.settings["seed"] == config.seed and alike(run, settings, ("",))
    ]
    return same[-1] if same else None
