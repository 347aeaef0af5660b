"""Leaves, frozen copies and kept factors of one layer."""

import pickle

import pytest
import torch

from contextlora.adapters.slices import ActiveUse, RankSlices
from contextlora.graph import RankPartition, SliceUse

C = SliceUse(("c",), {"a": 0.5})
D = SliceUse(("d",), {"a": 0.75})
ORDER = {"a": [3, 1, 0, 2]}


@pytest.fixture
def slices():
    torch.manual_seed(0)
    ranks = RankPartition({"x": 2, "a": 4, "c": 2, "d": 1})
    slices = RankSlices(5, 6, ranks, [], 2.0, ActiveUse(), torch.device("cpu"))
    slices.A.normal_()
    slices.B.normal_()
    return slices


def factors(slices, use, task):
    slices.active.use, slices.active.task = use, task
    A, B, _ = slices.factors(torch.float32)
    return A, B


def test_leaves_are_cut_where_the_tasks_differ(slices):
    """a has storage ranks 2..5, in order of freezing 5, 3, 2, 4; c freezes two of them and d three."""
    slices.begin_stage({"c": C, "d": D}, ORDER)
    leaves = {(leaf.slice_name, leaf.is_own): [] for leaf in slices.leaves}
    for leaf in slices.leaves:
        leaves[leaf.slice_name, leaf.is_own].append(leaf.ranks.tolist())
        assert leaf.A.shape == (len(leaf.ranks), 5) and leaf.B.shape == (6, len(leaf.ranks))
        assert torch.equal(leaf.A, slices.A[leaf.ranks]) and torch.equal(leaf.B, slices.B[:, leaf.ranks])
    assert leaves == {("c", True): [[6, 7]], ("a", False): [[2], [4]], ("d", True): [[8]]}
    assert {p.requires_grad for p in slices.parameters()} == {True}


def test_a_rank_frozen_for_one_task_gets_no_gradient_from_its_batches(slices):
    slices.begin_stage({"c": C, "d": D}, ORDER)
    for use, task, expected in ((C, "c", {6, 7, 2, 4}), (D, "d", {8, 4})):
        for parameter in slices.parameters():
            parameter.grad = None
        A, B = factors(slices, use, task)
        (A.sum() + B.sum()).backward()
        moved = {rank for leaf in slices.leaves if leaf.A.grad is not None for rank in leaf.ranks.tolist()}
        assert moved == expected
        # in float64: the product is a sum over ranks, in another order
        composed_A, composed_B = slices.compose(use, task)
        torch.testing.assert_close((B.double() @ A.double()), 2.0 * composed_B.double() @ composed_A.double())


def test_a_slice_may_be_owned_by_one_task_and_needed_by_another_of_the_stage(slices):
    own = SliceUse(("a",))
    slices.begin_stage({"a": own, "c": C}, ORDER)
    assert all(leaf.is_own for leaf in slices.leaves)
    for use, task, expected in ((C, "c", {6, 7, 2, 4}), (own, "a", {2, 3, 4, 5})):
        for parameter in slices.parameters():
            parameter.grad = None
        factors(slices, use, task)[0].sum().backward()
        assert {i for leaf in slices.leaves if leaf.A.grad is not None for i in leaf.ranks.tolist()} == expected


def test_masked_slices_are_neither_copied_nor_composed(slices):
    slices.begin_stage({"c": C}, ORDER)
    assert sum(leaf.A.shape[0] for leaf in slices.leaves) == 4  # two own, two open
    A, _ = factors(slices, C, "c")
    assert A.shape == (6, 5)  # two of c, four of a: not the nine of the layer
    with torch.no_grad():
        assert factors(slices, C, "c")[0].shape == (6, 5)


def step(slices, **settings):
    """One optimizer step on the factors of c."""
    optimizer = torch.optim.AdamW(slices.parameters(), lr=0.1, **settings)
    A, B = factors(slices, C, "c")
    (A.sum() + B.sum()).backward()
    optimizer.step()


# A fused optimizer does not raise the version of the tensors that it writes to.
@pytest.mark.parametrize("settings", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("use, task", [(C, "c"), (SliceUse(("a",)), "a"), (SliceUse(("c",)), "c")])
def test_forwards_without_gradients_see_every_optimizer_step(settings, use, task, slices):
    slices.begin_stage({"c": C}, ORDER)
    with torch.inference_mode():  # as Lightning validates
        before = factors(slices, use, task)
    step(slices, **settings)
    with torch.no_grad():
        A, B = factors(slices, use, task)
    expected_A, expected_B = slices.compose(use, task)
    assert not torch.equal(A, before[0])
    torch.testing.assert_close(B @ A, 2.0 * expected_B @ expected_A)


def test_other_uses_see_the_gates_of_their_own_task_and_every_step_of_them():
    """As when a root's items are evaluated together with the gated slices of a child in training."""
    edges = [("a", "c"), ("x", "c"), ("a", "d")]
    slices = RankSlices(5, 6, RankPartition({"x": 2, "a": 4, "c": 2}), edges, 2.0, ActiveUse(), torch.device("cpu"))
    slices.B.fill_(1.0)
    slices.gates.copy_(torch.tensor([0.5, 0.25, 3.0]))
    slices.begin_stage({"c": SliceUse(("c",), {"a": 1.0, "x": 1.0})}, {})
    other = SliceUse(("x",), {"a": 1.0})
    for task, gate in (("c", 0.5), ("d", 3.0), ("c", 0.5)):
        assert factors(slices, other, task)[1][0].tolist() == [2.0] * 2 + [2.0 * gate] * 4
    with torch.no_grad():
        slices.gate_parameters()[0].copy_(torch.tensor([0.75, 0.0]))
    assert factors(slices, other, "c")[1][0].tolist() == [2.0] * 2 + [1.5] * 4


def test_constants_are_kept_from_forward_to_forward(slices):
    use = SliceUse(("x",))
    slices.begin_stage({"c": C}, ORDER)
    with torch.inference_mode():
        kept = factors(slices, use, "x")
    step(slices)
    assert factors(slices, use, "x")[0].data_ptr() == kept[0].data_ptr()
    # what was kept under inference mode also serves a forward with gradients
    tokens = torch.ones(1, 5, requires_grad=True)
    (tokens @ factors(slices, use, "x")[0].t()).sum().backward()
    assert torch.equal(tokens.grad[0], slices.values("x")[0].sum(0))
    slices.values("x")[0].add_(1.0)
    slices.read_back()
    assert torch.equal(factors(slices, use, "x")[0], slices.values("x")[0])


def test_a_stage_that_begins_under_inference_mode_trains(slices):
    with torch.inference_mode():
        slices.begin_stage({"c": C}, ORDER)
    A, B = factors(slices, C, "c")
    (A.sum() + B.sum()).backward()
    torch.optim.SGD(slices.parameters(), lr=0.1).step()


def test_moves_keep_float32_values_and_the_same_leaves(slices):
    slices.begin_stage({"c": C}, ORDER)
    leaves = list(slices.parameters())
    with torch.no_grad():
        leaves[0].add_(1e-4)  # would vanish in bfloat16
    before = [leaf.detach().clone() for leaf in leaves]
    slices.to(torch.bfloat16)
    assert all(new is old and new.dtype == torch.float32 for new, old in zip(slices.parameters(), leaves, strict=True))
    assert all(torch.equal(new, old) for new, old in zip(leaves, before, strict=True))


def test_end_of_stage_writes_only_what_trained(slices):
    A, B = slices.A.clone(), slices.B.clone()
    slices.begin_stage({"c": C}, ORDER)
    with torch.no_grad():
        for parameter in slices.parameters():
            parameter.add_(1.0)
    slices.end_stage()
    trained = [2, 4, 6, 7]
    kept = [i for i in range(9) if i not in trained]
    assert torch.equal(slices.A[kept], A[kept]) and torch.equal(slices.B[:, kept], B[:, kept])
    assert torch.equal(slices.A[trained], A[trained] + 1) and torch.equal(slices.B[:, trained], B[:, trained] + 1)
    assert not list(slices.parameters())


def test_can_be_pickled_in_mid_stage(slices):
    slices.begin_stage({"c": C}, ORDER)
    again = pickle.loads(pickle.dumps(slices))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), slices.parameters(), strict=True))
