"""The layer against the equation written out densely, in float64, values and gradients."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from contextlora.adapters.layer import RankSliceLinear
from contextlora.adapters.slices import ActiveUse, RankSlices
from contextlora.graph import RankPartition, SliceUse

D_IN, D_OUT, SCALE = 5, 7, 2.0
USE = SliceUse(("c",), {"a": 0.5, "b": 1.0})
RANKS = {"a": 4, "b": 2, "x": 3, "c": 3}
COLUMNS = {"a": range(4), "b": range(4, 6), "x": range(6, 9), "c": range(9, 12)}  # by hand, from RANKS
EDGES = [("a", "c"), ("b", "c")]


def make_layer(base=None, edges=(), dropout=0.0):
    torch.manual_seed(0)
    base = (base or nn.Linear(D_IN, D_OUT).double()).requires_grad_(False)
    slices = RankSlices(D_IN, D_OUT, RankPartition(RANKS), edges, SCALE, ActiveUse(), torch.device("cpu"))
    for buffer in (slices.A, slices.B, slices.gates):
        buffer.normal_()
    return RankSliceLinear(base, slices, dropout)


def activate(layer, use, task=None):
    layer.lora_slices.active.use, layer.lora_slices.active.task = use, task


def dense(layer, x, columns, gates=None):
    """W0 x + bias + s sum_i g_i B[:, i] (A[i, :] x), rank by rank."""
    base, slices = layer.base_layer, layer.lora_slices
    weight = base.weight.t() if isinstance(base, Conv1D) else base.weight
    for i in columns:
        gate = 1.0 if gates is None else gates[i]
        weight = weight + SCALE * gate * torch.outer(slices.B[:, i].double(), slices.A[i].double())
    return x @ weight.t() + base.bias


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("names", [("a",), ("x", "b"), ("c", "a", "b", "x")])
def test_equals_dense_maths(kind, names):
    layer = make_layer(Conv1D(D_OUT, D_IN).double() if kind == "conv1d" else None)
    x = torch.randn(2, 3, D_IN, dtype=torch.float64)
    activate(layer, SliceUse(names))
    columns = [i for name in names for i in COLUMNS[name]]
    torch.testing.assert_close(layer(x), dense(layer, x, columns), rtol=1e-12, atol=1e-12)


def test_without_a_use_it_is_the_base():
    layer = make_layer()
    x = torch.randn(4, D_IN, dtype=torch.float64)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_gates_multiply_their_prerequisite_only():
    layer = make_layer(edges=EDGES)
    x = torch.randn(4, D_IN, dtype=torch.float64)
    gate_a, gate_b = layer.lora_slices.gates.double()
    gates = dict.fromkeys(COLUMNS["a"], gate_a) | dict.fromkeys(COLUMNS["b"], gate_b) | dict.fromkeys(COLUMNS["c"], 1)
    activate(layer, USE, "c")
    torch.testing.assert_close(layer(x), dense(layer, x, gates, gates), rtol=1e-6, atol=1e-6)
    activate(layer, SliceUse(("c", "a", "b")), "c")  # the same ranks, none of them as a prerequisite
    torch.testing.assert_close(layer(x), dense(layer, x, gates), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("edges", [(), EDGES])
def test_training_forward_and_gradients_equal_dense_maths(edges):
    """In the stage of c, a is half frozen: gradients of leaves, gates and x against autograd through the dense sum."""
    layer = make_layer(edges=edges)
    slices = layer.lora_slices
    slices.begin_stage({"c": USE}, {"a": [2, 0, 1, 3], "b": [0, 1]})
    activate(layer, USE, "c")
    x = torch.randn(6, D_IN, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, D_OUT, dtype=torch.float64)
    (layer(x) * weights).sum().backward()

    A, B, g = (t.double().requires_grad_() for t in (slices.A, slices.B, slices.gates))
    gates = dict.fromkeys(COLUMNS["a"], g[0]) | dict.fromkeys(COLUMNS["b"], g[1]) if edges else {}
    x_dense = x.detach().clone().requires_grad_()
    weight = layer.base_layer.weight + SCALE * sum(
        gates.get(i, 1.0) * torch.outer(B[:, i], A[i]) for name in ("a", "b", "c") for i in COLUMNS[name]
    )
    ((x_dense @ weight.t() + layer.base_layer.bias) * weights).sum().backward()

    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(x.grad, x_dense.grad, **close)  # through frozen ranks too
    trained = {"a": [1, 3], "c": list(COLUMNS["c"])}  # of a, ranks 2 and 0 stay frozen
    assert {leaf.slice_name: leaf.ranks.tolist() for leaf in slices.leaves} == trained
    for leaf in slices.leaves:
        torch.testing.assert_close(leaf.A.grad.double(), A.grad[leaf.ranks], **close)
        torch.testing.assert_close(leaf.B.grad.double(), B.grad[:, leaf.ranks], **close)
    if edges:
        torch.testing.assert_close(slices.gate_parameters()[0].grad.double(), g.grad, **close)


def test_dropout_acts_on_the_low_rank_input_in_training_mode_only():
    layer = make_layer(dropout=0.5)
    x = torch.randn(4, D_IN, dtype=torch.float64)
    activate(layer, SliceUse(("a",)))
    torch.testing.assert_close(layer.eval()(x), dense(layer, x, COLUMNS["a"]))
    torch.manual_seed(3)
    h = layer.train()(x)
    torch.manual_seed(3)
    dropped = nn.Dropout(0.5)(x)
    low_rank = dense(layer, dropped, COLUMNS["a"]) - layer.base_layer(dropped)
    torch.testing.assert_close(h, layer.base_layer(x) + low_rank)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_base_keeps_its_dtype_and_float32_leaves(dtype):
    layer = make_layer(nn.Linear(D_IN, D_OUT).to(dtype))
    layer.lora_slices.begin_stage({"c": USE}, {"a": [0, 1, 2, 3], "b": [0, 1]})
    activate(layer, USE, "c")
    x = torch.randn(8, D_IN).to(dtype)
    h = layer(x)
    h.sum().backward()
    assert h.dtype == dtype
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in layer.lora_slices.leaf_parameters.values())
    expected = dense(layer.double(), x.double(), [i for name in "cab" for i in COLUMNS[name]])
    assert (h.double() - expected).norm() / expected.norm() < 0.01


def test_under_autocast_the_products_follow_the_base():
    layer = make_layer(nn.Linear(D_IN, D_OUT))
    activate(layer, SliceUse(("a",)))
    x = torch.randn(4, D_IN)
    with torch.autocast("cpu", torch.bfloat16):
        h = layer(x)
    assert h.dtype == torch.bfloat16
    assert (h.float() - layer(x)).norm() / layer(x).norm() < 0.02
