"""What a graph of many tasks costs beside the training itself: stage start, remembered answers, files.

    python bench/many_tasks.py [tasks=1000] [rank=8]

Tasks stand in generations of ten, each of which needs two tasks of the generation before; 8 items a task and split, the
bundled model. Prints medians of seconds and sizes; compare rows of one call (`tasks=4`, `tasks=1000`) on one machine.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from contextlora import ContextLora, ContextLoraModule, ContextLoraSettings, Item, Task, TaskSet, TaskSetDataModule
from contextlora.backbones.load import load_backbone
from contextlora.commands.bench import read_arguments
from contextlora.training.stage_files import StageFiles

NUM_ITEMS, WIDTH, REPEATS = 8, 10, 5
COLOURS = ("red", "green", "blue")


def make_taskset(num_tasks: int) -> TaskSet:
    """A set whose items all ask for the colour in a column."""
    tasks = [
        Task(
            f"t{n}",
            tuple(f"t{(n // WIDTH - 1) * WIDTH + k}" for k in (n % WIDTH, (n + 1) % WIDTH)) if n >= WIDTH else (),
            3,
        )
        for n in range(num_tasks)
    ]
    items = {
        (task.name, split): [make_item(task, split, number) for number in range(NUM_ITEMS)]
        for task in tasks
        for split in ("train", "validation", "test")
    }
    return TaskSet.from_items(tasks, items, name=f"{num_tasks} tasks")


def make_item(task: Task, split: str, number: int) -> Item:
    """Scene `number` of a split, which all tasks share."""
    colour = random.Random(f"{split}{number}").choice(COLOURS)
    right = dict.fromkeys(task.prerequisites, colour)
    question = f"c1 {colour} . c1 ?"
    return Item(f"{number}", f"{split}{number}", question, COLOURS, COLOURS.index(colour), prerequisites=right)


def seconds(work: Callable[[], object]) -> float:
    """Median of some calls after a first one."""
    work()
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return median(taken)


def main() -> None:
    """Measures one graph."""
    (num_tasks, rank), _ = read_arguments(sys.argv[1:], tasks=1000, rank=8)
    data = TaskSetDataModule(make_taskset(num_tasks), load_backbone("bundled"))
    module = ContextLoraModule(data, ContextLora(ContextLoraSettings(rank=rank)))
    adapted, stage = module.adapted, module.plan.stages[-1]
    last = stage[-1]
    began = time.perf_counter()
    adapted.begin_stage({task: module.uses[task] for task in stage})
    print(f"stage start                  {time.perf_counter() - began:8.3f} s")
    remembered = seconds(lambda: module.evaluator.predict(last, "validation", "gold"))
    print(f"remembered answer            {1e3 * remembered:8.3f} ms")
    num_ancestors = len(module.data.taskset.graph.prerequisites(last, "ancestors"))
    chained = seconds(lambda: predict_chain(module, last))
    print(f"the same at a chain's end    {1e3 * chained:8.3f} ms ({num_ancestors} ancestors)")
    print(f"keeping the best weights     {seconds(lambda: adapted.state.read(adapted.trained_owners)):8.3f} s")
    adapted.mark_trained()
    with tempfile.TemporaryDirectory() as folder:
        files = StageFiles(Path(folder), module)
        files.save(0, adapted.trained_owners)
        print(f"stage file                   {files.path(0).stat().st_size / 2**20:8.2f} MiB")
        print(f"all slices                   {4 * adapted.num_parameters() / 2**20:8.2f} MiB")


def predict_chain(module: ContextLoraModule, task: str) -> None:
    """A remembered answer behind the answers of its ancestors."""
    module.evaluator.predict(task, "validation", "predicted")


if __name__ == "__main__":
    main()
