"""Joint: one LoRA of rank sum(r_v), trained on the batches of all tasks mixed."""

from contextlora.graph.partition import RankPartition
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.methods.method import Method


class Joint(Method):
    """One slice "shared" and one stage."""

    def plan(self, graph: TaskGraph, scope: str = "direct") -> TrainingPlan:  # noqa: D102
        use = SliceUse(own=("shared",), prerequisites={})
        partition = RankPartition({"shared": self.settings.rank * len(graph.tasks)})
        return TrainingPlan(partition, dict.fromkeys(graph.tasks, use), (graph.tasks,))
