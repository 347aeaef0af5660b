"""Sequential: one LoRA of rank sum(r_v), fine-tuned on one task after the other in the graph's order."""

from dataclasses import replace

from contextlora.graph.plan import TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.methods.joint import Joint


class Sequential(Joint):
    """The slice of `Joint`, and one stage per task."""

    def plan(self, graph: TaskGraph, scope: str = "direct") -> TrainingPlan:  # noqa: D102
        return replace(super().plan(graph, scope), stages=tuple((task,) for task in graph.tasks))
