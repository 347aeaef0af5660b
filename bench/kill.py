"""Kills a run at random instants with SIGKILL, resumes it, and compares the final weights bit by bit.

.venv/bin/python bench/kill.py [times=10] [key=value ...]

The uninterrupted run is made first where `runs_dir` does not hold it yet; give a `runs_dir` of its own.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from contextlora.commands.bench import read_arguments, run_missing
from contextlora.config import load_config
from contextlora.runs import find_runs

# Processes of their own: a killed child of this one would leave its W&B run open in this one's service.
TRAIN = [sys.executable, "-m", "contextlora", "train"]
RESUME = [sys.executable, "-m", "contextlora", "resume", "--run"]


def final_weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """What every stage trained, by the stage's file and the tensor's name."""
    files = sorted((run_folder / "checkpoints").glob("stage-*.safetensors"))
    return {f"{path.stem}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


if __name__ == "__main__":
    (num_times,), arguments = read_arguments(sys.argv[1:], times=10)
    config = load_config(arguments)
    (whole,) = run_missing([config])
    expected = final_weights(find_runs(config.runs_dir, finished=True)[-1].path)
    instants = random.Random(config.seed)
    num_same = 0
    for number in range(num_times):
        process = subprocess.Popen([*TRAIN, *arguments, "training.progress=false"], stdout=subprocess.DEVNULL)
        time.sleep(instants.uniform(0.05, 0.95) * whole.results["total_seconds"])
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = find_runs(config.runs_dir, finished=False)
        if not left:
            print(f"kill {number + 1}: missed, the run had not begun or was finished")
            continue
        rows = len(left[-1].history)
        subprocess.run([*RESUME, str(left[-1].path)], stdout=subprocess.DEVNULL, check=True)
        found = final_weights(left[-1].path)
        same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
        num_same += same
        print(f"kill {number + 1}, after {rows} validations: {'same bits' if same else 'DIFFERENT'}", flush=True)
    print(f"{num_same} of {num_times} the same")
