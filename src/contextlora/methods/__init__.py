"""Methods: each turns a task graph into a training plan; one file, one YAML and one line of this table.

All methods train sum(r_v) ranks in total and the same number of gradient steps per task.
"""

from collections.abc import Callable

from contextlora.errors import ConfigError
from contextlora.graph.plan import TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.methods import contextlora, joint, per_task, sequential
from contextlora.settings import MethodConfig

METHODS: dict[str, Callable[[TaskGraph, MethodConfig], TrainingPlan]] = {
    "contextlora": contextlora.build,
    "joint": joint.build,
    "per_task": per_task.build,
    "sequential": sequential.build,
}


def build_plan(graph: TaskGraph, method: MethodConfig) -> TrainingPlan:
    """Training plan of the method that the settings name.

    Raises:
        ConfigError: no such method.
    """
    if method.name not in METHODS:
        raise ConfigError(f"method.name must be one of {', '.join(METHODS)}: got {method.name!r}.")
    return METHODS[method.name](graph, method)
