"""Gradients by a slice, against autograd through the whole model with the storage itself as the parameter."""

import pytest
import torch
import torch.nn.functional as F

from contextlora.assembly.build import build_data, build_module
from contextlora.backbones.scoring import option_scores
from contextlora.graph import SliceUse
from contextlora.training.gradients import NUM_BATCHES, slice_gradients


@pytest.fixture
def module(make_config):
    """Rank 3, and no value left at zero: an untrained B would make every gradient by A vanish."""
    config = make_config("method.rank=3", "method.frozen_policy=largest", "taskset.context=gold")
    module = build_module(config, build_data(config))
    generator = torch.Generator().manual_seed(1)
    state = module.adapted.state.read()
    module.adapted.state.write(
        {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    )
    return module.train()


def dense_gradients(module, task, name):
    """By A and B of a slice in every layer, from forwards whose delta is made of dense products."""
    adapted, use, data = module.adapted.eval(), module.uses[task], module.data
    handles, wanted = [], []
    for layer in adapted.layers().values():
        slices, update = layer.lora_slices, 0
        for one in use.active:
            A, B = (value.clone() for value in slices.values(one))
            if one == name:
                wanted += [A.requires_grad_(), B.requires_grad_()]
            gate = 1.0 if one in use.own else slices.gates[slices.edge_index[one, task]]
            update = update + gate * slices.scale * (B @ A)
        handles.append(layer.register_forward_hook(lambda _, x, h, update=update: h + F.linear(x[0], update)))
    items = data.taskset.items(task, "train")[: NUM_BATCHES * data.batch_size]
    batch = data.encode_items(task, items, [data.right_context(task, item) for item in items])
    with adapted.active(None):
        F.cross_entropy(option_scores(adapted.model, batch), batch.answer).backward(inputs=wanted)
    for handle in handles:
        handle.remove()
    return torch.cat([one.grad.flatten() for one in wanted]), wanted


@pytest.mark.parametrize(("task", "name"), [("c", "c"), ("c", "a"), ("a", "a"), ("d", "c")])
def test_equals_autograd_through_the_dense_model(module, task, name):
    found = slice_gradients(module, task)[name]
    expected, values = dense_gradients(module, task, name)
    torch.testing.assert_close(found.flat, expected, rtol=1e-3, atol=1e-5)
    # importance: rows of A and columns of B are ranks; both orders are the slice's
    parts = [(one.grad * one).abs() for one in values]
    sums = [A.sum(dim=1) + B.sum(dim=0) for A, B in zip(parts[::2], parts[1::2], strict=True)]
    torch.testing.assert_close(found.importance, torch.stack(sums).detach(), rtol=1e-3, atol=1e-5)


def test_a_gate_changes_the_length_of_a_gradient_and_not_its_direction(module):
    """Two gates of one edge: the layers below see another forward, so only the last adapted layer is compared."""
    *_, last = module.adapted.layers().values()
    edge, size = last.lora_slices.edge_index["a", "c"], sum(value.numel() for value in last.lora_slices.values("a"))
    found = []
    for gate in (1e-4, 2e-4):
        last.lora_slices.gates[edge] = gate
        found.append(slice_gradients(module, "c")["a"].flat[-size:])
    assert found[0].norm() < 0.6 * found[1].norm()
    assert F.cosine_similarity(*found, dim=0) > 0.999


@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_model_as_it_was(module, training):
    module.train(training)
    before, version = module.adapted.state.read(), module.adapted.state.version(module.uses["c"], "c")
    random = torch.get_rng_state()
    slice_gradients(module, "c")
    after = module.adapted.state.read()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert module.adapted.state.version(module.uses["c"], "c") == version
    assert torch.equal(torch.get_rng_state(), random)
    assert module.adapted.training == training
    assert not module.adapted.parameter_groups()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in module.adapted.parameters())
    module.adapted.begin_stage({"c": SliceUse(("c",))})  # no stage was left open


def test_leaves_the_model_as_it_was_after_an_error(module, monkeypatch):
    monkeypatch.setattr(module.data, "encode_items", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        slice_gradients(module, "c")
    assert module.adapted.training
    assert not module.adapted.parameter_groups()
