"""Settings and device catalogues from files that are none: one line, and nothing waits or reads without end."""

import shutil

import pytest

from contextlora.config import CONFIG_DIR, load_config, read_devices
from contextlora.errors import ConfigError


@pytest.mark.parametrize("file", ["default.yaml", "method/joint.yaml", "experiment/mine.yaml", "saved.yaml"])
def test_settings_are_read_from_ordinary_files_only(tmp_path, no_file, file):
    folder = shutil.copytree(CONFIG_DIR, tmp_path / "configs")
    (folder / "experiment").mkdir(exist_ok=True)
    no_file(folder / file)
    choice = ["method=joint", *(["experiment=mine"] if "mine" in file else [])]
    with pytest.raises(ConfigError, match=rf"{file} is no readable YAML file: it is no ordinary file") as caught:
        load_config(choice, folder, saved=folder / file if file == "saved.yaml" else None)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed: ???", "seed"),
        ("training: {callbacks: [{class_path: x, init_args: {y: '???'}}]}", r"training\.callbacks\.0\.init_args\.y"),
        ("method: {edge_delta: {u->v: '???'}}", "method.edge_delta.u->v"),
    ],
)
def test_no_value_in_a_file_is_refused_by_its_key(tmp_path, text, key):
    """OmegaConf would pass over it, and the run would have a weaker layer's value without a word."""
    (tmp_path / "saved.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"^{key} in .*saved\.yaml is '\?\?\?'"):
        load_config(saved=tmp_path / "saved.yaml")
    (tmp_path / "devices.yaml").write_text("devices: {a: {flops_per_s: '???'}}")
    with pytest.raises(ConfigError, match=r"^devices\.a\.flops_per_s in .*devices\.yaml is '\?\?\?'"):
        read_devices(str(tmp_path / "devices.yaml"))


def test_a_device_catalogue_is_an_ordinary_file_of_yaml(tmp_path, no_file):
    no_file(tmp_path / "odd")
    (tmp_path / "bytes.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "digits.yaml").write_text("a: " + "9" * 5000)
    (tmp_path / "large.yaml").write_text("#" * (2 << 20))
    for name in ("odd", "bytes.yaml", "digits.yaml", "large.yaml", "bytes.yaml/below.yaml"):
        with pytest.raises(ConfigError, match="no readable YAML file") as caught:
            read_devices(str(tmp_path / name))
        assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_a_text_that_is_left_empty_is_said_to_be_empty(tmp_path):
    """YAML makes null of it."""
    (tmp_path / "config.yaml").write_text("runs_dir:\n")
    for settings, place in ({"arguments": ["runs_dir="]}, ""), ({"saved": tmp_path / "config.yaml"}, " in .*"):
        with pytest.raises(ConfigError, match=f"^runs_dir{place} must not be empty; give a value"):
            load_config(**settings)
