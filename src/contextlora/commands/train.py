"""`contextlora train`: one run from its configuration to its figures; `resume` goes on in the middle of it."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from contextlora.adapters import AdaptedModel
from contextlora.adapters.targets import experts_left_out
from contextlora.assembly.build import build_data, build_module, compute_device, trainer_settings
from contextlora.assembly.placement import num_processes, plan_processes
from contextlora.assembly.provenance import describe, facts
from contextlora.backbones.vocabulary import Vocabulary, check_vocabulary, vocabularies
from contextlora.commands import CONSOLE
from contextlora.commands.evaluate import measure, print_results
from contextlora.commands.export import export_tasks
from contextlora.config import RunConfig, to_yaml
from contextlora.errors import ConfigError, listed
from contextlora.evaluation.plots import learning_figure, matrix_figure, plan_figure, save_figure
from contextlora.evaluation.report import (
    graph_table,
    log_results,
    partition_table,
    print_in_full,
    stages_table,
)
from contextlora.files import write_atomically
from contextlora.gear.execution.peers import Peers
from contextlora.gear.execution.strategy import NAME as GEAR
from contextlora.gear.planning.plan import Plan
from contextlora.gear.processes import is_first_process, joined, together
from contextlora.runs import RunFolder, find_runs, remove_all_leftovers
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tracking import Tracker, open_tracker
from contextlora.training.callbacks import LAST
from contextlora.training.fit import fit
from contextlora.training.loggers import TrackerLogger
from contextlora.training.memory import MemoryEstimate, available_bytes, estimate_memory, peak_memory_bytes
from contextlora.training.module import ContextLoraModule
from contextlora.training.plugins import build_plugins, check_plugins
from contextlora.training.prompt_check import check_forward, check_prompts
from contextlora.training.stage_files import StageFiles


def train(config: RunConfig, dry_run: bool = False) -> RunFolder | None:
    """Trains, evaluates, exports and reports one run; with `dry_run` only shows what it would be."""
    began = time.monotonic()
    if dry_run:
        return show_plan(config)
    if not is_first_process():
        train_alongside(config)
        return None
    with joined(num_processes(config), compute_device(config), train_alongside, config) as peers:
        # Before there is a run folder: a mistake leaves nothing behind.
        module, plan = module_and_plan(config, peers)
        run = _new_folder(config)
        with _leaving_nothing_of_a_mistake(run), run.recording():
            carry_out(config, module, run, began, peers, plan)
    return run


@contextmanager
def _leaving_nothing_of_a_mistake(run: RunFolder) -> Iterator[None]:
    """Removes the folder of a run that a setting ends before it has trained: going on would meet the same mistake."""
    try:
        yield
    except ConfigError:
        if not (run.folder("checkpoints") / LAST).exists():
            shutil.rmtree(run.path)
        raise


def _new_folder(config: RunConfig) -> RunFolder:
    """A new run folder, or that of the attempt before where torchrun starts the processes again."""
    remove_all_leftovers(config.runs_dir)
    if "TORCHELASTIC_MAX_RESTARTS" in os.environ:  # not its count of restarts: that of a peer's node may differ
        for run in reversed(find_runs(config.runs_dir, finished=False)):
            if run.has_same_parent and run.config_file.read_text(encoding="utf-8") == to_yaml(config):
                run.claim()
                return run
    return RunFolder.create(config.runs_dir, config.taskset.name, config.method.name, config.seed, to_yaml(config))


def train_alongside(config: RunConfig) -> None:
    """What every process but the first does: its part of training and evaluation, nothing else."""
    with joined(num_processes(config), compute_device(config), train_alongside, config) as peers:
        module, _ = module_and_plan(config, peers)
        _train_and_evaluate(config, module, None, Tracker(), peers)


def module_and_plan(config: RunConfig, peers: Peers | None) -> tuple[ContextLoraModule, Plan | None]:
    """The module that trains, with the plan that it follows among peers."""
    data = _checked_data(config)
    check_prompts(data, config.evaluation.max_items)
    check_forward(data)
    if peers is not None:
        # Before the plan: unequal settings would give unequal roles, and processes that wait for each other.
        peers.compare(facts(config, data))
    if peers is None or config.training.strategy != GEAR:
        module = build_module(config, data)
        if is_first_process():
            _note_experts(module.adapted)
        if peers is not None:
            module.evaluator.share(peers.run_in_turn)
            if is_first_process():
                CONSOLE.print(f"ddp: {peers.size} processes share every batch", highlight=False)
        if config.training.micro_batch_size == "auto":
            _choose_micro_batches(module, estimate_memory(module))
        return module, None
    plan, roles = plan_processes(config, data.taskset, peers.size)
    if is_first_process():
        for stage in roles:
            CONSOLE.print(stage.summary, highlight=False, soft_wrap=True)
    return build_module(config, data, roles), plan


def _checked_data(config: RunConfig) -> TaskSetDataModule:
    # Before the model loads, which takes seconds.
    check_plugins(config.training.callbacks, Callback, "training.callbacks")
    check_plugins(config.training.loggers, Logger, "training.loggers", Path())
    trainer_settings(config).check()
    data = build_data(config)
    if config.model.attn_implementation == "auto" and is_first_process():
        CONSOLE.print(f"attention: {data.backbone.model.config._attn_implementation}")
    found = vocabularies(data.taskset, data.backbone.tokenizer, config.model.name, data.image)
    if is_first_process():
        print_unknown_words(found)
    check_vocabulary(found, config.model.name)
    return data


def print_unknown_words(found: Sequence[Vocabulary]) -> None:
    """Prints a line for each task with words that the model does not know, or options that it cannot tell apart."""
    for one in found:
        if one.num_unknown or one.num_alike:
            CONSOLE.print(f"vocabulary: {one}", soft_wrap=True)


def show_plan(config: RunConfig) -> None:
    """Prints what a run would be, and what it would need; writes nothing but a task set that is not there yet."""
    num_processes(config)  # which refuses settings that do not go together
    data = _checked_data(config)
    module = build_module(config, data)
    graph, plan, adapted, training = data.taskset.graph, module.plan, module.adapted, config.training
    uses = [{task: plan.uses[task] for task in stage} for stage in plan.stages]
    trainable = [adapted.num_trainable(stage) for stage in uses]
    steps = [training.steps_per_task * len(stage) for stage in plan.stages]
    CONSOLE.print(to_yaml(config), highlight=False)
    for table in (graph_table(graph), partition_table(plan), stages_table(plan, steps, trainable)):
        print_in_full(CONSOLE, table)
    # Outside of a stage slices are buffers, and routers require gradients: what is left is the base.
    if module.method.changes_uses:
        CONSOLE.print("this is how training begins: after each validation the method may open or freeze other ranks")
    num_base = sum(p.numel() for p in adapted.model.parameters() if not p.requires_grad)
    total = adapted.num_parameters()
    CONSOLE.print(f"trainable: {total:,} numbers, {100 * total / num_base:.1f} % of the base's {num_base:,}")
    _note_experts(adapted)
    memory = estimate_memory(module)
    if training.micro_batch_size == "auto":
        _choose_micro_batches(module, memory)
    at_once = min(data.micro_batch_size or training.batch_size, training.batch_size)
    evaluated = min(config.evaluation.batch_size, max(map(len, data.taskset.splits.values())))
    CONSOLE.print(memory.describe(at_once, evaluated), soft_wrap=True)


def _choose_micro_batches(module: ContextLoraModule, memory: MemoryEstimate) -> None:
    """Computes as many items of a step at once as memory holds."""
    data, device = module.data, next(module.adapted.parameters()).device
    available = available_bytes(device)
    if available is None:
        return
    if device.type == "cpu":
        available //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of one machine share its memory
    # A tenth stays free: other programs need some too, and allocators cannot use all.
    data.micro_batch_size = memory.fitting_items(data.batch_size, int(0.9 * available))
    if data.micro_batch_size < data.batch_size and is_first_process():
        CONSOLE.print(f"memory: {data.micro_batch_size} of a step's {data.batch_size} items are computed at once")


def _note_experts(adapted: AdaptedModel) -> None:
    """Says which layers are adapted where the experts are not."""
    if experts := experts_left_out(adapted.model):
        names = listed(sorted({name.rpartition(".")[2] for name in adapted.layers()}))
        CONSOLE.print(
            f"experts are not adapted: {experts:,} numbers of theirs stay as they are; adapted are {names} "
            "(model.target_modules)",
            soft_wrap=True,
        )


def carry_out(
    config: RunConfig,
    module: ContextLoraModule,
    run: RunFolder,
    began: float,
    peers: Peers | None = None,
    plan: Plan | None = None,
) -> None:
    """Everything of a run from its folder on; see `train`.

    Args:
        config, module: of the run.
        run: gets all files.
        began: `time.monotonic()` of the start.
        peers: the other processes, if there are any.
        plan: what they follow.
    """
    # Before anything is written; and now, as the evaluation after all training needs the files.
    StageFiles(run.folder("checkpoints"), module, CONSOLE.print).mend()
    if plan is not None:
        write_atomically(run.path / "plan.json", plan.to_json() + "\n")
    tracker = open_tracker(config.tracking.mode, config.tracking.project, run.path, run.path.name)
    succeeded = False
    try:
        tracker.log_config(asdict(config))
        _draw("plan", plan_figure(module.data.taskset.graph, module.plan), run, tracker)
        figures = _train_and_evaluate(config, module, run, tracker, peers)
        results = describe(config, module) | {
            "train_seconds": module.progress.seconds,
            "gradient_steps": {"total": module.progress.total_steps, "stages": module.progress.steps_taken},
        }
        results |= figures
        if module.method.exports_lora:
            export_tasks(module, run, results)
        _draw("accuracy_matrix", matrix_figure(results["accuracy_matrix"], module.plan.stages), run, tracker)
        _draw("learning", learning_figure(module.progress.history), run, tracker)
        log_results(tracker, results)
        results["total_seconds"] = time.monotonic() - began
        results["peak_memory_bytes"] = peak_memory_bytes()
        # Last, when all that a finished run promises is there.
        run.finish(results)
        succeeded = True
    finally:
        tracker.finish(succeeded)
    print_results(results)
    _print_where(run, tracker, results)
    if not module.method.exports_lora:
        CONSOLE.print(f"no adapters: {config.method.name} is no ordinary LoRA, which PEFT could load", soft_wrap=True)


def _train_and_evaluate(
    config: RunConfig,
    module: ContextLoraModule,
    run: RunFolder | None,
    tracker: Tracker,
    peers: Peers | None,
) -> dict[str, Any]:
    """Trains and evaluates; without a run folder (every process but the first) nothing is written."""
    checkpoints, training = run.folder("checkpoints") if run else Path(), config.training
    files = StageFiles(checkpoints, module, CONSOLE.print)
    with together(peers, str(checkpoints / LAST)):
        fit(
            module,
            trainer_settings(config, peers.size if peers else 1),
            # Below devnull there is no file to find, and none can be made.
            checkpoints=checkpoints if run else Path(os.devnull),
            metrics_file=run.metrics_file if run else Path(os.devnull),
            save_stage=files.save,
            console=CONSOLE if config.training.progress and run else None,
            # On every process: a callback may save a checkpoint, in which all take part.
            callbacks=build_plugins(training.callbacks, Callback, "training.callbacks"),
            loggers=[
                TrackerLogger(tracker),
                *(build_plugins(training.loggers, Logger, "training.loggers", run.path) if run else ()),
            ],
            agree=partial(peers.share, "state") if peers else str,
        )
        if run:
            run.mark_trained()
        return measure(config, module, run, peers)


def _draw(name: str, figure: Figure, run: RunFolder, tracker: Tracker) -> None:
    tracker.log_image(name, save_figure(figure, run.folder("figures") / f"{name}.png"))


def _print_where(run: RunFolder, tracker: Tracker, results: dict[str, Any]) -> None:
    seconds = [results[key] for key in ("total_seconds", "train_seconds", "evaluation_seconds")]
    CONSOLE.print("time: {:.0f} s (training {:.0f} s, evaluation {:.0f} s)".format(*seconds))
    CONSOLE.print(f"run: {os.path.relpath(run.path)}", soft_wrap=True)
    if tracker.how_to_show:
        CONSOLE.print(f"show: {tracker.how_to_show}", soft_wrap=True)
