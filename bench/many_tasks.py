"""What a graph of many tasks costs beside the training itself: steps, stage starts, answers, files, memory.

    python bench/many_tasks.py [sizes=4,16,100,1000] [rounds=3] [rank=8]
    python bench/many_tasks.py write=data/thousand [tasks=1000] [width=10]      the set alone, for `contextlora train`

Tasks stand in generations of two (`width`), each of which needs two tasks of the generation before, so that stages of
all graphs are alike and the last task computes with the ranks of three; 8 items a task and split, the bundled model.
Each size has a process of its own, in turn; medians over rounds.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from contextlora import ContextLora, ContextLoraModule, ContextLoraSettings, Item, Task, TaskSet, TaskSetDataModule
from contextlora.adapters import export_adapter
from contextlora.backbones.load import load_backbone
from contextlora.commands.bench import read_arguments
from contextlora.evaluation.report import markdown_table
from contextlora.tasks.taskset import write_taskset
from contextlora.training.checkpoint import AtomicCheckpointIO
from contextlora.training.stage_files import StageFiles

NUM_ITEMS, REPEATS = 8, 9
COLOURS = ("red", "green", "blue")


def make_tasks(num_tasks: int, width: int) -> list[Task]:
    """The graph."""
    return [
        Task(
            f"t{n}",
            tuple(f"t{(n // width - 1) * width + k % width}" for k in (n, n + 1)) if n >= width else (),
            3,
        )
        for n in range(num_tasks)
    ]


def make_items(tasks: list[Task]) -> dict[tuple[str, str], list[Item]]:
    """All ask for the colour in a column."""
    return {
        (task.name, split): [make_item(task, split, number) for number in range(NUM_ITEMS)]
        for task in tasks
        for split in ("train", "validation", "test")
    }


def make_item(task: Task, split: str, number: int) -> Item:
    """Scene `number` of a split, which all tasks share."""
    colour = random.Random(f"{split}{number}").choice(COLOURS)
    right = dict.fromkeys(task.prerequisites, colour)
    question = f"c1 {colour} . c1 ?"
    return Item(f"{number}", f"{split}{number}", question, COLOURS, COLOURS.index(colour), prerequisites=right)


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Median of some calls after a first one."""
    work()
    taken = []
    for _ in range(REPEATS):
        began = clock()
        work()
        taken.append(clock() - began)
    return median(taken)


def measure(num_tasks: int, width: int, rank: int) -> dict[str, float]:
    """One graph's figures, in this process."""
    tasks = make_tasks(num_tasks, width)
    data = TaskSetDataModule(TaskSet.from_items(tasks, make_items(tasks), name="many"), load_backbone("bundled"))
    module = ContextLoraModule(data, ContextLora(ContextLoraSettings(rank=rank)))
    adapted, stage = module.adapted, module.plan.stages[-1]
    last, found = stage[-1], {}
    began = time.perf_counter()
    adapted.begin_stage({task: module.uses[task] for task in stage})
    found["stage start, s"] = time.perf_counter() - began
    items = data.taskset.items(last, "train")
    batch = data.encode_items(last, items, [data.right_context(last, item) for item in items])
    module.masks.rows, module.masks.batch_size = batch.rows, batch.batch_size
    parameters = [p for group in adapted.parameter_groups().values() for p in group]
    optimizer = torch.optim.AdamW(parameters, lr=0.0)
    adapted.train()

    def step() -> None:
        module.step_loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        adapted.mark_trained()

    found["step, ms CPU"] = 1e3 * seconds(step, time.process_time)
    found["remembered answer, ms"] = 1e3 * seconds(lambda: module.evaluator.predict(last, "validation", "gold"))
    with tempfile.TemporaryDirectory() as folder:
        files = StageFiles(Path(folder), module)
        found["stage file, s"] = seconds(lambda: files.save(0, adapted.trained_owners))
        checkpoint = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        path = Path(folder) / "last.ckpt"
        found["checkpoint, s"] = seconds(lambda: AtomicCheckpointIO().save_checkpoint(checkpoint, path))
        found["checkpoint, MiB"] = path.stat().st_size / 2**20
        adapted.end_stage()
        export = Path(folder) / "adapter"
        found["export of a task, s"] = seconds(
            lambda: export_adapter(adapted, last, module.uses[last], export, "bundled")
        )
    began = time.perf_counter()
    module.accuracies("test")
    found["evaluation of all, s"] = time.perf_counter() - began
    found["all slices, MiB"] = 4 * adapted.num_parameters() / 2**20
    found["peak memory, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return found


def main() -> None:
    """All sizes, one of them in this process, or the set alone."""
    (sizes, rounds, rank, width, size, write, tasks), _ = read_arguments(
        sys.argv[1:], sizes="4,16,100,1000", rounds=3, rank=8, width=2, size=0, write="", tasks=1000
    )
    if write:
        write_taskset(Path(write), Path(write).name, made := make_tasks(tasks, width), make_items(made))
        return
    if size:
        torch.set_num_threads(1)
        print(json.dumps(measure(size, width, rank)))
        return
    found: dict[str, list[dict[str, float]]] = {one: [] for one in sizes.split(",")}
    for _ in range(rounds):
        for one, rows in found.items():
            command = [sys.executable, __file__, f"size={one}", f"rank={rank}", f"width={width}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(one, rows[-1], file=sys.stderr, flush=True)
    names = list(next(iter(found.values()))[0])
    rows = [[name, *(f"{median(row[name] for row in rows):.3g}" for rows in found.values())] for name in names]
    print(markdown_table(["tasks", *found], rows))


if __name__ == "__main__":
    main()
