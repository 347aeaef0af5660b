"""Per task: a small LoRA for each task, trained alone; the reference that uses no graph."""

from contextlora.graph.partition import RankPartition
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.settings import MethodConfig


def build(graph: TaskGraph, method: MethodConfig) -> TrainingPlan:
    """One slice and one stage per task, no prerequisites in the forward."""
    return TrainingPlan(
        RankPartition(dict.fromkeys(graph.tasks, method.rank)),
        {task: SliceUse(own=(task,), prerequisites={}) for task in graph.tasks},
        tuple((task,) for task in graph.tasks),
    )
