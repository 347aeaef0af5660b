"""The equation of ContextLoRA, in the place of one linear layer.

             +----------------- W0 (d_out, d_in), frozen -----------------+
             |                                                            v
    x -------+                                                            + ----> h
             |    +- A[I_u] -- B[I_u] * g[u->v] --+   u in P(v)           ^
             +----+                               +---- * s --------------+
                  +- A[I_v] -- B[I_v] ------------+
                     (r, d_in)  (d_out, r)

For an item of task v the active ranks are its own, I_v, and those of its prerequisites, I_u:

    h = W0 x + s B[:, active] (A[active, :] x)            s = alpha / r

One scale s for all slices: dividing by R or by the number of active ranks would rescale a slice whenever another one is
switched on. In the gated variant a learned scalar g[u->v] of this layer multiplies each prerequisite's columns of B; in
the paper's it is 1. Cost follows the n active ranks, whatever R is.

Precision: A, B and their updates are float32; the two products are computed in the base's dtype, as autocast does it
(what that costs in accuracy, and saves in time, stands in docs/decisions.md).
Where a router is set, each token weighs the slices: h = W0 x + s B (w(x) * A x), w(x) one number a slice (routing.py).

Legend: N tokens, n active ranks, R ranks in all, s scale. Paper: arXiv 2507.21199, Eq. (5)-(6).
"""

import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from contextlora.adapters.slices import RankSlices


class RankSliceLinear(nn.Module, BaseTunerLayer):
    """A linear layer with rank slices: (..., d_in) -> (..., d_out).

    Args:
        base_layer: W0 and its bias: `nn.Linear`, or `Conv1D` of transformers.
        slices: A and B.
        dropout: probability that an input of the low-rank path is dropped in training mode.

    Attributes:
        lora_dropout: the module that does so; another of the same distribution may take its place.
        lora_router: (N, d_in) -> (N, slices) weights of the slices for each token; None weighs all by 1.
    """

    # PEFT's own switches (`set_adapter` and the like) act on these: on nothing here, the slices have their own.
    adapter_layer_names = ()
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, slices: RankSlices, dropout: float):
        super().__init__()
        self.base_layer = base_layer
        self._adds_in_place = type(base_layer) in (nn.Linear, Conv1D)
        self.lora_slices = slices
        self.lora_dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.lora_router: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        tokens = x.reshape(-1, x.shape[-1])  # (N, d_in): of two dimensions h is no view, and may be added to in place
        h = self.base_layer(tokens)  # (N, d_out)
        factors = self.lora_slices.factors(h.dtype)
        if factors is not None:
            A, B, slice_of_rank = factors
            z = F.linear(self.lora_dropout(tokens).to(h.dtype), A)  # (N, n)
            if self.lora_router is not None:
                z = z * self.lora_router(tokens)[:, slice_of_rank].to(z.dtype)
            # In place it is a pass over h less; what a quantised layer gives may be a view that must stay as it is.
            h = h.addmm_(z, B.mT) if self._adds_in_place else h.addmm(z, B.mT)
        return h.view(*x.shape[:-1], h.shape[-1])
