"""Per task: a small LoRA for each task, trained alone; the reference that uses no graph."""

from contextlora.graph.partition import RankPartition
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.methods.method import Method


class PerTask(Method):
    """One slice and one stage per task, no prerequisites in the forward."""

    def plan(self, graph: TaskGraph, scope: str = "direct") -> TrainingPlan:  # noqa: D102
        return TrainingPlan(
            RankPartition(dict.fromkeys(graph.tasks, self.settings.rank)),
            {task: SliceUse(own=(task,), prerequisites={}) for task in graph.tasks},
            tuple((task,) for task in graph.tasks),
        )
