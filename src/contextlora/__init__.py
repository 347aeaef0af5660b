"""ContextLoRA: train one language model on many related tasks, guided by a task dependency graph.

The names below are loaded when they are first asked for, so that `import contextlora` costs nothing.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "AdaptedModel": "adapters",
    "Answer": "serving.ask",
    "ContextLora": "methods.contextlora",
    "ContextLoraModule": "training.module",
    "ContextLoraSettings": "methods.contextlora",
    "Item": "tasks.task",
    "METHODS": "methods",
    "Method": "methods",
    "MethodSettings": "settings",
    "OptimizerSettings": "training.optimizer",
    "Predictor": "serving.ask",
    "RankPartition": "graph",
    "SliceUse": "graph",
    "StageLength": "training.stages",
    "Task": "tasks.task",
    "TaskGraph": "graph",
    "TaskSet": "tasks.taskset",
    "TaskSetDataModule": "tasks.datamodule",
    "TrainingPlan": "graph",
    "export_adapter": "adapters",
    "load": "assembly.trained",
    "load_backbone": "backbones.load",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'contextlora' has no attribute {name!r}")
    return getattr(import_module(f"contextlora.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
