"""Trainings of the tiny task set by one process or by several that are started once for many of them."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed import distributed_c10d

from contextlora.assembly.build import build_data, build_module, trainer_settings
from contextlora.config import RunConfig
from contextlora.gear.execution.peers import Peers
from contextlora.gear.planning.roles import StageRoles, TaskRoles
from contextlora.tasks.task import Task
from contextlora.tasks.taskset import TaskSet, write_taskset
from contextlora.training.checkpoint import AtomicCheckpointIO
from contextlora.training.fit import fit
from contextlora.training.stage_files import StageFiles

Training = tuple[RunConfig, Path, StageRoles | TaskRoles | None]  # with its checkpoints, and the roles; None: ddp


@dataclass(frozen=True)
class Trained:
    """What a training left on one process.

    Attributes:
        weights: of the adapter, by name.
        moments: AdamW's of the last stage's parameters, first and second in turn. Weights alone would not show a
            gradient that is wrong by a factor, by which AdamW's steps hardly change.
        history: of the validations.
    """

    weights: dict[str, Any]
    moments: list[Any]
    history: list[dict[str, Any]]


def _train(config: RunConfig, folder: Path, roles: StageRoles | None, peers: Peers | None, number: int) -> Trained:
    data = build_data(config)
    strategy = "ddp" if roles is None else "contextgear"
    config = replace(config, training=replace(config.training, strategy=strategy))
    if roles is None:
        module = build_module(config, data)
        if peers is not None:
            module.evaluator.share(peers.run_in_turn)
    else:
        plan = build_module(config, build_data(config)).plan
        (shares,) = roles.tasks.values()
        module = build_module(config, data, [replace(roles, tasks=dict.fromkeys(s, shares)) for s in plan.stages])
    is_first = peers is None or peers.process == 0
    fit(
        module,
        trainer_settings(config, peers.size if peers else 1),
        checkpoints=folder if is_first else Path(os.devnull),
        metrics_file=folder / "metrics.jsonl",
        save_stage=StageFiles(folder, module).save,
        console=None,
        agree=(lambda state: peers.share(f"state/{number}", state)) if peers else str,
    )
    moments = []
    if module._trainer is not None:  # none where nothing was left to train
        for _, state in sorted(module.optimizers(use_pl_optimizer=False).state_dict()["state"].items()):
            moments += [state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()]
    weights = {name: tensor.numpy() for name, tensor in module.adapted.state.read().items()}
    return Trained(weights, moments, module.progress.history)


def _refuse(*_: Any) -> None:
    raise AssertionError("something is pickled for another process, or unpickled from one")


def _train_together(trainings: Sequence[Training]) -> list[Trained]:
    # Through these go all of torch's collectives for objects, also those that Lightning and pipelining call.
    distributed_c10d._object_to_tensor = distributed_c10d._tensor_to_object = _refuse
    peers, found = Peers(torch.device("cpu")), []
    for number, (config, folder, roles) in enumerate(trainings):
        whole = StageRoles({"": roles}, True, "") if isinstance(roles, TaskRoles) else roles
        found.append(_train(config, folder, whole, peers, number))
    peers.close()
    return found


@pytest.fixture
def keep_checkpoints(monkeypatch):
    """From now on a training leaves folder-0, folder-1 ... beside its own: as a kill after each checkpoint would."""
    save = AtomicCheckpointIO.save_checkpoint

    def save_and_keep(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path, storage_options)
        folder = Path(path).parent
        shutil.copytree(folder, f"{folder}-{len(list(folder.parent.glob(f'{folder.name}-*')))}")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_keep)
    return monkeypatch


@pytest.fixture(scope="session")
def train_alone() -> Callable[[RunConfig, Path], Trained]:
    """(configuration, folder) -> the training by one process, the reference of all tests here."""
    return lambda config, folder: _train(config, folder, None, None, 0)


@pytest.fixture
def train_together(run_processes) -> Callable[[int, Sequence[Training]], list[list[Trained]]]:
    """(number of processes, trainings) -> for each training what each process has at its end.

    Starting a process costs more than some trainings: all trainings of a number of processes should be one call.
    """

    def run(size: int, trainings: Sequence[Training]) -> list[list[Trained]]:
        by_process = run_processes(size, _train_together, trainings)
        assert None not in by_process, "a process ended early; its error is in the captured output"
        return [list(row) for row in zip(*by_process, strict=True)]

    return run


@pytest.fixture(scope="session")
def assert_alike() -> Callable[..., None]:
    """Raises where a training ended with other weights, moments or validations.

    Sums in another order, over the rows of a batch or its micro-batches, differ in the last digits, and each of AdamW's
    steps may turn such a difference into a larger one: weights were seen to differ by up to 5e-6. Of 0.01 and more
    were they for wrong gradients, which were tried one by one: one process's times 0.9, no reduce, two, the same masks
    on both halves, answers of other items, a micro-batch left out, a norm of one stage's own in clipping, and moments
    that did not come with the weights. `exact` wants the same bits instead.
    """

    def check(found: Trained, expected: Trained, exact: bool = False) -> None:
        assert len(found.history) == len(expected.history)
        for ours, theirs in zip(found.history, expected.history, strict=True):
            assert ours == (theirs if exact else pytest.approx(theirs, rel=1e-4, abs=1e-5))
        limits = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 5e-5}
        for name, tensor in expected.weights.items():
            torch.testing.assert_close(
                torch.tensor(found.weights[name]),
                torch.tensor(tensor),
                msg=lambda text, name=name: f"{name}: {text}",
                **limits,
            )
        limits = limits if exact else {"rtol": 1e-2, "atol": 1e-6}
        for ours, theirs in zip(found.moments, expected.moments, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), **limits)

    return check


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
