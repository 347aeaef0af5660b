"""The bundled model's training steps: the same bits with one thread or several, on one device or two with a half each.

This rests on the processor's kernels as much as on us: a row's activations must not depend on the rows beside it.
"""

import pytest
import torch
import torch.nn.functional as F

from contextlora.assembly import run_parts
from contextlora.backbones.scoring import option_scores
from contextlora.config import load_config

SETTINGS = ("taskset.context=gold", "method.dropout=0.1", "training.accelerator=cpu")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return run_parts(load_config([*SETTINGS, f"taskset.data_dir={folder}"]))


@pytest.fixture(params=["hazard", "route"])
def step(request, parts):
    """(rows, threads) -> gradients of these rows' share of the loss of a batch of 32, with the weights of a start."""
    task, adapted = request.param, parts.adapted
    use, items = parts.plan.uses[task], parts.taskset.items(task, "train")[:32]
    contexts = [item.prerequisites for item in items]
    adapted.begin_stage({task: use})
    adapted.train()
    weights = [weight for group in adapted.parameter_groups().values() for weight in group]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in weights:  # B and the gates too, so that A gets a gradient
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator))

    def run(rows: range, threads: int) -> list[torch.Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)  # one dropout mask for the whole batch
            batch = parts.data.encode_items(task, items, contexts, rows)
            with adapted.active(use, task, batch.shard):
                scores = option_scores(adapted.model, batch)
                (F.cross_entropy(scores, batch.answer) * (len(rows) / len(items))).backward()
        finally:
            torch.set_num_threads(before)
        found = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
        return found

    yield run
    adapted.end_stage()


@pytest.mark.parametrize("threads", [2, 4])
def test_the_number_of_threads_does_not_matter(threads, step):
    assert all(map(torch.equal, step(range(32), 1), step(range(32), threads)))


def test_the_gradient_of_a_batch_is_the_sum_of_its_halves(step):
    whole, first, second = step(range(32), 1), step(range(16), 1), step(range(16, 32), 1)
    assert all(map(torch.equal, whole, map(torch.add, first, second)))
    assert all(gradient.any() for gradient in whole)
