"""O-LoRA: one slice after the other, each in a subspace orthogonal to those of the slices before it.

Task t of the topological order trains its own slice on top of the frozen ones of all tasks before it:

    h = W0 x + s sum_{i <= t} B_i A_i x        loss + lambda sum over layers and i < t of sum |A_i A_t^T|

and from then on every task trained so far uses the slices 1..t, as if they were merged into one LoRA.

Paper: arXiv 2310.14152 (Wang et al. 2023), with lambda as there; magnitudes are summed as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contextlora.graph.partition import RankPartition
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.methods.method import Method, StageView
from contextlora.settings import MethodSettings, setting

if TYPE_CHECKING:
    from torch import Tensor

    from contextlora.adapters import AdaptedModel


@dataclass
class OLoraSettings(MethodSettings):
    """How much the subspaces must differ."""

    name: str = setting("o_lora", "training method, a file of configs/method")
    orthogonality_weight: float = setting(0.5, "lambda, weight of the loss that keeps subspaces orthogonal", minimum=0)


class OLora(Method):
    """One slice and one stage per task; the slices lie in the order of training."""

    Settings = OLoraSettings

    def plan(self, graph: TaskGraph, scope: str = "direct") -> TrainingPlan:  # noqa: D102
        uses = {
            task: SliceUse(own=(task,), prerequisites=dict.fromkeys(graph.tasks[:place], 1.0))
            for place, task in enumerate(graph.tasks)
        }
        partition = RankPartition(dict.fromkeys(graph.tasks, self.settings.rank))
        return TrainingPlan(partition, uses, tuple((task,) for task in graph.tasks))

    def penalty(self, adapted: AdaptedModel, task: str) -> Tensor | None:  # noqa: D102
        num_earlier = adapted.partition.indices(task).start  # ranks of the tasks before it
        if not num_earlier:
            return None
        # Earlier slices are frozen, so the storage holds their values; the task's own are the stage's only leaves.
        overlaps = [
            (layer.lora_slices.A[:num_earlier] @ leaf.A.mT).abs().sum()
            for layer in adapted.layers().values()
            for leaf in layer.lora_slices.leaves
        ]
        return self.settings.orthogonality_weight * sum(overlaps)

    def next_uses(self, view: StageView) -> Mapping[str, SliceUse]:  # noqa: D102
        tasks = [task for stage in view.plan.stages for task in stage]
        trained = tasks[: tasks.index(view.tasks[0])] if view.tasks else tasks
        return dict.fromkeys(trained, view.plan.uses[trained[-1]]) if trained else {}
