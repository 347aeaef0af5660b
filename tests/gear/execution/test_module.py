"""Training on several ranks under Lightning: the weights of one process, whoever trains, answers and resumes."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from contextlora.assembly.build import build_data, build_module, trainer_settings
from contextlora.assembly.stage_files import StageFiles
from contextlora.gear.execution.peers import Peers
from contextlora.gear.planning.roles import Pipeline, StageRoles, TaskRoles
from contextlora.gear.processes import together
from contextlora.tasks.task import Task
from contextlora.tasks.taskset import TaskSet, write_taskset
from contextlora.training.callbacks import LAST
from contextlora.training.checkpoint import AtomicCheckpointIO
from contextlora.training.fit import fit

ONE = TaskRoles((0, 4, 4), (0, 4, 4), (1, 1, 1, 1))  # rank 0 trains, rank 1 runs the chains
LAST_TRAINS = TaskRoles((0, 0, 4), (0, 0, 4), (0, 0, 1, 0))  # rank 0, which saves, does not train
HALVES = TaskRoles((0, 2, 4), (0, 2, 4), (0, 0, 1, 1))
JOINS = TaskRoles((0, 4, 4), (0, 1, 4), (0, 1, 1, 1))
THREE = TaskRoles((0, 2, 4, 4), (0, 2, 3, 4), (2, 0, 2, 2))
# One row at a time on rank 0, two at a time on rank 1.
SMALL_PARTS = TaskRoles((0, 2, 4), (0, 2, 4), (0, 0, 1, 1), (1, 2), (1, 1))


def pipelines(train, forward=None, rows_later=None, size=1):
    """Roles of layer pipelines, micro-batches of one item; the chain of row 0 stays with those who train."""
    last, num_ranks = train.ranks[-1], len(train.ranks) + (len(forward.ranks) if forward else 0)
    edges = tuple(4 * (rank > last) for rank in range(num_ranks + 1))
    owners = (last, *[(forward or train).ranks[-1]] * 3)
    shares = TaskRoles(edges, rows_later or edges, owners, (size,) * num_ranks, (1,) * num_ranks)
    return StageRoles({"": shares}, True, "", train, forward, None if rows_later else train)


ONE_PIPELINE = pipelines(Pipeline((0, 1), "1f1b", (1,)))
BACKWARDS = pipelines(Pipeline((1, 0), "gpipe", (1,)), size=3)  # the first stage is rank 1; 3 and 1 rows at a time
TWO_PIPELINES = pipelines(Pipeline((0, 2), "1f1b", (1,)), Pipeline((1, 3), "gpipe", (1,)))
PIPELINE_THEN_ROWS = pipelines(Pipeline((1, 0), "1f1b", (1,)), Pipeline((3, 2), "1f1b", (1,)), (0, 1, 2, 3, 4))


@pytest.fixture(scope="session")
def chain_folder(taskset_folder, tmp_path_factory) -> Path:
    """The tiny task set with its tasks in a row, a -> b -> c -> d: stages of 0, 1, 2 and 3 prerequisite passes."""
    tiny, folder = TaskSet.load(taskset_folder), tmp_path_factory.mktemp("chain") / "chain"
    above = {"a": (), "b": ("a",), "c": ("b",), "d": ("c",)}
    for number in range(3):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (100 * number, 10, 90)).save(folder / "images" / f"{number}.png")
    items = {}
    for split in ("train", "validation", "test"):
        words = {(t, i.scene): i.answer_word for t in above for i in tiny.items(t, split)}
        for number, task in enumerate(above):
            known = [(i, {t: words[t, i.scene] for t in list(above)[:number]}) for i in tiny.items(task, split)]
            items[task, split] = [
                replace(item, prerequisites=right, image=f"images/{place % 3}.png", image_text="")
                for place, (item, right) in enumerate(known)
            ]
    write_taskset(folder, "chain", [Task(name, needs, num_options=3) for name, needs in above.items()], items)
    return folder


def train(config, folder, roles=None):
    """One rank's training, or that of one process: weights and validations."""
    peers = Peers(torch.device("cpu")) if roles else None
    parts = build_module(config, build_data(config))
    if isinstance(roles, TaskRoles):
        roles = StageRoles({"": roles}, True, "")
    stages = [roles and replace(roles, tasks=dict.fromkeys(stage, roles.tasks[""])) for stage in parts.plan.stages]
    module = training_module(config, parts, stages if roles else None)
    is_first = os.environ.get("RANK", "0") == "0"
    with together(peers, str(folder / LAST)):
        fit(
            module,
            parts.data,
            trainer_settings(config, peers),
            checkpoints=folder if is_first else Path(os.devnull),
            metrics_file=folder / "metrics.jsonl",
            save_stage=StageFiles(folder, module).save,
            log=lambda metrics, step: None,
            console=None,
            agree=(lambda state: peers.share("state", state)) if peers else str,
        )
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}, module.progress.history


def assert_alike(found, expected, exact):
    weights, history = found
    assert len(history) == len(expected[1])
    for ours, theirs in zip(history, expected[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    for name, tensor in expected[0].items():
        ours, theirs = torch.tensor(weights[name]), torch.tensor(tensor)
        assert torch.equal(ours, theirs) if exact else torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize(
    "delta, roles, exact",
    [
        (0, LAST_TRAINS, True),
        (0.5, ONE, True),
        (0.5, JOINS, False),
        (1, JOINS, False),
        (1, LAST_TRAINS, True),
        (0.5, HALVES, True),
        (0, HALVES, True),
    ],
)
def test_two_ranks_end_with_the_weights_of_one_process(
    delta, roles, exact, make_config, chain_folder, tmp_path, run_ranks
):
    """In every stage: dropout, weight decay and gates on, predicted answers, 24 items in batches of 4 for 9 steps."""
    # A task of the graph's start takes part in every chain: delta = 0 lets it change while it answers.
    config = make_config(f"taskset={chain_folder}", f"method.delta={delta}", "training.steps_per_task=9")
    expected = train(config, tmp_path / "one")
    for found in run_ranks(2, train, config, tmp_path / "two", roles):
        assert_alike(found, expected, exact)


@pytest.mark.parametrize(
    "kind, delta, roles, num_ranks",
    [
        ("llama", 0.5, SMALL_PARTS, 2),
        ("qwen2", 0.5, ONE_PIPELINE, 2),
        ("llava", 0, BACKWARDS, 2),
        ("qwen2", 0, TWO_PIPELINES, 4),
        ("llava", 0.5, PIPELINE_THEN_ROWS, 4),
    ],
)
def test_micro_batches_and_pipelines_end_with_the_weights_of_one_process(
    kind, delta, roles, num_ranks, make_config, chain_folder, other_model_folder, tmp_path, run_ranks
):
    settings = f"taskset={chain_folder}", f"method.delta={delta}", "training.steps_per_task=7"
    config = make_config(f"model={other_model_folder(kind)}", *settings)
    expected = train(config, tmp_path / "one")
    for found in run_ranks(num_ranks, train, config, tmp_path / "several", roles):
        assert_alike(found, expected, exact=False)


def test_three_ranks_share_a_batch(make_config, tmp_path, run_ranks):
    config = make_config()
    expected = train(config, tmp_path / "one")
    for found in run_ranks(3, train, config, tmp_path / "three", THREE):
        assert_alike(found, expected, exact=False)


@pytest.mark.parametrize("roles", [ONE, HALVES])
def test_a_stage_that_feeds_itself_answers_anew_after_every_interval(roles, make_config, tmp_path, run_ranks):
    """Exact only: an answer that rounding turns over would change all that follows."""
    config = make_config("method=joint")
    expected = train(config, tmp_path / "one")
    for found in run_ranks(2, train, config, tmp_path / "two", roles):
        assert_alike(found, expected, exact=True)


def keep_checkpoints(folder, monkeypatch):
    """From now on each checkpoint is kept too, with the files beside it: after-0, after-1 ..."""
    save = AtomicCheckpointIO.save_checkpoint

    def save_and_keep(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        kept = len(list(folder.glob("after-*")))
        shutil.copytree(Path(path).parent, folder / f"after-{kept}")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_keep)


def test_a_checkpoint_of_a_pipeline_goes_on_in_one_or_alone(
    make_config, chain_folder, tmp_path, run_ranks, monkeypatch
):
    """In mid-stage, where each rank holds the optimizer's state of its own layers."""
    settings = "training.steps_per_task=4", "training.validate_every_steps=2"
    config = make_config(f"taskset={chain_folder}", *settings)
    keep_checkpoints(tmp_path, monkeypatch)
    expected = run_ranks(2, train, config, tmp_path / "two", ONE_PIPELINE)[0]
    monkeypatch.undo()
    folder = tmp_path / "after-4"  # in the third of four stages
    shutil.copytree(folder, tmp_path / "alone")
    for found in run_ranks(2, train, config, folder, ONE_PIPELINE):
        assert_alike(found, expected, exact=True)
    assert_alike(train(config, tmp_path / "alone"), expected, exact=False)


def test_a_checkpoint_of_two_ranks_goes_on_with_two_or_one(make_config, chain_folder, tmp_path, run_ranks, monkeypatch):
    """From a stage's start, from its middle before all answers were made, and from the end."""
    config = make_config(f"taskset={chain_folder}", "training.steps_per_task=8", "training.validate_every_steps=4")
    expected = train(config, tmp_path / "one")
    keep_checkpoints(tmp_path, monkeypatch)
    run_ranks(2, train, config, tmp_path / "two", ONE)
    monkeypatch.undo()
    folders = sorted(tmp_path.glob("after-*"))
    assert len(folders) == 8  # four stages of two intervals
    for number in (2, 3, 7):
        folder = folders[number]
        shutil.copytree(folder, tmp_path / f"alone-{number}")
        found = run_ranks(2, train, config, folder, ONE)
        assert_alike(found[0], expected, exact=True)
        if number < 7:  # after the last one there is nothing to do, and rank 0 alone reads it
            assert_alike(found[1], expected, exact=True)
        assert_alike(train(config, tmp_path / f"alone-{number}"), expected, exact=True)
        assert (folder / LAST).exists()
        last = load_file(folder / "stage-4.safetensors")
        assert all(torch.equal(tensor, torch.tensor(expected[0][name])) for name, tensor in last.items())
