"""MoLE: the slices are experts, which every token of every layer weighs by a softmax gate.

    h = W0 x + s sum_e w_e(x) B_e A_e x        w(x) = softmax(G x), G (E, d_in), one for each layer

Paper: arXiv 2404.13628 (Wu et al. 2024). There the experts are LoRAs trained before, which stay frozen while the gates
train; here, where all methods start from nothing, experts and gates train together on all tasks.

Equal numbers of parameters: G costs E d_in numbers a layer and a rank costs d_in + d_out, so that the gates cost about
E / 2 ranks. Every second expert gives up one, where it has more than one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from contextlora.graph.partition import RankPartition
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.methods.method import Method
from contextlora.settings import MethodSettings, setting

if TYPE_CHECKING:
    from contextlora.adapters import AdaptedModel


@dataclass
class MoleSettings(MethodSettings):
    """How the gates train."""

    name: str = setting("mole", "training method, a file of configs/method")
    router_learning_rate: float = setting(1e-3, "learning rate of the gates", minimum=0)


class Mole(Method):
    """One expert per task, all of them in every task's forward, and one stage."""

    Settings = MoleSettings
    exports_lora = False

    def plan(self, graph: TaskGraph, scope: str = "direct") -> TrainingPlan:  # noqa: D102
        rank = self.settings.rank
        ranks = {task: max(1, rank - place % 2) for place, task in enumerate(graph.tasks)}
        use = SliceUse(own=graph.tasks, prerequisites={})
        return TrainingPlan(RankPartition(ranks), dict.fromkeys(graph.tasks, use), (graph.tasks,))

    def peak_rate(self, group: str, learning_rate: float) -> float:  # noqa: D102
        return self.settings.router_learning_rate if group == "router" else learning_rate

    def inject(self, adapted: AdaptedModel) -> None:  # noqa: D102
        from contextlora.methods.routing import add_routers

        add_routers(adapted)
