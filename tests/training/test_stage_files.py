"""Stage files: each holds what its stage trained, and all up to one give the weights after it."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from contextlora.adapters import AdapterError
from contextlora.assembly.build import build_data, build_module, trainer_settings
from contextlora.methods.contextlora import ContextLora
from contextlora.methods.routing import add_routers
from contextlora.training.fit import TrainerSettings, fit
from contextlora.training.module import ContextLoraModule
from contextlora.training.optimizer import OptimizerSettings
from contextlora.training.stage_files import StageFiles
from contextlora.training.stages import StageLength

SHORT = ("training.steps_per_task=2", "training.validate_every_steps=2")


class Routed(ContextLora):
    """With gates and routers, so that values of every kind train."""

    exports_lora = False

    def inject(self, adapted):
        add_routers(adapted)


@pytest.fixture
def build(make_config):
    """() -> a module as a new process would make it."""

    def make():
        config = make_config("taskset.context=gold")
        length = StageLength(steps_per_task=2, validate_every_steps=2, patience=0)
        return ContextLoraModule(
            build_data(config), Routed(config.method), length=length, optimizer=OptimizerSettings(1e-2)
        )

    return make


@pytest.fixture
def after_stage(build, tmp_path):
    """The whole adapter as each stage of a training left it; the stage files lie in `tmp_path`."""
    module, kept = build(), []
    files = StageFiles(tmp_path, module)

    def save(stage, owners):
        files.save(stage, owners)
        kept.append(module.adapted.state.read())

    settings = {"checkpoints": tmp_path, "metrics_file": tmp_path / "metrics.jsonl", "console": None}
    fit(module, TrainerSettings(accelerator="cpu"), save_stage=save, **settings)
    return kept


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_files_up_to_a_stage_give_the_weights_after_it(build, after_stage, tmp_path):
    owners = [
        {name.rpartition(".lora_")[2] for name in load_file(tmp_path / f"stage-{number}.safetensors")}
        for number in (1, 2, 3)
    ]
    slices = [{f"{kind}.{name}" for kind in "AB" for name in names} for names in ("ab", "abc", "acd")]
    gates = [set(), {"gate.a->c", "gate.b->c"}, {"gate.a->d", "gate.c->d"}]
    assert owners == [s | g | {"router.gate.weight"} for s, g in zip(slices, gates, strict=True)]
    assert not all(torch.equal(after_stage[0][name], tensor) for name, tensor in after_stage[1].items())

    module = build()
    files = StageFiles(tmp_path, module)
    for stage, expected in enumerate(after_stage):
        files.load(stage)
        assert_same(module.adapted.state.read(), expected)

    module = build()
    files = StageFiles(tmp_path, module)
    files.load_last()
    assert_same(module.adapted.state.read(), after_stage[2])
    files.load(1)  # back: what had been trained by then is as it was
    trained = set("abc") | {"->c", "+router"}
    assert_same(
        module.adapted.state.read(trained),
        {name: after_stage[1][name] for name in module.adapted.state.read(trained)},
    )


def damage(path, kind):
    path.unlink() if kind == "missing" else os.truncate(path, path.stat().st_size - 5)


@pytest.mark.parametrize("kind", ["missing", "cut"])
def test_a_damaged_file_is_rebuilt_to_the_same_bytes_where_no_later_stage_trained_its_slices(
    train, make_config, tmp_path, kind
):
    module, said = train(make_config("method=per_task", *SHORT), tmp_path), []
    files = StageFiles(tmp_path, module, said.append)
    for stage in range(len(module.plan.stages)):
        whole = files.path(stage).read_bytes()
        damage(files.path(stage), kind)
        files.load(stage)
        assert files.path(stage).read_bytes() == whole
    assert said[0] == "stage-1.safetensors was missing or damaged: written again from last.ckpt"


def test_where_slices_have_moved_on_the_last_file_is_rebuilt_and_an_earlier_one_refused(train, make_config, tmp_path):
    files = StageFiles(tmp_path, train(make_config(*SHORT), tmp_path), print)
    whole = files.path(2).read_bytes()
    damage(files.path(2), "cut")
    files.load_last()
    assert files.path(2).read_bytes() == whole
    damage(files.path(0), "cut")
    with pytest.raises(AdapterError, match=r"stage-1\.safetensors is damaged.*Restore .* or train again"):
        files.load(0)
    assert len(list(tmp_path.glob("stage-*"))) == 3  # what is left of it stays


def test_the_last_file_of_changing_uses_is_rebuilt_with_all_values_and_the_uses(train, make_config, tmp_path):
    module = train(make_config("method.delta=auto", *SHORT), tmp_path)
    weights, uses = module.adapted.state.read(), dict(module.uses)
    damage(tmp_path / "stage-3.safetensors", "missing")
    files = StageFiles(tmp_path, module)
    files.load(0)
    files.load_last()
    assert_same(module.adapted.state.read(), weights)
    assert module.uses == uses
    damage(tmp_path / "stage-1.safetensors", "missing")
    with pytest.raises(AdapterError, match=r"stage-1\.safetensors is missing"):
        files.load(0)


@pytest.mark.parametrize(("intervals", "name"), [(1, "last.ckpt"), (2, "previous.ckpt")])
def test_before_a_run_goes_on_its_files_are_mended_from_the_checkpoint_of_the_stages_end(
    train, make_config, tmp_path, intervals, name
):
    config, said = make_config("training.steps_per_task=2", f"training.validate_every_steps={2 // intervals}"), []

    def save(stage, owners):
        if stage == 1:
            raise KeyboardInterrupt
        StageFiles(tmp_path, modules[0]).save(stage, owners)

    modules = [build_module(config, build_data(config))]
    settings = {"metrics_file": tmp_path / "metrics.jsonl", "save_stage": save, "console": None}
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(modules[0], trainer_settings(config), checkpoints=tmp_path, **settings)
    whole = (tmp_path / "stage-1.safetensors").read_bytes()
    damage(tmp_path / "stage-1.safetensors", "cut")
    StageFiles(tmp_path, build_module(config, build_data(config)), said.append).mend()
    assert (tmp_path / "stage-1.safetensors").read_bytes() == whole
    assert said == [f"stage-1.safetensors was missing or damaged: written again from {name}"]
    damage(tmp_path / "stage-1.safetensors", "missing")
    (tmp_path / name).rename(tmp_path / "elsewhere")
    files = StageFiles(tmp_path, modules[0])
    if intervals == 1:
        files.mend()  # no checkpoint: nothing is done yet
    else:
        with pytest.raises(AdapterError, match="is missing"):
            files.mend()


def test_a_file_of_another_stage_or_run_is_refused_and_one_that_does_not_say_is_read(
    train, make_config, tmp_path, capsys
):
    module = train(make_config(*SHORT), tmp_path)
    files, own = StageFiles(tmp_path, module), dict(module.identity)
    shutil.copytree(tmp_path, tmp_path / "whole")
    shutil.copy(files.path(0), files.path(1))
    for use in (files.load_last, files.mend):
        with pytest.raises(AdapterError, match="must hold weights of stage 2, holds those of stage 1: put the right"):
            use()
    shutil.copy(tmp_path / "whole" / files.path(1).name, files.path(1))
    for part in ("setting training.learning_rate", "setting method.alpha", "tokenizer"):
        module.identity = own | {part: "other"}
        with pytest.raises(AdapterError, match=rf"{part} is .*, not other; put the run's own file there"):
            files.load(0)
        damage(files.path(2), "missing")
        with pytest.raises(AdapterError, match="is missing, and no checkpoint"):  # that of another run holds none
            StageFiles(tmp_path, module)._load_one(2)
        shutil.copy(tmp_path / "whole" / files.path(2).name, files.path(2))
    module.identity = {}  # files of an older version hold no more
    files.save(1, module.adapted.trained_owners)
    module.identity = own | {"setting evaluation.batch_size": "7"}
    files.load_last()
    assert not capsys.readouterr().err


def test_a_task_set_that_has_changed_since_training_is_said_once_and_files_must_agree_on_it(
    train, make_config, tmp_path, capsys
):
    module = train(make_config(*SHORT), tmp_path)
    own = module.identity
    module.identity = own | {"task set": "mended"}
    files = StageFiles(tmp_path, module)
    files.load_last()
    said = "contextlora: the task set is no longer the one that the run was trained on\n"
    assert capsys.readouterr().err == said
    files.save(2, module.adapted.trained_owners)
    with pytest.raises(AdapterError, match=f"its task set is mended, not {own['task set']}; put the run's own file"):
        StageFiles(tmp_path, module).load_last()
