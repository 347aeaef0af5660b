"""The bundled model's training steps: the same bits again, and nearly the same with other numbers of threads."""

import pytest
import torch

from contextlora.assembly.build import build_data, build_module
from contextlora.config import load_config

SETTINGS = ("taskset.context=gold", "method.dropout=0.1", "training.accelerator=cpu", "model.dtype=float32")


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    config = load_config([*SETTINGS, f"taskset.data_dir={tmp_path_factory.mktemp('data')}"])
    return build_module(config, build_data(config))


@pytest.mark.parametrize("task", ["hazard", "route"])
def test_a_step_again_gives_the_same_bits_and_with_other_threads_nearly_the_same(task, module):
    """Loss within 1e-5 and gradients, layer by layer, within 1e-3 of their norm: float32 sums in another order.

    Where a layer's terms cancel, what is left is as wrong as they are: 1e-8 of the whole norm, a sixth of what float32
    tells apart, is allowed on top.
    """
    data, adapted, use = module.data, module.adapted, module.uses[task]
    items = data.taskset.items(task, "train")[:8]
    batch = data.encode_items(task, items, [data.right_context(task, item) for item in items])
    adapted.begin_stage({task: use})
    adapted.train()
    weights = [weight for group in adapted.parameter_groups().values() for weight in group]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:  # B and the gates too, so that A gets a gradient
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator))

    def gradients(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            module.masks.rows, module.masks.batch_size = batch.rows, batch.batch_size
            loss = module.step_loss(batch)
            return loss.detach(), *torch.autograd.grad(loss, weights)
        finally:
            torch.set_num_threads(before)

    def norm(gradients):
        return sum(gradient.square().sum() for gradient in gradients).sqrt()

    first = gradients(1)
    assert all(map(torch.equal, first, gradients(1)))
    assert all(gradient.any() for gradient in first)
    for threads in (2, 4):
        found = gradients(threads)
        torch.testing.assert_close(found[0], first[0], rtol=1e-5, atol=0)
        pairs, rounding = list(zip(found[1:], first[1:], strict=True)), 1e-8 * norm(first[1:])
        assert norm(ours - theirs for ours, theirs in pairs) <= 1e-5 * norm(first[1:])
        assert all((ours - theirs).norm() <= 1e-3 * theirs.norm() + rounding for ours, theirs in pairs)
    adapted.end_stage()


def test_the_same_command_again_gives_the_same_bits(make_config, train, tmp_path):
    """In one process, whatever was drawn before: losses, validations and weights."""
    found = []
    for number in range(2):
        torch.manual_seed(number)
        module = train(
            make_config("training.steps_per_task=3", "training.validate_every_steps=3"), tmp_path / f"{number}"
        )
        found.append((module.progress.history, module.adapted.state.read()))
    (history, weights), (history_again, weights_again) = found
    assert history == history_again
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights_again.items())
