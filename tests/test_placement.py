"""Training on several processes of this machine through the workflow, and what is refused before it starts."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contextlora.assembly.placement import num_processes, plan_processes
from contextlora.commands.train import train
from contextlora.config import RunConfig, to_yaml
from contextlora.errors import ConfigError
from contextlora.evaluation.compare import flatten
from contextlora.runs import RunFolder
from contextlora.tasks.taskset import TaskSet
from contextlora.training.checkpoint import AtomicCheckpointIO

GEAR = ("training.strategy=contextgear", "training.devices=2")


def command_line(config: RunConfig) -> list[str]:
    """All settings as arguments."""
    return [f"{key}={value}" for key, value in flatten(asdict(config)).items() if value not in (None, {}, "")]


def test_two_processes_leave_the_run_of_one(make_config):
    alone = train(make_config("training.steps_per_task=8"))
    config = make_config("training.steps_per_task=8", *GEAR)
    # In a process of its own: this one will be forked by other tests, which it cannot after talking to peers.
    command = [sys.executable, "-m", "contextlora", "train", *command_line(config)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    (folder,) = set(alone.path.parent.iterdir()) - {alone.path}  # one, so none of the other process
    run = RunFolder.open(folder)
    assert run.state == "finished"
    assert shown.stderr == ""
    assert shown.stdout.count("accuracy in %") == 2  # the tables of process 0 only
    assert "stage 2: contextgear, device-0 train, device-1 run the chains" in shown.stdout
    stages = json.loads((run.path / "plan.json").read_text())["stages"]
    assert [stage["candidates"][0]["strategy"] for stage in stages] == ["one device", "contextgear", "contextgear"]
    # One device trains in every stage of this plan, so no reduction differs.
    for file in sorted((alone.path / "checkpoints").glob("stage-*.safetensors")):
        found, expected = load_file(run.path / "checkpoints" / file.name), load_file(file)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert run.results["tasks"] == alone.results["tasks"]
    assert {path.name for path in (run.path / "adapters").iterdir()} == {"a", "b", "c", "d"}


def test_ddp_leaves_the_tables_of_one_process_also_where_that_was_interrupted(make_config):
    """Two processes from the start, and two that go on in the middle of what one began."""
    config = make_config("training.steps_per_task=8")
    alone = train(config)
    begun = RunFolder.create(config.runs_dir, "tiny", "contextlora", 0, to_yaml(config))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="stop"):
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", stopping_after(6))
        patch.setattr("contextlora.commands.train._new_folder", lambda _: begun)
        train(config)
    command = [sys.executable, "-m", "contextlora"]
    arguments = command_line(make_config("training.steps_per_task=8", "training.strategy=ddp", "training.devices=2"))
    subprocess.run([*command, "resume", "--run", str(begun.path), "--devices=2"], capture_output=True, check=True)
    shown = subprocess.run([*command, "train", *arguments], capture_output=True, text=True, check=True)
    assert shown.stdout.count("accuracy in %") == 2  # the tables of process 0 only
    assert shown.stdout.count("ddp: 2 processes share every batch") == 1
    others = set(alone.path.parent.iterdir()) - {alone.path}
    assert len(others) == 2 and begun.path in others
    for run in map(RunFolder.open, others):
        assert run.state == "finished"
        for task, row in alone.results["tasks"].items():
            assert run.results["tasks"][task] == pytest.approx(row, abs=1e-4)
        for file in sorted((alone.path / "checkpoints").glob("stage-*.safetensors")):
            found, expected = load_file(run.path / "checkpoints" / file.name), load_file(file)
            for name, tensor in expected.items():
                torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def stopping_after(number: int):
    """`save_checkpoint` that fails after so many."""
    save, saved = AtomicCheckpointIO.save_checkpoint, []

    def stop(self, *arguments, **options):
        save(self, *arguments, **options)
        saved.append(arguments)
        if len(saved) == number:
            raise OSError("stop")

    return stop


def test_layer_pipelines_can_be_forced(make_config, tmp_path):
    """On devices so slow that the overhead of a call counts for nothing, each stage is a pipeline of both."""
    catalogue = tmp_path / "slow.yaml"
    device = "{flops_per_s: 1.0e3, memory_bytes: 1.0e9}"
    link = "{bandwidth_bits_per_s: 1.0e9, latency_s: 0.0}"
    catalogue.write_text(f"devices:\n  a: {device}\n  b: {device}\nlink: {link}\n")
    settings = ("method.delta=1", "training.steps_per_task=8", "taskset.context=gold")
    alone = train(make_config(*settings))
    config = make_config(*settings, *GEAR, f"gear.devices={catalogue}", "gear.layouts=[1f1b]")
    command = [sys.executable, "-m", "contextlora", "train", *command_line(config)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.count("(1f1b, cut before layer 1) train") == 3
    (folder,) = set(alone.path.parent.iterdir()) - {alone.path}
    for file in sorted((alone.path / "checkpoints").glob("stage-*.safetensors")):
        found, expected = load_file(folder / "checkpoints" / file.name), load_file(file)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_catalogue_has_one_device_for_each_process(make_config, taskset_folder: Path):
    config, taskset = make_config("gear.devices=laptops2"), TaskSet.load(taskset_folder)
    plan, roles = plan_processes(config, taskset, 2)
    assert plan.fleet == "laptops2"
    assert len(roles) == 3
    with pytest.raises(ConfigError, match=r"gear.devices must list one device for each process: laptops2 lists 2"):
        plan_processes(config, taskset, 3)


def test_more_processes_than_a_machine_can_run_are_refused(make_config, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert num_processes(make_config("training.devices=8", "training.accelerator=cpu")) == 8
    with pytest.raises(ConfigError, match=r"devices must be at most 8, four times the processors.*, got 9; lower it"):
        num_processes(make_config("training.devices=9", "training.accelerator=cpu"))
