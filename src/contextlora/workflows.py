"""What the commands do, as straight recipes on a RunConfig."""

import os
import platform
import resource
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from contextlora.adapters import export_adapter
from contextlora.assembly import Parts, load_taskset, run_parts, training_module
from contextlora.config import RunConfig, load_config, to_yaml
from contextlora.errors import UserError
from contextlora.evaluation.plots import matrix_figure, plan_figure, save_figure
from contextlora.evaluation.report import references_table, results_table
from contextlora.evaluation.suite import evaluate_suite
from contextlora.runs import RunFolder
from contextlora.tasks.checks import check_table, check_taskset
from contextlora.tracking import Tracker, open_tracker
from contextlora.training.fit import TrainerSettings, fit

CONSOLE = Console()
PACKAGES = ("torch", "lightning", "transformers", "peft")


def train(config: RunConfig, dry_run: bool = False) -> RunFolder | None:
    """Trains, evaluates, exports and reports one run; with `dry_run` only shows what it would be."""
    began = time.monotonic()
    parts = run_parts(config)  # before there is a run folder: a mistake leaves nothing behind
    run = RunFolder.create(config.runs_dir, config.taskset.name, config.method.name, config.seed, to_yaml(config))
    with run.recording():
        _carry_out(config, parts, run, began)
    return run


def resume(run: RunFolder) -> None:
    """Continues a run that was interrupted, to the very weights that it would have had."""
    began = time.monotonic()
    run.claim()
    with run.recording():
        config = load_config(saved=run.config_file)
        _carry_out(config, run_parts(config), run, began)


def evaluate(config: RunConfig, run: RunFolder) -> dict[str, Any]:
    """Evaluates a finished run again, from its stages' weights, and prints the tables; changes nothing.

    Args:
        config: the run's own settings, or others such as `evaluation.split=validation`.
        run: a finished run.
    """
    results = run.results | _figures(config, run_parts(config), run)
    _print_results(results)
    return results


def export(config: RunConfig, run: RunFolder) -> None:
    """Writes each task of a finished run as an ordinary PEFT adapter."""
    if run.state != "finished":
        raise UserError(f"{run.path} is {run.state}, only a finished run is exported; {run.how_to_resume}")
    parts = run_parts(config)
    parts.load_stage(run.folder("checkpoints"), len(parts.plan.stages) - 1)
    _export(parts, run)
    CONSOLE.print(f"adapters: {_shown(run.path / 'adapters')}", soft_wrap=True)


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


def _carry_out(config: RunConfig, parts: Parts, run: RunFolder, began: float) -> None:
    training, checkpoints = config.training, run.folder("checkpoints")
    tracker = open_tracker(config.tracking.mode, config.tracking.project, run.path, run.path.name)
    succeeded = False
    try:
        tracker.log_config(asdict(config))
        graph_picture = save_figure(plan_figure(parts.taskset.graph, parts.plan), run.folder("figures") / "plan.png")
        tracker.log_image("plan", graph_picture)
        module = training_module(config, parts)
        fit(
            module,
            parts.data,
            TrainerSettings(training.accelerator, training.strategy, training.gradient_clip),
            checkpoints=checkpoints,
            metrics_file=run.path / "metrics.jsonl",
            save_stage=lambda stage: parts.save_stage(checkpoints, stage),
            log=tracker.log,
            console=CONSOLE if training.progress else None,
        )
        results = _description(config, parts) | {
            "train_seconds": module.progress.seconds,
            "gradient_steps": {"total": module.progress.total_steps, "stages": module.progress.steps_taken},
        }
        results |= _figures(config, parts, run)
        _export(parts, run)
        _track_results(tracker, results, run, parts)
        results["total_seconds"] = time.monotonic() - began
        results["peak_memory_bytes"] = _peak_memory_bytes()
        run.finish(results)
        succeeded = True
    finally:
        tracker.finish(succeeded)
    _print_results(results)
    _print_where(run, tracker, results)


def _description(config: RunConfig, parts: Parts) -> dict[str, Any]:
    """The keys of results.json that say what was run, and where."""
    return {
        "taskset": parts.taskset.name,
        "method": config.method.name,
        "seed": config.seed,
        "delta": config.method.delta,
        "context": config.taskset.context,
        "trainable_parameters": parts.adapted.num_parameters(),
        "backbone": {"name": config.model.name, "fingerprint": parts.backbone.fingerprint},
        "stages": parts.plan.stages,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "dtype": str(parts.backbone.model.dtype).removeprefix("torch."),
        },
    }


def _figures(config: RunConfig, parts: Parts, run: RunFolder) -> dict[str, Any]:
    checkpoints, began = run.folder("checkpoints"), time.monotonic()
    with CONSOLE.status("evaluating"):
        found = evaluate_suite(
            parts.evaluator,
            lambda stage: parts.load_stage(checkpoints, stage),
            context=config.taskset.context,
            split=config.evaluation.split,
        )
    return found | {"split": config.evaluation.split, "evaluation_seconds": time.monotonic() - began}


def _export(parts: Parts, run: RunFolder) -> None:
    for task, use in parts.plan.uses.items():
        export_adapter(parts.adapted, task, use, run.folder("adapters") / task, parts.backbone.name)


def _track_results(tracker: Tracker, results: dict[str, Any], run: RunFolder, parts: Parts) -> None:
    figure = matrix_figure(results["accuracy_matrix"], parts.plan.stages)
    tracker.log_image("accuracy_matrix", save_figure(figure, run.folder("figures") / "accuracy_matrix.png"))
    columns = ("task", "chance", "zero_shot", "own_stage", "final", "end_to_end", "n")
    rows = [[task, *(row[key] for key in columns[1:])] for task, row in results["tasks"].items()]
    tracker.log_table("results", columns, rows)
    stages = [f"stage {number + 1}" for number in range(len(parts.plan.stages))]
    tracker.log_table("accuracy_matrix", ["task", *stages], [[t, *r] for t, r in results["accuracy_matrix"].items()])
    summary = {f"{task}/{key}": row[key] for task, row in results["tasks"].items() for key in columns[1:]}
    means = {f"mean/{key}": sum(row[key] for row in results["tasks"].values()) / len(rows) for key in columns[1:-1]}
    tracker.log_summary(summary | means)


def _print_results(results: dict[str, Any]) -> None:
    CONSOLE.print(results_table(results))
    CONSOLE.print(references_table(results))


def _print_where(run: RunFolder, tracker: Tracker, results: dict[str, Any]) -> None:
    seconds = [results[key] for key in ("total_seconds", "train_seconds", "evaluation_seconds")]
    CONSOLE.print("time: {:.0f} s (training {:.0f} s, evaluation {:.0f} s)".format(*seconds))
    CONSOLE.print(f"run: {_shown(run.path)}", soft_wrap=True)
    if tracker.how_to_show:
        CONSOLE.print(f"show: {tracker.how_to_show}", soft_wrap=True)


def _shown(path: Path) -> str:
    return os.path.relpath(path)


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
