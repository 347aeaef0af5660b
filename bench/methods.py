"""Methods x seeds on one task set, with and without the prerequisites' right answers: the table of docs/results.md.

    .venv/bin/python bench/methods.py [seeds=5] [jobs=1] [key=value ...]

Each row trains at its best rate of bench/learning_rate.py, where that has been run; else as configured. Runs that are
already there are not made again. Writes <runs_dir>/comparison.md.
"""

import json
import sys
from pathlib import Path

from contextlora.commands.bench import read_arguments, run_missing
from contextlora.commands.compare import compare, compared
from contextlora.config import load_config

if __name__ == "__main__":
    (num_seeds, jobs), arguments = read_arguments(sys.argv[1:], seeds=5, jobs=1)
    default = load_config(arguments)
    found = Path(default.runs_dir) / "learning_rates.json"
    rates = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
    configs = []
    for seed in range(num_seeds):
        for row in compared():
            rate = rates.get(" ".join(row))
            scale = [f"method.learning_rate_scale={rate / default.training.learning_rate:g}"] if rate else []
            configs.append(load_config([*arguments, *row, *scale, f"seed={seed}"]))
    run_missing(configs, jobs)
    compare(configs[0])
