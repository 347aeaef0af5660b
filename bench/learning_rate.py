"""The same search for every method: one grid of learning rates, judged end to end on the validation split.

    .venv/bin/python bench/learning_rate.py [seeds=2] [jobs=1] [key=value ...]

Prints the mean validation accuracy over tasks and seeds of every method and rate; the test split is never looked at.
"""

import sys

from contextlora import workflows
from contextlora.benchmarks import read_arguments, run_missing
from contextlora.config import load_config
from contextlora.evaluation.report import as_rich, percent
from contextlora.methods import METHODS

RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def validation_accuracy(results: dict) -> float:
    """Mean over tasks, end to end, on the validation split."""
    return sum(results["validation"].values()) / len(results["validation"])


if __name__ == "__main__":
    (num_seeds, jobs), arguments = read_arguments(sys.argv[1:], seeds=2, jobs=1)
    configs = {
        (method, rate): [
            load_config(
                [
                    f"method={method}",
                    "method.learning_rate_scale=1",
                    f"training.learning_rate={rate}",
                    "evaluation.split=validation",
                    *arguments,
                    f"seed={seed}",
                ]
            )
            for seed in range(num_seeds)
        ]
        for method in METHODS
        for rate in RATES
    }
    run_missing([config for several in configs.values() for config in several], jobs)
    rows = []
    for method in METHODS:
        runs = [run_missing(configs[method, rate]) for rate in RATES]
        row = [sum(validation_accuracy(run.results) for run in several) / num_seeds for several in runs]
        best = max(range(len(RATES)), key=row.__getitem__)
        rows.append((method, *map(percent, row), f"{RATES[best]:g}"))
    header = ("method", *(f"{rate:g}" for rate in RATES), "best rate")
    workflows.CONSOLE.print(as_rich(f"validation, end to end, %, {num_seeds} seeds", header, rows))
