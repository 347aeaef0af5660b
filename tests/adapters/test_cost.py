"""Property 3: cost follows the active ranks. Counted from every operation that torch dispatches, not from a clock."""

from math import prod

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from contextlora.adapters import AdaptedModel, AdapterConfig
from contextlora.graph import RankPartition, SliceUse

TOKENS = 30  # 3 sequences of 10


class Operations(TorchDispatchMode):
    """Lists (operation, shapes of its tensors) of everything that runs inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        self.seen.append((str(func), [tuple(t.shape) for t in tensors]))
        return result

    @property
    def matmul_flops(self):
        """2 N K M of each matrix product; the result's shape comes last, the operands' before it."""
        of = {"mm": 0, "addmm": 1, "addmm_": 1, "bmm": 0, "baddbmm_": 1}  # place of the first operand
        products = {f"aten.{name}.default": place for name, place in of.items()}
        return sum(2 * prod(s[products[f]]) * s[-1][-1] for f, s in self.seen if f in products)


def adapted_graph(tiny_model, num_tasks):
    """t2 needs t0 and t1; the other tasks are there too."""
    names = [f"t{i}" for i in range(num_tasks)]
    return AdaptedModel(tiny_model(), RankPartition(dict.fromkeys(names, 4)), AdapterConfig()).eval()


USES = {delta: SliceUse(("t2",), {"t0": delta, "t1": delta}) for delta in (0.0, 0.5, 1.0)}


def training_step(adapted, use, batch, loss_of):
    adapted.begin_stage({"t2": use})
    parameters = [p for group in adapted.parameter_groups().values() for p in group]
    optimizer = torch.optim.AdamW(parameters)
    with Operations() as operations, adapted.active(use, "t2"):
        loss_of(adapted, batch).backward()
        optimizer.step()
    return operations


@pytest.mark.parametrize("delta", USES)
def test_a_step_in_a_graph_of_100_tasks_runs_the_same_operations_as_in_one_of_4(delta, tiny_model, inputs, loss_of):
    few, many = (training_step(adapted_graph(tiny_model, n), USES[delta], inputs(), loss_of) for n in (4, 100))
    assert few.seen == many.seen and len(few.seen) > 1000


def test_an_evaluation_in_a_graph_of_100_tasks_too(tiny_model, inputs):
    seen = []
    for num_tasks in (4, 100):
        adapted = adapted_graph(tiny_model, num_tasks)
        with torch.no_grad(), adapted.active(USES[1.0], "t2"):
            adapted(**inputs())
            with Operations() as operations:  # the second forward: the factors are kept
                adapted(**inputs())
        seen.append(operations.seen)
    assert seen[0] == seen[1]
    assert not any(function == "aten.cat.default" and (12, 32) in shapes for function, shapes in seen[0])


@pytest.mark.parametrize("use, num_active", [(SliceUse(("t2",)), 4), (USES[0.5], 12), (USES[1.0], 12)])
def test_the_forward_costs_the_base_and_two_products_over_the_active_ranks(use, num_active, tiny_model, inputs):
    adapted = adapted_graph(tiny_model, 6)
    flops = []
    for in_force in (None, use):
        with torch.no_grad(), adapted.active(in_force, "t2"), Operations() as operations:
            adapted(**inputs())
        flops.append(operations.matmul_flops)
    widths = 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 40))  # d_in + d_out, summed over the layers
    assert flops[1] - flops[0] == 2 * TOKENS * num_active * widths


def test_nothing_of_the_size_of_all_ranks_is_made(tiny_model, inputs, loss_of):
    operations = training_step(adapted_graph(tiny_model, 100), USES[0.5], inputs(), loss_of)
    assert not any(400 in shape for _, shapes in operations.seen for shape in shapes)  # R = 100 x 4


def test_a_stage_of_one_task_copies_nothing(tiny_model, inputs, loss_of):
    """Without prerequisites there is nothing to join: no concatenation of the low-rank factors."""
    operations = training_step(adapted_graph(tiny_model, 4), SliceUse(("t2",)), inputs(), loss_of)
    assert not any(f == "aten.cat.default" and (4, 32) in shapes for f, shapes in operations.seen)
