"""What a setting may be: numbers that training can compute with, and paths that a disk can hold."""

from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest

from contextlora.adapters import AdapterConfig
from contextlora.config import load_config
from contextlora.errors import ConfigError
from contextlora.limits import fits
from contextlora.methods import METHODS
from contextlora.settings import RunConfig
from contextlora.training.fit import TrainerSettings
from contextlora.training.optimizer import OptimizerSettings

SECTIONS = [kind for kind in get_type_hints(RunConfig).values() if is_dataclass(kind)]
METHOD_SETTINGS = [(name, method.Settings) for name, method in METHODS.items()]


def test_no_number_is_larger_than_training_can_multiply():
    """A product of two settings must fit into a float32, or torch ends in a traceback."""
    for kind in (*SECTIONS, *(kind for _, kind in METHOD_SETTINGS), AdapterConfig, TrainerSettings, OptimizerSettings):
        hints = get_type_hints(kind)
        for key in (entry.name for entry in fields(kind) if float in (hints[entry.name], *get_args(hints[entry.name]))):
            for number in (1e10, -1e10, 1e39, 10**300):
                value = {"u->v": number} if key == "edge_delta" else number
                with pytest.raises(ConfigError, match=rf"\.{key} must be .*(1e9|between|at most)") as caught:
                    kind(**{key: value})
                assert len(str(caught.value)) <= 300
    assert fits(1e9, float) and fits(-(10**9), float) and not fits(1e9 + 1, float)


@pytest.mark.parametrize("value", ["1e39", "-1e300", "10000000000", "1e400"])
@pytest.mark.parametrize("key", ["training.learning_rate", "training.gradient_clip", "method.gate_init"])
def test_a_number_of_the_command_line_is_held_to_it_too(key, value):
    with pytest.raises(ConfigError, match=rf"{key} must be a finite number from -1e9 to 1e9, got"):
        load_config([f"{key}={value}"])


@pytest.mark.parametrize("path", ["x" * 300, "./" + "ü" * 150, f"a/{'x' * 256}/b", "a/" * 2000])
@pytest.mark.parametrize("key", ["taskset", "taskset.data_dir", "model", "gear.devices", "runs_dir"])
def test_a_path_that_no_disk_can_hold_is_refused_at_once(key, path):
    with pytest.raises(ConfigError, match=rf"^(unknown )?{key}.*( must be a path of at most|; Known: )") as caught:
        load_config([f"{key}={path}"])
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_a_path_as_long_as_disks_take_is_one():
    assert load_config([f"runs_dir={'x' * 255}/{'y' * 255}"]).runs_dir == "x" * 255 + "/" + "y" * 255


@pytest.mark.parametrize("name", ["x" * 300, "ü" * 5000])
@pytest.mark.parametrize("group", ["method", "experiment"])
def test_a_choice_that_is_no_file_name_is_an_unknown_one(group, name):
    with pytest.raises(ConfigError, match=f"unknown {group} '.* characters") as caught:
        load_config([f"{group}={name}"])
    assert len(str(caught.value)) <= 300


def test_arguments_of_others_may_be_any_finite_number():
    assert load_config(["training.trainer={limit_val_batches: 1e12}"]).training.trainer == {"limit_val_batches": 1e12}


def test_a_batch_is_no_larger_than_a_plan_can_count():
    assert load_config(["training.batch_size=16384"]).training.batch_size == 16384
    with pytest.raises(ConfigError, match=r"training\.batch_size must be at least 1 and at most 16384, got 4000000000"):
        load_config(["training.batch_size=4000000000"])
