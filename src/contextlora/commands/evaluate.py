"""`contextlora evaluate`, and the evaluation that ends a training."""

import time
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

from contextlora.assembly.build import build_data, build_module, compute_device
from contextlora.assembly.provenance import describe
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig, load_config
from contextlora.errors import UserError
from contextlora.evaluation.report import print_in_full, references_table, results_table
from contextlora.evaluation.suite import evaluate_suite
from contextlora.gear.execution.peers import Peers
from contextlora.gear.execution.process_groups import ProcessGroups, broadcast_tree
from contextlora.graph.plan import SliceUse
from contextlora.methods.adaptive_delta import AUTO
from contextlora.runs import RunFolder
from contextlora.training.module import ContextLoraModule
from contextlora.training.stage_files import StageFiles


def evaluate(config: RunConfig, run: RunFolder) -> dict[str, Any]:
    """Evaluates a trained run again, from its stages' weights, and prints the tables.

    Changes nothing in a run that is whole; a damaged stage file is written again where that is possible, and so is a
    results.json that cannot be read.

    Args:
        config: the run's own settings, or others such as `evaluation.split=validation`.
        run: one whose stages are all done.
    """
    known = {}
    try:
        known = {} if run.state == "trained" else run.results
    except UserError:
        if run.state != "finished":
            raise
    module = build_module(config, build_data(config))
    measured = measure(config, module, run)
    # After measuring: a trained run's uses of the slices come with its last stage's file.
    results = known | describe(config, module) | measured
    # By other settings than its own it would be measured as no other run is.
    if not known and run.state == "finished" and config == load_config(saved=run.config_file):
        results = {"gradient_steps": _steps(run)} | results
        run.write_results(results)
        CONSOLE.print(f"{run.results_file.name} could not be read: written again")
    print_results(results)
    return results


def _steps(run: RunFolder) -> dict[str, Any]:
    """Gradient steps, from the validations: each stage ended with one."""
    ends = [0, *{row["stage"]: row["step"] for row in run.history}.values()]
    return {"total": ends[-1], "stages": [end - begin for begin, end in pairwise(ends)]}


def measure(
    config: RunConfig, module: ContextLoraModule, run: RunFolder | None, peers: Peers | None = None
) -> dict[str, Any]:
    """Evaluates the stages of a run folder; its peers share the work and need no folder."""
    began = time.monotonic()
    module.adapted.to(compute_device(config))  # Lightning leaves it on the CPU
    if peers is not None:
        module.evaluator.share(peers.run_in_turn)

    files = StageFiles(run.folder("checkpoints"), module, CONSOLE.print) if run else None

    def load_stage(stage: int) -> None:
        if files is not None:
            files.load(stage)
        if peers is not None:
            # Stage files lie with process 0 alone, maybe on another machine.
            ours = (module.adapted.state.read(), module.progress.uses) if files else None
            state, uses = broadcast_tree(ours, 0, ProcessGroups())
            module.adapted.state.write(state)
            module.set_uses({task: SliceUse(tuple(own), rest) for task, (own, rest) in uses.items()})

    with CONSOLE.status("evaluating", spinner="line") if run else nullcontext():
        found = evaluate_suite(
            module.evaluator,
            module.plan.stages,
            load_stage,
            context=config.taskset.context,
            split=config.evaluation.split,
        )
    return found | {"split": config.evaluation.split, "evaluation_seconds": time.monotonic() - began}


def print_results(results: dict[str, Any]) -> None:
    """The tables of a run's results.json."""
    print_in_full(CONSOLE, results_table(results))
    print_in_full(CONSOLE, references_table(results))
    if results.get("method_settings", {}).get("delta") == AUTO:
        deltas = ", ".join(f"{edge} {delta:g}" for edge, delta in results["deltas"].items())
        CONSOLE.print(f"delta, chosen by {results['method_settings']['delta_policy']}: {deltas}", soft_wrap=True)
