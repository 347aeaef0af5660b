"""`contextlora train`: one run from its configuration to its figures; `resume` goes on in the middle of it."""

import os
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from contextlora.assembly import (
    Parts,
    compute_device,
    describe,
    facts,
    peak_memory_bytes,
    run_parts,
    trainer_settings,
    training_module,
)
from contextlora.commands import CONSOLE
from contextlora.commands.evaluate import measure, print_results
from contextlora.commands.export import export_tasks
from contextlora.config import RunConfig, to_yaml
from contextlora.evaluation.plots import learning_figure, matrix_figure, plan_figure, save_figure
from contextlora.evaluation.report import (
    graph_table,
    log_results,
    partition_table,
    stages_table,
)
from contextlora.gear.execution.peers import Peers
from contextlora.gear.planning.plan import Plan
from contextlora.gear.processes import is_first_process, joined, together
from contextlora.placement import num_processes, plan_processes
from contextlora.runs import RunFolder, find_runs, write_atomically
from contextlora.tracking import Tracker, open_tracker
from contextlora.training.callbacks import LAST
from contextlora.training.fit import fit
from contextlora.training.memory import estimate_memory
from contextlora.training.module import ContextLoraModule


def train(config: RunConfig, dry_run: bool = False) -> RunFolder | None:
    """Trains, evaluates, exports and reports one run; with `dry_run` only shows what it would be."""
    began = time.monotonic()
    if dry_run:
        return show_plan(config)
    if not is_first_process():
        train_alongside(config)
        return None
    with joined(num_processes(config), compute_device(config), train_alongside, config) as peers:
        parts = run_parts(config)
        module, plan = module_and_plan(
            config, parts, peers
        )  # before there is a run folder: a mistake leaves nothing behind
        run = _new_folder(config)
        with run.recording():
            carry_out(config, parts, module, run, began, peers, plan)
    return run


def _new_folder(config: RunConfig) -> RunFolder:
    """A new run folder, or that of the attempt before where torchrun starts the processes again."""
    if "TORCHELASTIC_MAX_RESTARTS" in os.environ:  # not its count of restarts: that of a peer's node may differ
        for run in reversed(find_runs(config.runs_dir, finished=False)):
            if run.has_same_parent and run.config_file.read_text(encoding="utf-8") == to_yaml(config):
                run.claim()
                return run
    return RunFolder.create(config.runs_dir, config.taskset.name, config.method.name, config.seed, to_yaml(config))


def train_alongside(config: RunConfig) -> None:
    """What every rank but the first does: its part of training and evaluation, nothing else."""
    with joined(num_processes(config), compute_device(config), train_alongside, config) as peers:
        parts = run_parts(config)
        module, _ = module_and_plan(config, parts, peers)
        _train_and_evaluate(config, parts, module, None, Tracker(), peers)


def module_and_plan(config: RunConfig, parts: Parts, peers: Peers | None) -> tuple[ContextLoraModule, Plan | None]:
    """The module that trains, with the plan that it follows among peers."""
    if peers is None:
        return training_module(config, parts), None
    peers.compare(facts(config, parts))
    plan, roles = plan_processes(config, parts.taskset, peers.size)
    if is_first_process():
        for stage in roles:
            CONSOLE.print(stage.summary, highlight=False, soft_wrap=True)
    return training_module(config, parts, roles), plan


def show_plan(config: RunConfig) -> None:
    """Prints what a run would be, and what it would need; writes nothing but a task set that is not there yet."""
    parts = run_parts(config)
    graph, plan, adapted, training = parts.taskset.graph, parts.plan, parts.adapted, config.training
    uses = [{task: plan.uses[task] for task in stage} for stage in plan.stages]
    trainable = [adapted.num_trainable(stage) for stage in uses]
    steps = [training.steps_per_task * len(stage) for stage in plan.stages]
    CONSOLE.print(to_yaml(config), highlight=False)
    for table in (graph_table(graph), partition_table(plan), stages_table(plan, steps, trainable)):
        CONSOLE.print(table)
    num_base = sum(p.numel() for p in adapted.model.parameters() if not p.requires_grad)
    total = adapted.num_parameters()
    CONSOLE.print(f"trainable: {total:,} numbers, {100 * total / num_base:.1f} % of the base's {num_base:,}")
    widest = max(parts.batch_width(task, training.batch_size) for task in graph.tasks)
    CONSOLE.print(str(estimate_memory(adapted.model, total, max(trainable), training.batch_size, widest)))


def carry_out(
    config: RunConfig,
    parts: Parts,
    module: ContextLoraModule,
    run: RunFolder,
    began: float,
    peers: Peers | None = None,
    plan: Plan | None = None,
) -> None:
    """Everything of a run from its folder on; see `train`.

    Args:
        config, parts, module: of the run.
        run: gets all files.
        began: `time.monotonic()` of the start.
        peers: the other processes, if there are any.
        plan: what they follow.
    """
    if plan is not None:
        write_atomically(run.path / "plan.json", plan.to_json() + "\n")
    tracker = open_tracker(config.tracking.mode, config.tracking.project, run.path, run.path.name)
    succeeded = False
    try:
        tracker.log_config(asdict(config))
        _draw("plan", plan_figure(parts.taskset.graph, parts.plan), run, tracker)
        figures = _train_and_evaluate(config, parts, module, run, tracker, peers)
        results = describe(config, parts) | {
            "train_seconds": module.progress.seconds,
            "gradient_steps": {"total": module.progress.total_steps, "stages": module.progress.steps_taken},
        }
        results |= figures
        export_tasks(parts, run)
        _draw("accuracy_matrix", matrix_figure(results["accuracy_matrix"], parts.plan.stages), run, tracker)
        _draw("learning", learning_figure(run.history), run, tracker)
        log_results(tracker, results)
        results["total_seconds"] = time.monotonic() - began
        results["peak_memory_bytes"] = peak_memory_bytes()
        run.finish(results)
        succeeded = True
    finally:
        tracker.finish(succeeded)
    print_results(results)
    _print_where(run, tracker, results)


def _train_and_evaluate(
    config: RunConfig,
    parts: Parts,
    module: ContextLoraModule,
    run: RunFolder | None,
    tracker: Tracker,
    peers: Peers | None,
) -> dict[str, Any]:
    """Trains and evaluates; without a run folder (every rank but the first) nothing is written."""
    checkpoints = run.folder("checkpoints") if run else Path()
    with together(peers, str(checkpoints / LAST)):
        fit(
            module,
            parts.data,
            trainer_settings(config, peers),
            checkpoints=checkpoints if run else Path(os.devnull),
            metrics_file=run.metrics_file if run else Path(os.devnull),
            save_stage=lambda stage: parts.save_stage(checkpoints, stage),
            log=tracker.log,
            console=CONSOLE if config.training.progress and run else None,
            agree=partial(peers.share, "state") if peers else str,
        )
        return measure(config, parts, run, peers)


def _draw(name: str, figure: Figure, run: RunFolder, tracker: Tracker) -> None:
    tracker.log_image(name, save_figure(figure, run.folder("figures") / f"{name}.png"))


def _print_where(run: RunFolder, tracker: Tracker, results: dict[str, Any]) -> None:
    seconds = [results[key] for key in ("total_seconds", "train_seconds", "evaluation_seconds")]
    CONSOLE.print("time: {:.0f} s (training {:.0f} s, evaluation {:.0f} s)".format(*seconds))
    CONSOLE.print(f"run: {os.path.relpath(run.path)}", soft_wrap=True)
    if tracker.how_to_show:
        CONSOLE.print(f"show: {tracker.how_to_show}", soft_wrap=True)
