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
    """Gradients: largest difference under 1e-4 of the largest element, as float32 sums in another order give."""
    data, adapted, use = module.data, module.adapted, module.uses[task]
    items = data.taskset.items(task, "train")[:32]
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
            return torch.autograd.grad(module.step_loss(batch), weights)
        finally:
            torch.set_num_threads(before)

    first = gradients(1)
    assert all(map(torch.equal, first, gradients(1)))
    assert all(gradient.any() for gradient in first)
    for threads in (2, 4):
        for ours, theirs in zip(gradients(threads), first, strict=True):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    adapted.end_stage()
