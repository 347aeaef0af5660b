"""`contextlora evaluate`, and the evaluation that ends a training."""

import time
from contextlib import nullcontext
from typing import Any

from contextlora.assembly import Parts, compute_device, run_parts
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.evaluation.report import references_table, results_table
from contextlora.evaluation.suite import evaluate_suite
from contextlora.gear.execution.peers import Peers
from contextlora.gear.execution.process_groups import Groups, broadcast_tree
from contextlora.runs import RunFolder


def evaluate(config: RunConfig, run: RunFolder) -> dict[str, Any]:
    """Evaluates a finished run again, from its stages' weights, and prints the tables; changes nothing.

    Args:
        config: the run's own settings, or others such as `evaluation.split=validation`.
        run: a finished run.
    """
    results = run.results | measure(config, run_parts(config), run)
    print_results(results)
    return results


def measure(config: RunConfig, parts: Parts, run: RunFolder | None, peers: Peers | None = None) -> dict[str, Any]:
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


def print_results(results: dict[str, Any]) -> None:
    """The tables of a run's results.json."""
    CONSOLE.print(results_table(results))
    CONSOLE.print(references_table(results))
