"""Pure task graphs, rank partitions and training plans; imports no torch."""

from contextlora.graph.partition import RankPartition, num_frozen
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import GraphError, TaskGraph

__all__ = ["GraphError", "RankPartition", "SliceUse", "TaskGraph", "TrainingPlan", "num_frozen"]
