"""Methods x seeds on one task set: the table of docs/results.md.

    .venv/bin/python bench/methods.py [seeds=5] [jobs=1] [key=value ...]

Runs that are already there are not made again. Writes <runs_dir>/comparison.md.
"""

import sys

from contextlora import workflows
from contextlora.benchmarks import read_arguments, run_missing
from contextlora.config import load_config
from contextlora.methods import METHODS

if __name__ == "__main__":
    (num_seeds, jobs), arguments = read_arguments(sys.argv[1:], seeds=5, jobs=1)
    configs = [
        load_config([*arguments, f"method={method}", f"seed={seed}"]) for seed in range(num_seeds) for method in METHODS
    ]
    run_missing(configs, jobs)
    workflows.compare(configs[0])
