"""Joint: one LoRA of rank sum(r_v), trained on the batches of all tasks mixed."""

from contextlora.graph.partition import RankPartition
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.settings import MethodConfig


def build(graph: TaskGraph, method: MethodConfig) -> TrainingPlan:
    """One slice "shared" and one stage."""
    use = SliceUse(own=("shared",), prerequisites={})
    partition = RankPartition({"shared": method.rank * len(graph.tasks)})
    return TrainingPlan(partition, dict.fromkeys(graph.tasks, use), (graph.tasks,))
