"""MixLoRA: the experts of MoLE, of which each token uses the best k, with a loss that spreads the tokens over them.

    h = W0 x + s sum_e w_e(x) B_e A_e x        w(x) = softmax of the k largest of G x, 0 for the others
    loss + alpha sum over layers of E sum_e f_e P_e

f_e is the share of all choices (k a token) that fell on expert e, P_e its mean probability under softmax(G x); the sum
is 1 where all experts get the same. As in Switch Transformers, f has no gradient. Padding counts as tokens. With
several processes each balances the rows that it trains, so that another number of processes gives other weights.

Paper: arXiv 2404.15159 (Li et al. 2024). There the experts of a feed-forward block share a router, and attention has a
plain LoRA; here every adapted layer has a router, as in `mole`, whose ranks it takes. All experts are computed for
every token, also those that get weight 0: top-k saves no time here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from contextlora.errors import ConfigError
from contextlora.graph.plan import TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.methods.mole import Mole, MoleSettings
from contextlora.settings import setting

if TYPE_CHECKING:
    from torch import Tensor

    from contextlora.adapters import AdaptedModel

ROUTER_STD = 0.02  # of the routers' normal start, as of the linear layers of most transformers


@dataclass
class MixLoraSettings(MoleSettings):
    """How tokens choose their experts."""

    name: str = setting("mixlora", "training method, a file of configs/method")
    top_k: int = setting(2, "experts that a token uses", minimum=1)
    balance_weight: float = setting(0.01, "alpha, weight of the loss that balances the experts", minimum=0)


class MixLora(Mole):
    """Experts and stage of `Mole`, top-k routers and a balance loss."""

    Settings = MixLoraSettings

    def plan(self, graph: TaskGraph, scope: str = "direct") -> TrainingPlan:  # noqa: D102
        top_k, num_experts = self.settings.top_k, len(graph.tasks)
        if top_k > num_experts:
            raise ConfigError(f"method.top_k must be at most {num_experts}, one expert a task: got {top_k}. Lower it.")
        return super().plan(graph, scope)

    def inject(self, adapted: AdaptedModel) -> None:  # noqa: D102
        from contextlora.methods.routing import add_routers

        add_routers(adapted, self.settings.top_k, records=True, std=ROUTER_STD)

    def penalty(self, adapted: AdaptedModel, task: str) -> Tensor | None:  # noqa: D102
        seen = [layer.lora_router.take_seen() for layer in adapted.layers().values()]
        return self.settings.balance_weight * sum(balance_loss(forwards) for forwards in seen)


def balance_loss(forwards: list[tuple[Tensor, Tensor]]) -> Tensor:
    """E sum_e f_e P_e over all tokens of one layer; 1 if the experts are used alike, E if all use one.

    Args:
        forwards: (probabilities, weights) of each forward, both (N, E); a weight of 0 is an expert not chosen.
    """
    import torch

    # A step may take several forwards: options of several tokens have one of their own behind the prompts.
    probabilities, weights = (torch.cat(parts) for parts in zip(*forwards, strict=True))
    chosen = (weights > 0).to(probabilities.dtype)
    f = chosen.sum(dim=0) / chosen.sum()
    return probabilities.shape[1] * (f * probabilities.mean(dim=0)).sum()
