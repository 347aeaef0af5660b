"""Stage files: each holds what its stage trained, and all up to one give the weights after it."""

import pytest
import torch
from safetensors.torch import load_file

from contextlora.assembly.build import build_data
from contextlora.methods.contextlora import ContextLora
from contextlora.methods.routing import add_routers
from contextlora.training.fit import TrainerSettings, fit
from contextlora.training.module import ContextLoraModule
from contextlora.training.optimizer import OptimizerSettings
from contextlora.training.stage_files import StageFiles
from contextlora.training.stages import StageLength


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
