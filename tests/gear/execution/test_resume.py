"""Checkpoints of several processes: the same bits with as many processes, the same within tolerance with others."""

import os
import shutil
import signal
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file

from contextlora.gear.planning.roles import Pipeline, StageRoles, TaskRoles
from contextlora.graph.plan import SliceUse
from contextlora.methods import METHODS
from contextlora.methods.contextlora import ContextLora, ContextLoraSettings
from contextlora.signals import Terminated, ending_in_order
from contextlora.training.callbacks import LAST
from contextlora.training.checkpoint import load_checkpoint
from contextlora.training.module import ContextLoraModule

pytestmark = pytest.mark.processes
ONE = TaskRoles((0, 4, 4), (0, 4, 4), (1, 1, 1, 1))  # process 0 trains, process 1 runs the chains
HALVES = TaskRoles((0, 2, 4), (0, 2, 4), (0, 0, 1, 1))
ROWS = TaskRoles((0, 0, 4), (0, 0, 4), (1, 1, 1, 1), (1, 1), (1, 1))
PIPELINE = Pipeline((0, 1), "1f1b", (1,))
LAYERS = StageRoles({"": ROWS}, True, "", PIPELINE, None, PIPELINE)
LENGTH = ("training.steps_per_task=8", "training.validate_every_steps=4")  # two intervals in each of four stages


def test_a_checkpoint_goes_on_with_as_many_processes_or_others(
    make_config, chain_folder, train_alone, train_together, assert_alike, tmp_path, keep_checkpoints
):
    """From a stage's start, from its middle before all answers were made, and from the end."""
    config = make_config(f"taskset={chain_folder}", *LENGTH)
    wholes = train_together(2, [(config, tmp_path / "two", ONE), (config, tmp_path / "layers", LAYERS)])
    alone = train_alone(config, tmp_path / "one")
    keep_checkpoints.undo()
    assert len(list(tmp_path.glob("two-*"))) == 8
    for name in ("two-3", "layers-4"):
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-alone")

    # In the middle of a pipeline's stage each process holds the optimizer's state of its own layers.
    cases = [("two-2", ONE, wholes[0]), ("two-3", ONE, wholes[0]), ("layers-4", LAYERS, wholes[1])]
    others = [("one-3", ONE), ("one-4", LAYERS), ("two-7", ONE)]
    found = train_together(2, [(config, tmp_path / name, roles) for name, roles, *_ in cases + others])
    for (name, _, whole), by_process in zip(cases, found, strict=False):
        for ours, theirs in zip(by_process, whole, strict=True):
            assert_alike(ours, theirs, exact=True)
        _assert_same_files(tmp_path / name, tmp_path / name.split("-")[0])
    for by_process in found[len(cases) : -1]:
        for ours in by_process:
            assert_alike(ours, alone)
    # After the last one there is nothing to do, and process 0 alone reads it.
    assert all((ours == theirs).all() for ours, theirs in _weights(found[-1][0], wholes[0][0]))
    for name in ("two-3-alone", "layers-4-alone"):
        assert_alike(train_alone(config, tmp_path / name), alone)


def test_an_interval_that_a_signal_broke_off_goes_on_with_several_processes(
    make_config, chain_folder, train_alone, train_together, assert_alike, tmp_path, monkeypatch
):
    config = make_config(f"taskset={chain_folder}", *LENGTH)
    alone = train_alone(config, tmp_path / "one")

    def end(self, batch, batch_idx):
        self._seed_step()
        if self.trainer.global_step == 13:  # the second of four steps
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, ending_in_order(), pytest.raises(Terminated):
        patch.setattr(ContextLoraModule, "on_train_batch_start", end)
        train_alone(config, tmp_path / "broken")
    assert load_checkpoint(tmp_path / "broken" / LAST)["global_step"] == 14
    shutil.copytree(tmp_path / "broken", tmp_path / "layers")
    for by_process in train_together(2, [(config, tmp_path / "broken", ONE), (config, tmp_path / "layers", LAYERS)]):
        for ours in by_process:
            assert_alike(ours, alone)


def _weights(found, expected):
    assert found.weights.keys() == expected.weights.keys()
    return [(found.weights[name], expected.weights[name]) for name in expected.weights]


def _assert_same_files(folder, expected):
    assert (folder / LAST).exists()
    assert (folder / "metrics.jsonl").read_text() == (expected / "metrics.jsonl").read_text()
    for file in expected.glob("stage-*.safetensors"):
        ours, theirs = load_file(folder / file.name), load_file(file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@dataclass
class RestlessSettings(ContextLoraSettings):
    name: str = "restless"


class Restless(ContextLora):
    """Keeps a task's own A small, and opens prerequisites in mid-stage by a share that each process has for itself.

    Of the first process it is half; that of another one would give its optimizer other parameters.
    """

    Settings, changes_uses = RestlessSettings, True

    def penalty(self, adapted, task):
        return 0.02 * torch.stack([leaf.A.norm() for leaf in adapted.leaves(task)]).sum()

    def next_uses(self, view):
        delta = (1.0, 0.0 if torch.distributed.is_initialized() and torch.distributed.get_rank() else 0.5)[
            view.interval
        ]
        return {
            task: SliceUse(view.uses[task].own, dict.fromkeys(view.uses[task].prerequisites, delta))
            for task in view.tasks
        }


@pytest.mark.parametrize("roles", [HALVES, None], ids=["contextgear", "ddp"])
def test_penalties_changing_uses_and_checkpoints_are_those_of_one_process(
    roles, make_config, train_alone, train_together, assert_alike, tmp_path, keep_checkpoints
):
    """Seen to fail for a penalty counted once in each process, or in none, and for uses of each process's own."""
    keep_checkpoints.setitem(METHODS, "restless", Restless)
    config = make_config(*LENGTH)
    config = replace(config, method=RestlessSettings(**vars(config.method) | {"name": "restless"}))
    (whole,) = train_together(2, [(config, tmp_path / "two", roles)])
    alone = train_alone(config, tmp_path / "one")
    for found in whole:
        assert_alike(found, alone)
    for number in (2, 3):  # the second stage's start, and its middle
        shutil.copytree(tmp_path / f"two-{number}", tmp_path / f"alone-{number}")
    names = ["two-2", "two-3", "one-2", "one-3"]
    for name, by_process in zip(names, train_together(2, [(config, tmp_path / n, roles) for n in names]), strict=True):
        for ours, theirs in zip(by_process, whole, strict=True):
            assert_alike(ours, theirs, exact=name.startswith("two"))
    for number in (2, 3):
        assert_alike(train_alone(config, tmp_path / f"alone-{number}"), alone)
