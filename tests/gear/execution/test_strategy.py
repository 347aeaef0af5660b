"""`Trainer(strategy="contextgear")` with a user's own module; the reference is a loop in plain torch."""

from dataclasses import replace

import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import contextlora.gear.execution.strategy  # noqa: F401 - registers the strategy
from contextlora.errors import ConfigError
from contextlora.gear.execution.strategy import GearStage
from contextlora.gear.planning.roles import Pipeline, StageRoles, TaskRoles

pytestmark = pytest.mark.processes
INPUTS = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
BATCHES = [[(4 * step + row) * 5 % 12 for row in range(4)] for step in range(5)]
# Process 0 is forward-only at first; process 1 computes three rows at a time, and one when all have answers.
JOINS = TaskRoles((0, 0, 4), (0, 2, 4), (0, 0, 1, 0), (3, 3), (2, 1))


def chain(weights, numbers):
    return (INPUTS[list(numbers)] @ weights[:, :5].T).argmax(-1, keepdim=True)


def loss_of(model, numbers, answers):
    inputs = torch.cat([INPUTS[list(numbers)], answers.float()], 1)
    return nn.functional.cross_entropy(model(inputs), torch.tensor([number % 3 for number in numbers]))


class Own(lightning.LightningModule):
    """The least that the strategy wants."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(6, 3)
        self.snapshot, self.items, self.most = self.model.weight.detach().clone(), [], 0

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)

    def train_dataloader(self):
        return DataLoader(BATCHES, batch_size=None)

    def gear_stage(self, num_processes):
        return GearStage(StageRoles({"v": JOINS}, True, ""), num_items={"v": 12}, num_answers={"v": 1})

    def gear_batch(self, batch):
        return "v", batch

    def answer_chains(self, task, numbers):
        return chain(self.snapshot, numbers)

    def make_shard(self, batch, shard):
        rows = slice(shard.rows.start, shard.rows.stop)
        return batch[rows], shard.answers[rows]

    def training_step(self, batch, batch_idx):
        self.items += batch[0]
        self.most = max(self.most, len(batch[0]))
        return loss_of(self.model, *batch)


class InPipeline(Own):
    """Has a plan that it cannot run."""

    def gear_stage(self, num_processes):
        stage = super().gear_stage(num_processes)
        return replace(stage, roles=replace(stage.roles, train=Pipeline((0, 1), "1f1b", (1,))))


class Plain(lightning.LightningModule):
    """Knows nothing of ContextGear."""

    def configure_optimizers(self):
        return None

    def training_step(self, batch, batch_idx):
        return None


def fit(make, processes, **settings):
    module = make()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", strategy="contextgear", devices=processes, **quiet, **settings)
    try:
        trainer.fit(module, train_dataloaders=DataLoader([1]) if make is Plain else None)
    except ConfigError as error:
        return str(error)
    return [p.detach().numpy() for p in module.parameters()], trainer.global_step, module.items, module.most


@pytest.mark.parametrize("max_steps", [5, 2])
def test_a_module_of_ones_own(max_steps, run_processes):
    module = Own()
    optimizer = module.configure_optimizers()
    for numbers in BATCHES[:max_steps]:
        optimizer.zero_grad()
        loss_of(module.model, numbers, chain(module.snapshot, numbers)).backward()
        optimizer.step()
    found = run_processes(2, lambda: fit(Own, 2, max_steps=max_steps))
    items = [row[2] for row in found]
    for weights, global_step, *_ in found:
        assert global_step == max_steps
        for ours, theirs in zip(weights, module.parameters(), strict=True):
            torch.testing.assert_close(torch.tensor(ours), theirs.detach(), rtol=1e-4, atol=1e-6)
    assert [row[3] for row in found] == ([2, 3] if max_steps > 3 else [0, 3])
    later = BATCHES[3:max_steps]  # after three steps every item has its answer
    assert items[0] == [number for numbers in later for number in numbers[:2]]
    assert items[1] == [n for numbers in BATCHES[:3][:max_steps] for n in numbers] + [
        number for numbers in later for number in numbers[2:]
    ]


def test_what_cannot_run_is_said_before_anything_runs(run_processes):
    (text,) = run_processes(1, fit, Plain, 1)
    assert "Plain lacks gear_stage, gear_batch, answer_chains, make_shard" in text
    for text in run_processes(2, lambda: fit(InPipeline, 2)):
        assert "layer pipelines need a module with the methods hidden_item, run_layers, layer_parameters" in text
        assert "set gear.layouts=[data]" in text
    (text,) = run_processes(1, lambda: fit(Own, 1, accumulate_grad_batches=2))
    assert "accumulate_grad_batches=2" in text
