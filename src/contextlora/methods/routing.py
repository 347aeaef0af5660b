"""Routers: modules of an adapted layer by which each token weighs the slices, and that train beside them.

    w(x) = softmax(G x)                                            every slice takes part
    w(x) = softmax of the k largest of G x, 0 for the others       top-k

Letters: N tokens, E slices (experts).
"""

import torch
from torch import Tensor, nn

from contextlora.adapters.model import AdaptedModel
from contextlora.adapters.parts import TrainableParts


class Router(nn.Module):
    """(N, d_in) -> (N, E) weights, which sum to 1 for each token.

    Args:
        d_in: input features of the layer.
        num_slices: E.
        device: where the layer is.
        top_k: how many slices a token uses; None for all.
        records: whether forwards that train leave what a penalty needs, see `take_seen`.
    """

    def __init__(self, d_in: int, num_slices: int, device: torch.device, top_k: int | None, records: bool):
        super().__init__()
        self.top_k, self.records = top_k, records
        self.gate = nn.Linear(d_in, num_slices, bias=False, device=device, dtype=torch.float32)
        nn.init.zeros_(self.gate.weight)  # all slices alike at the start
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Weights of the slices for each token."""
        logits = self.gate(x.to(self.gate.weight.dtype))  # (N, E)
        probabilities = weights = logits.softmax(dim=-1)
        if self.top_k is not None:
            # All E columns stay, as the layer finds the weight of a rank by the place of its slice.
            kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(self.top_k).indices, True)
            weights = logits.masked_fill(~kept, -torch.inf).softmax(dim=-1)
        # Forwards between two steps, such as answers of chains, are no part of what the penalty balances.
        if self.training and self.records and torch.is_grad_enabled():
            self._seen.append((probabilities, weights))
        return weights

    def take_seen(self) -> list[tuple[Tensor, Tensor]]:
        """(probabilities, weights) of each forward since the last call, each (N, E)."""
        seen, self._seen = self._seen, []
        return seen


def add_routers(adapted: AdaptedModel, top_k: int | None = None, records: bool = False, std: float = 0.0) -> None:
    """Gives every adapted layer a `Router` over all slices of the partition.

    Args:
        adapted: the model.
        top_k, records: as for `Router`.
        std: of G's normal start. With top-k it must not be 0: of equal logits every token would take the same k slices,
            and the others would not train.
    """
    routers = {}
    for name, layer in adapted.layers().items():
        A = layer.lora_slices.A
        layer.lora_router = Router(A.shape[1], len(adapted.partition.ranks), A.device, top_k, records)
        if std:
            start = torch.randn(layer.lora_router.gate.weight.shape, generator=adapted.generator(name, "+router"))
            with torch.no_grad():
                layer.lora_router.gate.weight.copy_(start * std)
        routers[name] = layer.lora_router
    adapted.add_parts(TrainableParts("router", routers))
