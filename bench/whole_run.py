"""A whole `train` on one process and on two: processor time of each process, wall time, and whether the tables agree.

    .venv/bin/python bench/whole_run.py [rounds=1] [key=value ...]

One thread a process, both in turn. Processor time is read from /proc until a process ends: start-up, training,
validation, evaluation and export, all of it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from contextlora.commands import CONSOLE
from contextlora.commands.bench import read_arguments
from contextlora.config import load_config
from contextlora.evaluation.report import as_rich, percent, print_in_full
from contextlora.runs import latest_run

POLL_S = 0.1
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SETTINGS = {1: [], 2: ["training.strategy=contextgear", "training.devices=2"]}


def cpu_s(pid: int) -> float | None:
    """Processor time of a process, its threads included; None once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # utime and stime, fields 14 and 15; the first left is field 3.
    return None if fields[0] == "Z" else (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def processes_of(pid: int) -> list[int]:
    """The process and those that it started to train with it."""
    try:
        children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        # Not every child trains: W&B has a service, multiprocessing a resource tracker.
        return [pid, *(child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text())]
    except OSError:
        return [pid]


def run(arguments: list[str]) -> tuple[float, list[float]]:
    """Wall seconds of a run, and processor seconds of each of its processes."""
    environment, began = os.environ | {"OMP_NUM_THREADS": "1"}, time.monotonic()
    command = [sys.executable, "-m", "contextlora", "train", "training.progress=false", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    seconds: dict[int, float] = {}
    while process.poll() is None:
        for pid in processes_of(process.pid):
            # The figure of before stays, as a process that has ended has none.
            seconds[pid] = max(cpu_s(pid) or 0.0, seconds.get(pid, 0.0))
        time.sleep(POLL_S)
    if process.returncode:
        sys.exit(f"the run ended with exit code {process.returncode}: {' '.join(command)}")
    return time.monotonic() - began, list(seconds.values())


if __name__ == "__main__":
    (num_rounds,), arguments = read_arguments(sys.argv[1:], rounds=1)
    config = load_config(arguments)
    rows, busiest, tables = [], {size: [] for size in SETTINGS}, {}
    for number in range(num_rounds):
        for size, settings in SETTINGS.items():
            wall_s, processes_s = run([*arguments, *settings])
            busiest[size].append(max(processes_s))
            found = latest_run(config.runs_dir).results
            tables[size] = {task: percent(row["end_to_end"]) for task, row in found["tasks"].items()}
            shown = ", ".join(f"{seconds:.1f}" for seconds in processes_s)
            rows.append((str(number + 1), str(size), shown, f"{wall_s:.1f}", json.dumps(tables[size])))
    header = ("round", "processes", "CPU s of each process", "wall s", "end to end, %")
    print_in_full(CONSOLE, as_rich(f"{config.taskset.name}, one thread a process", header, rows))
    ratio = median(two / one for one, two in zip(busiest[1], busiest[2], strict=True))
    CONSOLE.print(f"busier process of two / one process: {ratio:.3f}; same tables: {tables[1] == tables[2]}")
