"""What the commands do, as straight recipes on a RunConfig."""

import os
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from contextlora.adapters import export_adapter
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
from contextlora.config import RunConfig, load_config, to_yaml
from contextlora.errors import UserError
from contextlora.evaluation.plots import learning_figure, matrix_figure, plan_figure, save_figure
from contextlora.evaluation.report import (
    graph_table,
    log_results,
    partition_table,
    print_in_full,
    references_table,
    results_table,
    stages_table,
)
from contextlora.evaluation.suite import evaluate_suite
from contextlora.gear.groups import Groups, broadcast_tree
from contextlora.gear.peers import Peers
from contextlora.gear.plan import Plan
from contextlora.ranks import is_rank_0, joined, plan_ranks, together
from contextlora.runs import RunFolder, find_runs, write_atomically
from contextlora.tracking import Tracker, open_tracker
from contextlora.training.callbacks import LAST
from contextlora.training.fit import fit
from contextlora.training.memory import estimate_memory
from contextlora.training.module import ContextLoraModule

CONSOLE = Console()


def train(config: RunConfig, dry_run: bool = False) -> RunFolder | None:
    """Trains, evaluates, exports and reports one run; with `dry_run` only shows what it would be."""
    began = time.monotonic()
    if dry_run:
        return show_plan(config)
    if not is_rank_0():
        _train_alongside(config)
        return None
    with joined(config, compute_device(config), _train_alongside) as peers:
        parts = run_parts(config)
        module, plan = _module(config, parts, peers)  # before there is a run folder: a mistake leaves nothing behind
        run = _new_folder(config)
        with run.recording():
            _carry_out(config, parts, module, run, began, peers, plan)
    return run


def _new_folder(config: RunConfig) -> RunFolder:
    """A new run folder, or that of the attempt before where torchrun starts the processes again."""
    if "TORCHELASTIC_MAX_RESTARTS" in os.environ:  # not its count of restarts: that of a peer's node may differ
        for run in reversed(find_runs(config.runs_dir, finished=False)):
            if run.has_same_parent and run.config_file.read_text(encoding="utf-8") == to_yaml(config):
                run.claim()
                return run
    return RunFolder.create(config.runs_dir, config.taskset.name, config.method.name, config.seed, to_yaml(config))


def _train_alongside(config: RunConfig) -> None:
    """What every rank but the first does: its part of training and evaluation, nothing else."""
    with joined(config, compute_device(config), _train_alongside) as peers:
        parts = run_parts(config)
        module, _ = _module(config, parts, peers)
        _train_and_evaluate(config, parts, module, None, Tracker(), peers)


def _module(config: RunConfig, parts: Parts, peers: Peers | None) -> tuple[ContextLoraModule, Plan | None]:
    """The module that trains, with the plan that it follows among peers."""
    if peers is None:
        return training_module(config, parts), None
    peers.compare(facts(config, parts))
    plan, roles = plan_ranks(config, parts.taskset, peers.size)
    if peers.rank == 0:
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
        print_in_full(CONSOLE, table)
    num_base = sum(p.numel() for p in adapted.model.parameters() if not p.requires_grad)
    total = adapted.num_parameters()
    CONSOLE.print(f"trainable: {total:,} numbers, {100 * total / num_base:.1f} % of the base's {num_base:,}")
    widest = max(parts.batch_width(task, training.batch_size) for task in graph.tasks)
    CONSOLE.print(str(estimate_memory(adapted.model, total, max(trainable), training.batch_size, widest)))


def resume(run: RunFolder, devices: int | None = None) -> None:
    """Continues a run that was interrupted, to the very weights that it would have had; on other devices if told so."""
    began = time.monotonic()
    config = load_config([f"training.devices={devices}"] if devices else [], saved=run.config_file)
    if not is_rank_0():
        _train_alongside(config)
        return
    run.claim()
    with run.recording(), joined(config, compute_device(config), _train_alongside) as peers:
        parts = run_parts(config)
        module, plan = _module(config, parts, peers)
        _carry_out(config, parts, module, run, began, peers, plan)


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


def _carry_out(
    config: RunConfig,
    parts: Parts,
    module: ContextLoraModule,
    run: RunFolder,
    began: float,
    peers: Peers | None = None,
    plan: Plan | None = None,
) -> None:
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
        _export(parts, run)
        _draw("accuracy_matrix", matrix_figure(results["accuracy_matrix"], parts.plan.stages), run, tracker)
        _draw("learning", learning_figure(run.history), run, tracker)
        log_results(tracker, results)
        results["total_seconds"] = time.monotonic() - began
        results["peak_memory_bytes"] = peak_memory_bytes()
        run.finish(results)
        succeeded = True
    finally:
        tracker.finish(succeeded)
    _print_results(results)
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
        return _figures(config, parts, run, peers)


def _figures(config: RunConfig, parts: Parts, run: RunFolder | None, peers: Peers | None = None) -> dict[str, Any]:
    """Evaluates the stages of a run folder; its peers share the work and need no folder."""
    began = time.monotonic()
    parts.adapted.to(compute_device(config))  # Lightning leaves it on the CPU
    if peers is not None:
        parts.evaluator.share(peers.run_in_turn)

    def load_stage(stage: int) -> None:
        if run is not None:
            parts.load_stage(run.folder("checkpoints"), stage)
        if peers is not None:
            state = broadcast_tree(parts.adapted.adapter_state() if run else None, 0, Groups())
            parts.adapted.load_adapter_state(state)

    with CONSOLE.status("evaluating") if run else nullcontext():
        found = evaluate_suite(
            parts.evaluator, load_stage, context=config.taskset.context, split=config.evaluation.split
        )
    return found | {"split": config.evaluation.split, "evaluation_seconds": time.monotonic() - began}


def _draw(name: str, figure: Figure, run: RunFolder, tracker: Tracker) -> None:
    tracker.log_image(name, save_figure(figure, run.folder("figures") / f"{name}.png"))


def _export(parts: Parts, run: RunFolder) -> None:
    for task, use in parts.plan.uses.items():
        export_adapter(parts.adapted, task, use, run.folder("adapters") / task, parts.backbone.name)


def _print_results(results: dict[str, Any]) -> None:
    print_in_full(CONSOLE, results_table(results))
    print_in_full(CONSOLE, references_table(results))


def _print_where(run: RunFolder, tracker: Tracker, results: dict[str, Any]) -> None:
    seconds = [results[key] for key in ("total_seconds", "train_seconds", "evaluation_seconds")]
    CONSOLE.print("time: {:.0f} s (training {:.0f} s, evaluation {:.0f} s)".format(*seconds))
    CONSOLE.print(f"run: {_shown(run.path)}", soft_wrap=True)
    if tracker.how_to_show:
        CONSOLE.print(f"show: {tracker.how_to_show}", soft_wrap=True)


def _shown(path: Path) -> str:
    return os.path.relpath(path)
