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

Precision: A, B and their updates are float32; the two products are computed in the base's dtype, as autocast does it.
Measured on a bfloat16 Llama (6 layers, 192 wide, 16 ranks active, CPU with AMX) against the same weights in float32,
relative errors: logits .0074 with a small adapter and .0077 with a strong one, where float32 products give .0074 and
.0073; gradients .0080 and .0083, where they give .0076 and .0076. A training step takes a third less time.

Legend: N tokens of a block, n active ranks, R ranks in all, s scale. Paper: arXiv 2507.21199, Eq. (5)-(6).
"""

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from contextlora.adapters.dropout import Dropout
from contextlora.adapters.slices import RankSlices


class RankSliceLinear(nn.Module, BaseTunerLayer):
    """A linear layer with rank slices: (..., d_in) -> (..., d_out).

    Args:
        base_layer: W0 and its bias: `nn.Linear`, or `Conv1D` of transformers.
        slices: A and B.
        dropout: probability that an input of the low-rank path is dropped in training mode.
    """

    # PEFT's own switches (`set_adapter` and the like) act on these: on nothing here, the slices have their own.
    adapter_layer_names = ()
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, slices: RankSlices, dropout: float):
        super().__init__()
        self.base_layer = base_layer
        self.lora_slices = slices
        self.lora_dropout = Dropout(dropout, slices.active) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out)."""
        num_blocks = self.lora_slices.active.num_blocks(len(x))
        # The base sees the blocks too, so that one in-place product adds the low-rank part: a pass over h less.
        # (In-place on a view costs a copy in the backward; h is one only where the base has a bias.)
        tokens = x.reshape(num_blocks, -1, x.shape[-1])  # (blocks, N, d_in)
        h = self.base_layer(tokens)  # (blocks, N, d_out)
        factors = self.lora_slices.factors(h.dtype, num_blocks)
        if factors is not None:
            A, B = factors
            h = h.baddbmm_(torch.bmm(self.lora_dropout(tokens).to(h.dtype), A.mT), B.mT)
        return h.view(*x.shape[:-1], h.shape[-1])

    def skip_dropout(self, num_tokens: int) -> None:
        """Draws this layer's dropout mask for a batch of so many tokens that another device computes."""
        if isinstance(self.lora_dropout, Dropout):
            self.lora_dropout.skip(num_tokens * self.lora_slices.A.shape[1], self.base_layer.weight)
