"""Methods x seeds on one task set: the table of docs/results.md.

    .venv/bin/python bench/methods.py [seeds=5] [key=value ...]

Runs that are already there are not made again. Writes <runs_dir>/comparison.md.
"""

import sys

from contextlora import workflows
from contextlora.config import load_config
from contextlora.methods import METHODS

if __name__ == "__main__":
    arguments = [text for text in sys.argv[1:] if not text.startswith("seeds=")]
    num_seeds = int(next((text[6:] for text in sys.argv[1:] if text.startswith("seeds=")), 5))
    configs = [
        load_config([*arguments, f"method={method}", f"seed={seed}"]) for seed in range(num_seeds) for method in METHODS
    ]
    workflows.run_missing(configs)
    workflows.compare(configs[0])
