"""Gradients of a task by the slices that it uses, for methods that decide by them."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from contextlora.backbones.scoring import option_scores
from contextlora.graph.plan import SliceUse

if TYPE_CHECKING:
    from contextlora.training.staged import StagedModule

NUM_BATCHES = 4


def slice_gradient(module: "StagedModule", task: str, name: str) -> Tensor:
    """Gradient of a task's loss by all ranks of a slice that it uses, flat, over its first training batches.

    Ranks stand in the order of the slice, layer by layer: gradients of two tasks by one slice may be compared.

    Prompts hold the right answers of the prerequisites, nothing is dropped, and gates are as they are.

    Args:
        module: between two stages, or two parts of one.
        task: whose loss.
        name: the slice.
    """
    data, adapted, use = module.data, module.adapted, module.uses[task]
    opened = SliceUse(use.own, dict.fromkeys(use.prerequisites, 0.0))
    items = data.taskset.items(task, "train")[: NUM_BATCHES * data.batch_size]
    was_training = adapted.training
    adapted.eval()
    adapted.begin_stage({task: opened})
    leaves = adapted.leaves(name)
    weights = [weight for leaf in leaves for weight in (leaf.A, leaf.B)]
    totals = [torch.zeros_like(weight) for weight in weights]
    for start in range(0, len(items), data.batch_size):
        part = items[start : start + data.batch_size]
        contexts = [data.right_context(task, item) for item in part]
        batch = data.encode_items(task, part, contexts).to(weights[0].device)
        with adapted.active(opened, task):
            loss = F.cross_entropy(option_scores(adapted.model, batch), batch.answer, reduction="sum")
            for total, gradient in zip(totals, torch.autograd.grad(loss, weights), strict=True):
                total += gradient
    adapted.end_stage()
    adapted.train(was_training)
    flat = []
    for leaf, by_A, by_B in zip(leaves, totals[::2], totals[1::2], strict=True):
        order = leaf.ranks.argsort()
        flat += [by_A[order].flatten(), by_B[:, order].flatten()]
    return torch.cat(flat).cpu() / len(items)
