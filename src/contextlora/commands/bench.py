"""`contextlora bench`, and what scripts of measurements share: runs that are made where they are missing."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch

from contextlora.commands import CONSOLE
from contextlora.commands.compare import NUM_SEEDS, finished_run
from contextlora.commands.train import train
from contextlora.errors import ConfigError
from contextlora.evaluation.compare import FinishedRun, cost_rows
from contextlora.evaluation.report import as_rich, print_in_full
from contextlora.limits import shown
from contextlora.settings import RunConfig


def bench(config: RunConfig) -> None:
    """Runs the configuration with `NUM_SEEDS` seeds and prints medians and spread of time, memory and accuracy."""
    runs = run_missing([replace(config, seed=config.seed + k) for k in range(NUM_SEEDS)])
    print_in_full(CONSOLE, as_rich(f"{config.method.name}, {NUM_SEEDS} seeds", *cost_rows(runs)))


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
    missing = [config for config in configs if finished_run(config) is None]
    num_threads = max(1, (os.cpu_count() or 1) // jobs)
    # Spawned: a fork has torch's thread pool without its threads, and max_tasks_per_child refuses it.
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), initializer=_prepare, initargs=(num_threads, jobs > 1), max_tasks_per_child=1
    ) as pool:
        for number, run in enumerate(pool.map(train, missing), start=1):
            CONSOLE.print(f"{number}/{len(missing)}: {run.path}", soft_wrap=True)
    return [finished_run(config) for config in configs]


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
            raise ConfigError(f"{name} must be a whole number, got {shown(value)}")
        else:
            found[name] = int(value)
    return list(found.values()), settings


def _prepare(num_threads: int, quiet: bool) -> None:
    """In a run's process: its share of the cores; no progress bars where several would overwrite each other."""
    torch.set_num_threads(num_threads)
    CONSOLE.quiet = quiet
