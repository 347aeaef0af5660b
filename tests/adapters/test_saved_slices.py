import os

import pytest
import torch
from safetensors.torch import load_file

from contextlora.adapters import AdapterError
from contextlora.graph import RankPartition, SliceUse
from contextlora.training.stage_files import load_slices, read_slices, save_slices

OWNERS = {"a", "b", "x", "c", "d", "->c", "->d"}
USES = {"c": SliceUse(("c",), {"a": 0.25}), "a": SliceUse(("a",))}


def load(adapted, path, fingerprint):
    return load_slices(adapted, path, fingerprint, read_slices(path))


def test_round_trip_is_bit_identical(adapt, tmp_path):
    adapted, fresh = adapt(gated=True), adapt(gated=True, random_values=False)
    save_slices(adapted, tmp_path / "slices.safetensors", "f00d", OWNERS, USES)
    assert load(fresh, tmp_path / "slices.safetensors", "f00d") == USES
    expected = adapted.state.read()
    assert all(torch.equal(values, expected[name]) for name, values in fresh.state.read().items())
    assert [path.name for path in tmp_path.iterdir()] == ["slices.safetensors"]


def test_refuses_other_backbones_partitions_and_damage(adapt, tmp_path):
    path = tmp_path / "slices.safetensors"
    save_slices(adapt(), path, "f00d", OWNERS, USES)
    with pytest.raises(AdapterError, match="another backbone, f00d: this model has beef"):
        load(adapt(), path, "beef")
    with pytest.raises(AdapterError, match=r"another partition, \{'a': 4, 'b': 2, .*: this model has \{'a': 4\}"):
        load(adapt(partition=RankPartition({"a": 4})), path, "f00d")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="no readable slices file"):
        load(adapt(), path, "f00d")
    with pytest.raises(AdapterError, match="no readable slices file"):
        load(adapt(), tmp_path / "missing", "f00d")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AdapterError, match="no ordinary file"):
        load(adapt(), tmp_path / "pipe", "f00d")


def test_the_gated_variant_does_not_load_into_the_other(adapt, tmp_path):
    save_slices(adapt(gated=True), tmp_path / "slices", "f00d", OWNERS, USES)
    with pytest.raises(AdapterError, match="holds 42 foreign tensor"):
        load(adapt(), tmp_path / "slices", "f00d")


def test_only_the_wanted_values_are_written_and_the_others_stay(adapt, tmp_path):
    adapted, fresh = adapt(gated=True), adapt(gated=True, random_values=False)
    save_slices(adapted, tmp_path / "slices", "f00d", {"c", "->d"}, USES)
    written, before = load_file(tmp_path / "slices"), fresh.state.read()
    assert {name.rpartition(".lora_")[2] for name in written} == {"A.c", "B.c", "gate.a->d"}
    load(fresh, tmp_path / "slices", "f00d")
    for name, values in fresh.state.read().items():
        assert torch.equal(values, adapted.state.read()[name] if name in written else before[name]), name
