"""ContextLoRA: a slice for each task, trained in the graph's order with the prerequisites' slices in the forward.

Paper: arXiv 2507.21199, Eq. (2)-(6). Task v trains its own r_v ranks whole and the open share (1 - delta) of each
prerequisite's ranks; stage k trains generation S_k.
"""

from contextlora.errors import ConfigError
from contextlora.graph.partition import RankPartition
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.settings import MethodConfig


def build(graph: TaskGraph, method: MethodConfig) -> TrainingPlan:
    """One slice per task; a generation is a stage."""
    edges = {
        f"{prerequisite}->{task}": (prerequisite, task)
        for task in graph.tasks
        for prerequisite in graph.prerequisites(task, method.scope)
    }
    unknown = sorted(set(method.edge_delta) - set(edges))
    if unknown:
        raise ConfigError(
            f"method.edge_delta must name edges of the task graph: got {unknown[0]!r}; it has {', '.join(edges)}."
        )
    uses = {
        task: SliceUse(
            own=(task,),
            prerequisites={
                name: method.edge_delta.get(f"{name}->{task}", method.delta)
                for name in graph.prerequisites(task, method.scope)
            },
        )
        for task in graph.tasks
    }
    return TrainingPlan(RankPartition(dict.fromkeys(graph.tasks, method.rank)), uses, graph.generations)
