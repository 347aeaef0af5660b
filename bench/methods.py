"""Methods x seeds on one task set, with and without the prerequisites' right answers: the table of docs/results.md.

    .venv/bin/python bench/methods.py [seeds=5] [jobs=1] [key=value ...]

Runs that are already there are not made again. Writes <runs_dir>/comparison.md.
"""

import sys

from contextlora import workflows
from contextlora.benchmarks import compared, read_arguments, run_missing
from contextlora.config import load_config

if __name__ == "__main__":
    (num_seeds, jobs), arguments = read_arguments(sys.argv[1:], seeds=5, jobs=1)
    configs = [load_config([*arguments, *row, f"seed={seed}"]) for seed in range(num_seeds) for row in compared()]
    run_missing(configs, jobs)
    workflows.compare(configs[0])
