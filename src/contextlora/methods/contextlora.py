"""ContextLoRA: a slice for each task, trained in the graph's order with the prerequisites' slices in the forward.

Paper: arXiv 2507.21199, Eq. (2)-(6). Task v trains its own r_v ranks whole and the open share (1 - delta) of each
prerequisite's ranks; stage k trains generation S_k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from contextlora.errors import ConfigError, listed
from contextlora.graph.partition import RankPartition
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.limits import fits, shown
from contextlora.methods.adaptive_delta import AUTO, choose_uses
from contextlora.methods.method import Method, StageView
from contextlora.settings import MethodSettings, setting


@dataclass
class ContextLoraSettings(MethodSettings):
    """How the slices of prerequisites enter the forward and train."""

    name: str = setting("contextlora", "training method, a file of configs/method")
    delta: float | int | str = setting(  # int, too: OmegaConf would refuse 1 without it
        1.0, "share of each prerequisite's ranks that stays frozen while a task trains, or auto: chosen in training"
    )
    delta_policy: Literal["gradient", "validation", "sensitivity"] = setting(
        "gradient", "what chooses delta=auto, see methods/adaptive_delta.py"
    )
    edge_delta: dict[str, float] = setting(  # noqa: RUF009 - it makes a field
        {}, "delta of single edges, as {'u->v': 0.5}", minimum=0, maximum=1
    )
    variant: Literal["gated", "paper"] = setting(
        "gated", "how prerequisite slices enter the forward pass: times a learned gate, or simply added"
    )
    frozen_policy: Literal["largest", "first", "random"] = setting("largest", "which ranks of a slice stay frozen")
    gate_init: float = setting(0.05, "initial gate of a prerequisite's slice (variant gated)")
    gate_learning_rate: float = setting(1e-2, "learning rate of the gates", minimum=0)
    open_learning_rate_scale: float = setting(
        0.1, "times the learning rate, for open ranks of prerequisites; a full rate harms the prerequisites", minimum=0
    )

    def __post_init__(self) -> None:
        # Before the other settings, as their rule for it would only be a number or text.
        if self.delta != AUTO and not (fits(self.delta, float) and 0 <= self.delta <= 1):
            raise ConfigError(f"method.delta must be between 0 and 1, or {AUTO}: got {shown(self.delta)}.")
        super().__post_init__()
        self.delta = self.delta if self.delta == AUTO else float(self.delta)


class ContextLora(Method):
    """One slice per task; a generation is a stage."""

    Settings = ContextLoraSettings

    def plan(self, graph: TaskGraph, scope: str = "direct") -> TrainingPlan:  # noqa: D102
        needed = {task: graph.prerequisites(task, scope) for task in graph.tasks}
        deltas = self._deltas(needed)
        uses = {
            task: SliceUse(own=(task,), prerequisites={name: deltas[f"{name}->{task}"] for name in names})
            for task, names in needed.items()
        }
        return TrainingPlan(RankPartition(dict.fromkeys(graph.tasks, self.settings.rank)), uses, graph.generations)

    def _deltas(self, needed: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
        edges = [f"{name}->{task}" for task, names in needed.items() for name in names]
        unknown = sorted(set(self.settings.edge_delta) - set(edges))
        if unknown:
            raise ConfigError(
                f"method.edge_delta must name edges of the task graph: got {shown(unknown[0])}; it has {listed(edges)}."
            )
        # Nothing is open until the policy has been asked, at the start of the stage.
        delta = 1.0 if self.settings.delta == AUTO else self.settings.delta
        return dict.fromkeys(edges, delta) | dict(self.settings.edge_delta)

    @property
    def adapter_settings(self) -> dict[str, Any]:  # noqa: D102
        return {
            "gated": self.settings.variant == "gated",
            "gate_init": self.settings.gate_init,
            "frozen_policy": self.settings.frozen_policy,
        }

    def peak_rate(self, group: str, learning_rate: float) -> float:  # noqa: D102
        rates = {
            "open": learning_rate * self.settings.open_learning_rate_scale,
            "gate": self.settings.gate_learning_rate,
        }
        return rates.get(group, learning_rate)

    @property
    def changes_uses(self) -> bool:  # noqa: D102
        return self.settings.delta == AUTO

    def next_uses(self, view: StageView) -> Mapping[str, SliceUse]:  # noqa: D102
        return choose_uses(view, self.settings.delta_policy, self.settings.edge_delta) if self.changes_uses else {}
