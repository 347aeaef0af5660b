"""Kills a run at random instants with SIGKILL, resumes it, and compares the final weights bit by bit.

.venv/bin/python bench/kill.py [times=10] [key=value ...]
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from contextlora import workflows
from contextlora.benchmarks import read_arguments
from contextlora.config import load_config
from contextlora.runs import find_runs

TRAIN = [sys.executable, "-m", "contextlora", "train"]


def final_weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """Weights after the last stage."""
    return load_file(
        max((run_folder / "checkpoints").glob("stage-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))
    )


if __name__ == "__main__":
    (num_times,), arguments = read_arguments(sys.argv[1:], times=10)
    config = load_config(arguments)
    began = time.monotonic()
    expected = final_weights(workflows.train(config).path)
    seconds = time.monotonic() - began
    instants = random.Random(config.seed)
    num_same = 0
    for number in range(num_times):
        process = subprocess.Popen([*TRAIN, *arguments, "training.progress=false"], stdout=subprocess.DEVNULL)
        time.sleep(instants.uniform(0.05, 0.95) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = find_runs(config.runs_dir, finished=False)
        if not left:
            print(f"kill {number + 1}: missed, the run had not begun or was finished")
            continue
        workflows.resume(left[-1])
        found = final_weights(left[-1].path)
        same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
        num_same += same
        print(f"kill {number + 1}: {'same bits' if same else 'DIFFERENT'}")
    print(f"{num_same} of {num_times} the same")
