"""Gradients of a task by the slices that it uses, for methods that decide by them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from contextlora.adapters.slices import Leaf
from contextlora.backbones.scoring import option_scores
from contextlora.graph.plan import SliceUse

if TYPE_CHECKING:
    from contextlora.training.staged import StagedModule

NUM_BATCHES = 4


@dataclass(frozen=True)
class SliceGradient:
    """A task's loss and one slice; its ranks stand in the order of the slice, so that tasks may be compared.

    Attributes:
        flat: gradient by the slice's A (r, d_in) and B (d_out, r), layer by layer.
        importance: (layers, r) sums of |gradient * value| over the numbers of a rank.
    """

    flat: Tensor
    importance: Tensor


def slice_gradients(module: "StagedModule", task: str) -> dict[str, SliceGradient]:
    """Gradients of a task's mean loss over its first training batches, by all ranks of each slice that it uses.

    Prompts hold the right answers of the prerequisites, nothing is dropped, and gates are as they are. The model is
    left as it was.

    Args:
        module: between two stages, or two parts of one.
        task: whose loss.
    """
    adapted, use = module.adapted, module.uses[task]
    # Only leaves have gradients, and a method also asks about ranks that are frozen now: delta 0 opens all.
    opened = SliceUse(use.own, dict.fromkeys(use.prerequisites, 0.0))
    was_training = adapted.training
    adapted.eval()
    adapted.begin_stage({task: opened})
    try:
        leaves = {name: adapted.leaves(name) for name in opened.active}
        weights = [weight for some in leaves.values() for leaf in some for weight in (leaf.A, leaf.B)]
        totals = iter(_loss_gradients(module, task, opened, weights))
        return {name: _in_order(some, [next(totals) for _ in range(2 * len(some))]) for name, some in leaves.items()}
    finally:
        adapted.end_stage()
        adapted.train(was_training)


def _loss_gradients(module: "StagedModule", task: str, use: SliceUse, weights: Sequence[Tensor]) -> list[Tensor]:
    data, adapted = module.data, module.adapted
    items = data.taskset.items(task, "train")[: NUM_BATCHES * data.batch_size]
    totals = [torch.zeros_like(weight) for weight in weights]
    for start in range(0, len(items), data.batch_size):
        part = items[start : start + data.batch_size]
        batch = data.encode_items(task, part, [data.right_context(task, item) for item in part])
        batch = batch.to(weights[0].device)
        with torch.enable_grad(), adapted.active(use, task):
            # Sums, divided by all items below: those of a last, smaller batch must not weigh more.
            loss = F.cross_entropy(option_scores(adapted.model, batch), batch.answer, reduction="sum")
            gradients = torch.autograd.grad(loss, weights)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient / len(items)
    return totals


def _in_order(leaves: Sequence[Leaf], gradients: Sequence[Tensor]) -> SliceGradient:
    """Args: the one leaf of a slice in each layer, and gradients by its A and B in turn."""
    flat, importance = [], []
    for leaf, by_A, by_B in zip(leaves, gradients[::2], gradients[1::2], strict=True):
        order = leaf.ranks.argsort()
        flat += [by_A[order].flatten(), by_B[:, order].flatten()]
        weighed = (by_A * leaf.A.detach()).abs().sum(dim=1) + (by_B * leaf.B.detach()).abs().sum(dim=0)  # (r,)
        importance.append(weighed[order].cpu())
    return SliceGradient(torch.cat([one.cpu() for one in flat]), torch.stack(importance))
