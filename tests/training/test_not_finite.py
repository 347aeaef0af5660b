"""What is not a number ends training with a word, and never becomes a finished run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from contextlora.adapters import AdapterError
from contextlora.assembly.build import build_data, build_module
from contextlora.backbones.faults import BackboneError
from contextlora.backbones.load import load_backbone
from contextlora.errors import NotFiniteError
from contextlora.runs import RunFolder
from contextlora.training.callbacks import LAST
from contextlora.training.checkpoint import (
    FORMAT,
    KEY,
    AtomicCheckpointIO,
    CheckpointError,
    load_checkpoint,
    newest_whole,
)
from contextlora.training.module import ContextLoraModule
from contextlora.training.stage_files import StageFiles

BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture
def module(make_config):
    return build_module(make_config(), build_data(make_config()))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("spoils", "clip"), [("loss", 1), ("gradient", 0), ("gradient", 1)])
def test_a_step_that_is_not_finite_leaves_weights_and_checkpoint(
    spoils, clip, bad, make_config, train, tmp_path, monkeypatch
):
    before = []

    def spoil(self):
        if self.trainer.global_step == 4:
            before.append((self, self.adapted.state.read()))
            if spoils == "loss":
                self._train_losses[-1] = torch.tensor(bad)
            else:
                next(p for group in self.adapted.parameter_groups().values() for p in group).grad.view(-1)[0] = bad

    monkeypatch.setattr(ContextLoraModule, "on_after_backward", spoil)
    with pytest.raises(NotFiniteError, match=r"at step 5, of task [ab], .*: lower training.learning_rate") as caught:
        train(make_config(f"training.gradient_clip={clip}"), tmp_path)
    assert len(str(caught.value)) <= 300
    ((module, weights),) = before
    assert all(torch.equal(value, weights[name]) for name, value in module.adapted.state.read().items())
    kept = load_checkpoint(tmp_path / LAST)
    assert kept["global_step"] == 4
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_a_learning_rate_that_is_far_too_high_ends_training(make_config, train, tmp_path):
    with pytest.raises(NotFiniteError, match=r"(at|after) step \d"):
        train(make_config("training.learning_rate=1e9"), tmp_path)


@pytest.mark.parametrize("bad", BAD)
def test_a_validation_that_is_not_finite_ends_training(bad, make_config, train, tmp_path, monkeypatch):
    monkeypatch.setattr(
        ContextLoraModule,
        "validation_step",
        lambda self, batch, *_: self._sums.update({batch.task: [1.0, 0.0, bad if batch.task == "b" else 1.0]}),
    )
    with pytest.raises(NotFiniteError, match="after step 4 the validation loss of task b is"):
        train(make_config(), tmp_path)


def test_weights_at_the_end_of_a_stage_are_finite(module):
    module.begin_stage()
    module.best_state = {name: torch.full_like(value, BAD[0]) for name, value in module.adapted.state.read().items()}
    with pytest.raises(AdapterError, match=r"those of stage 1 at step 0 hold nan or infinity in .*lora"):
        module._end_stage()


@pytest.mark.parametrize("bad", BAD)
def test_scores_are_finite(bad, module):
    weights = {name: torch.full_like(value, bad) for name, value in module.adapted.state.read().items()}
    module.adapted.state.write(weights)
    with pytest.raises(NotFiniteError, match="scores of task a"):
        module.accuracies()


@pytest.mark.parametrize("bad", BAD)
def test_values_from_files_are_finite(bad, module, tmp_path):
    module.begin_stage()
    state = module.adapted.state.read(module.stage_owners)
    good = {name: value.clone() for name, value in state.items()}
    state[max(state)].view(-1)[-1] = bad
    with pytest.raises(AdapterError, match="the checkpoint's values hold nan or infinity"):
        module.load_state_dict(state)
    ours = {"identity": module.identity, "progress": module.progress.to_dict(), "answers": {}, "best_state": state}
    with pytest.raises(AdapterError, match="the checkpoint's values hold nan or infinity"):
        module.on_load_checkpoint({KEY: ours})
    module.adapted.state.write(state)
    files = StageFiles(tmp_path, module)
    files.save(0, module.stage_owners)
    module.adapted.state.write(good)
    with pytest.raises(AdapterError, match=r"stage-1\.safetensors hold nan or infinity"):
        files.load(0)
    assert all(torch.equal(value, good[name]) for name, value in module.adapted.state.read(module.stage_owners).items())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_a_checkpoint_whose_moments_are_not_finite_is_damaged(name, bad, tmp_path):
    moments = {"step": torch.tensor(4.0), "exp_avg": torch.zeros(9, 5), "exp_avg_sq": torch.zeros(9, 5)}
    for number in (1, 2):
        states = [{"state": {0: dict(moments), 1: dict(moments)}, "param_groups": []}]
        checkpoint = {KEY: {"format": FORMAT, "number": number}, "optimizer_states": states}
        if number == 2:
            states[0]["state"][1][name] = torch.zeros(9, 5).index_fill(0, torch.tensor(8), bad)
        AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / LAST)
    with pytest.raises(CheckpointError, match=rf"{name} of the optimizer holds nan or infinity.*begin the run anew"):
        load_checkpoint(tmp_path / LAST)
    assert newest_whole(tmp_path / LAST)[1][KEY]["number"] == 1


@pytest.mark.parametrize("bad", BAD)
def test_base_weights_are_finite(bad, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    (path,) = (tmp_path / "model").glob("*.safetensors")
    state = load_file(path)
    state[min(state)].view(-1)[7] = bad
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=f"weights must be finite, but {min(state)} holds nan or infinity"):
        load_backbone(str(tmp_path / "model"))


def test_nobody_is_told_to_resume_to_the_same_numbers(tmp_path):
    run = RunFolder.create(tmp_path, "tiny", "joint", 0, "")
    with pytest.raises(NotFiniteError) as caught, run.recording():
        raise NotFiniteError("at step 1 the loss is nan")
    assert getattr(caught.value, "__notes__", []) == []
    assert json.loads((run.path / "status.json").read_text())["state"] == "failed"
