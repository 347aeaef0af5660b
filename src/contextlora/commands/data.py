"""`contextlora data`: builds a task set."""

from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.tasks.tasksets import load_taskset


def data(config: RunConfig) -> None:
    """Builds the task set where it is not there yet, and prints what it holds."""
    taskset = load_taskset(config.taskset)
    CONSOLE.print(f"task set {taskset.name}: {taskset.folder}")
    for task in taskset.graph.tasks:
        counts = ", ".join(f"{len(taskset.items(task, split))} {split}" for split in ("train", "validation", "test"))
        CONSOLE.print(f"  {task}: {counts}")
