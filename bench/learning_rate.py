"""The same search for every row of the comparison: one grid of learning rates, judged end to end on validation items.

    .venv/bin/python bench/learning_rate.py [seeds=2] [jobs=1] [key=value ...]

Prints the mean validation accuracy over tasks and seeds for every row and rate; the test split is never looked at.
Writes <runs_dir>/learning_rates.json, from which bench/methods.py takes each row's best rate.
"""

import json
import sys
from pathlib import Path

from contextlora.commands import CONSOLE
from contextlora.commands.bench import read_arguments, run_missing
from contextlora.commands.compare import compared
from contextlora.config import load_config
from contextlora.evaluation.report import as_rich, percent, print_in_full
from contextlora.files import write_atomically

RATES = (5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3)


def validation_accuracy(results: dict) -> float:
    """Mean over tasks, end to end, on the validation split."""
    return sum(results["validation"].values()) / len(results["validation"])


if __name__ == "__main__":
    (num_seeds, jobs), arguments = read_arguments(sys.argv[1:], seeds=2, jobs=1)
    configs = {
        (row, rate): [
            load_config(
                [
                    *row,
                    # Otherwise a method's own scale would move the grid.
                    "method.learning_rate_scale=1",
                    f"training.learning_rate={rate}",
                    "evaluation.split=validation",
                    *arguments,
                    f"seed={seed}",
                ]
            )
            for seed in range(num_seeds)
        ]
        for row in compared()
        for rate in RATES
    }
    run_missing([config for several in configs.values() for config in several], jobs)
    rows, best_rates = [], {}
    for row in compared():
        runs = [run_missing(configs[row, rate]) for rate in RATES]
        means = [sum(validation_accuracy(run.results) for run in several) / num_seeds for several in runs]
        equals = [number for number, mean in enumerate(means) if mean == max(means)]
        best = equals[len(equals) // 2]  # the middle one: that at an edge of several is the least certain
        best_rates[" ".join(row)] = RATES[best]
        label = ", ".join(setting.partition("=")[2] for setting in row)
        rows.append((label, *map(percent, means), f"{RATES[best]:g}"))
    header = ("row", *(f"{rate:g}" for rate in RATES), "best rate")
    print_in_full(CONSOLE, as_rich(f"validation, end to end, %, {num_seeds} seeds", header, rows))
    folder = Path(next(iter(configs.values()))[0].runs_dir)
    write_atomically(folder / "learning_rates.json", json.dumps(best_rates, indent=1) + "\n")
