"""The memory estimate against what torch's own profiler counts, and the choice of micro-batches."""

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from contextlora.assembly.build import build_data, build_module
from contextlora.commands.train import train as run_train
from contextlora.training.memory import Growth, MemoryEstimate, estimate_memory


@pytest.fixture
def module(make_config):
    config = make_config("taskset.context=gold", "training.batch_size=8")
    return build_module(config, build_data(config))


def _profiled_peak(step) -> int:
    """Most bytes that a step held at once, by the profiler's record of every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    total = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def test_a_step_is_predicted_as_the_profiler_measures_it(module):
    data, task = module.data, module.plan.stages[-1][0]
    use = module.plan.uses[task]
    found = estimate_memory(module)
    items = data.taskset.items(task, "train")[:8]
    batch = data.encode_items(task, items, [data.right_context(task, item) for item in items])
    module.adapted.train()
    module.adapted.begin_stage({task: use})
    module.masks.rows, module.masks.batch_size = batch.rows, batch.batch_size
    module.uses[task] = use

    def step():
        module.step_loss(batch).backward()

    step()  # gradients are there from the step before
    measured = _profiled_peak(step)
    module.adapted.end_stage()
    assert found.training.of(8) == pytest.approx(measured, rel=0.1)
    assert found.evaluation.of(8) < found.training.of(8)


def test_the_estimate_leaves_the_module_as_it_was(module):
    before = module.adapted.state.read()
    estimate_memory(module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.adapted.state.read().items())
    assert not [p for p in module.adapted.parameters() if p.requires_grad]


def test_batches_are_halved_until_they_fit():
    memory = MemoryEstimate(100, 10, Growth(50, 20), Growth(0, 1))
    assert memory.total_bytes(8, 4) == 100 + 10 + 50 + 8 * 20
    assert memory.total_bytes(1, 500) == 100 + 10 + 500
    assert memory.fitting_items(8, 220) == 8
    assert memory.fitting_items(8, 219) == 4
    assert memory.fitting_items(9, 160) == 5
    assert memory.fitting_items(8, 0) == 1
    held = replace(memory, held=2.0)  # the allocator's share goes with the step, not with what is loaded
    assert held.total_bytes(8, 4) == 100 + 10 + 2 * (50 + 8 * 20)
    assert held.fitting_items(8, 2 * 210 + 10) == 8
    assert held.fitting_items(8, 2 * 210 + 9) == 4


def test_auto_computes_as_many_items_at_once_as_memory_holds(make_config, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("contextlora.commands.train.available_bytes", lambda device: 1)
    config = make_config("training.micro_batch_size=auto", "training.batch_size=4", f"runs_dir={tmp_path}")
    run_train(config, dry_run=True)
    said = capsys.readouterr().out
    assert "1 of a step's 4 items are computed at once" in said
    assert "a training step of 1 items" in said
