"""What a method is: everything in which one way of sharing the LoRA among tasks differs from another.

A method is one file in this folder, one YAML in `configs/method` and one line in the table of `contextlora.methods`.
Only `plan` has to be written; the rest has the defaults of a plain LoRA. Files here import torch inside functions only,
because their settings are part of `--help`, which answers at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.settings import MethodSettings

if TYPE_CHECKING:
    from torch import Tensor

    from contextlora.adapters import AdaptedModel


@dataclass(frozen=True)
class StageView:
    """Where a stage stands, for a method that changes the uses of slices during it.

    Attributes:
        plan: of the training.
        tasks: that train in the stage; none once training is over.
        interval: validations of this stage so far; 0 when it begins.
        uses: task -> use, as they are now.
        history: all validations so far, as in metrics.jsonl.
        validate: task -> (accuracy, loss in nats) on its validation items by the weights of now.
        gradient: (task, slice) -> gradient of the task's training loss by the slice's A and B, flat, float32, over a
            few training batches, whatever its use leaves open now.
        importance: (task, slice) -> (layers, ranks) sums of |gradient * value| over the numbers of a rank of the slice.
        notes: what the method wants to remember until the stage ends, plain values; a part of every checkpoint.
    """

    plan: TrainingPlan
    tasks: tuple[str, ...]
    interval: int
    uses: Mapping[str, SliceUse]
    history: Sequence[Mapping[str, Any]]
    validate: Callable[[str], tuple[float, float]]
    gradient: Callable[[str, str], Tensor]
    importance: Callable[[str, str], Tensor]
    notes: dict[str, Any]


class Method(ABC):
    """A method with its settings.

    Args:
        settings: an instance of `Settings`.

    Attributes:
        Settings: the dataclass of the method's settings; what stands in no field of it is no setting of the method.
        exports_lora: whether each task is an ordinary LoRA, which PEFT loads.
    """

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    exports_lora: ClassVar[bool] = True

    def __init__(self, settings: MethodSettings | None = None) -> None:
        self.settings: Any = settings or self.Settings()

    @abstractmethod
    def plan(self, graph: TaskGraph, scope: str = "direct") -> TrainingPlan:
        """The slices, how each task uses them, and the stages.

        Args:
            graph: of the tasks.
            scope: whose slices count as prerequisites' where the method uses them: "direct" parents or all "ancestors".
        """

    @property
    def adapter_settings(self) -> dict[str, Any]:
        """Fields of `AdapterConfig` beyond those of every method."""
        return {}

    def peak_rate(self, group: str, learning_rate: float) -> float:
        """Peak learning rate of a group of `AdaptedModel.parameter_groups`.

        Args:
            group: its name.
            learning_rate: of a task's own ranks.
        """
        return learning_rate

    def inject(self, adapted: AdaptedModel) -> None:  # noqa: B027 - most methods need nothing
        """Puts what the method needs besides slices into the model, see `AdaptedModel.add_parts`."""

    def penalty(self, adapted: AdaptedModel, task: str) -> Tensor | None:
        """What is added to the loss of a training step of a task, after its forward; None for nothing."""
        return None

    @property
    def changes_uses(self) -> bool:
        """Whether `next_uses` may change anything."""
        return type(self).next_uses is not Method.next_uses

    def next_uses(self, view: StageView) -> Mapping[str, SliceUse]:
        """Uses that change now.

        Asked when a stage begins, after each of its validations but the last, and once more, with no tasks in the view,
        when training is over. They hold until they are changed again, and are part of checkpoint and stage files.
        """
        return {}
