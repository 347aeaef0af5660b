import json
import os

import pytest

from contextlora.tasks import tasksets
from contextlora.tasks.task import TaskSetError
from contextlora.tasks.tasksets import resolve_taskset


@pytest.fixture(autouse=True)
def tiny_regime(monkeypatch):
    monkeypatch.setitem(tasksets.REGIMES, "low", {"train": 4, "validation": 2, "test": 2})


def test_generated_once_and_found_again(tmp_path):
    taskset = resolve_taskset("iov", tmp_path, seed=5)
    assert taskset.folder == tmp_path / "iov" / "low-5"
    assert [len(taskset.items("route", split)) for split in ("train", "validation", "test")] == [4, 2, 2]
    marker = taskset.folder / "marker"
    marker.touch()
    resolve_taskset("iov", tmp_path, seed=5)
    assert marker.exists()
    manifest = json.loads((taskset.folder / "manifest.json").read_text())
    assert manifest["seed"] == 5 and manifest["scenes"]["train"] == 4


def test_made_anew_when_the_generator_has_changed(tmp_path, monkeypatch):
    marker = resolve_taskset("iov", tmp_path).folder / "marker"
    marker.touch()
    monkeypatch.setattr(tasksets, "GENERATOR_VERSION", 0)
    resolve_taskset("iov", tmp_path)
    assert not marker.exists()
    assert [path.name for path in (tmp_path / "iov").iterdir()] == ["low-0"]


def test_an_interrupted_build_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(folder, seed, counts):
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(tasksets.TASKSETS, "iov", fail)
    with pytest.raises(TaskSetError, match=r"cannot write task set iov to .*low-0: No space left on device"):
        resolve_taskset("iov", tmp_path)
    assert list((tmp_path / "iov").iterdir()) == []


def test_a_folder_of_the_users_own(folder):
    assert resolve_taskset(str(folder)).name == "small"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name_or_folder": "iow"}, r"one of iov.* or a folder .*, got 'iow'; did you mean iov\?"),
        ({"name_or_folder": "iov", "regime": "huge"}, "regime must be one of low, full, got 'huge'"),
        ({"name_or_folder": "iov", "seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_unknown_names(tmp_path, arguments, message):
    with pytest.raises(TaskSetError, match=message):
        resolve_taskset(**{"data_dir": tmp_path, **arguments})


def test_a_folder_without_a_task_set(tmp_path):
    with pytest.raises(TaskSetError, match=r"holds no taskset\.yaml"):
        resolve_taskset(str(tmp_path))


def test_what_killed_processes_left_goes_with_the_next_start(tmp_path):
    resolve_taskset("iov", tmp_path)
    for name in (".low-0.new-12ab", ".low-5-ab12cd_3", "low-5-mine"):
        (tmp_path / "iov" / name).mkdir()
        os.utime(tmp_path / "iov" / name, (0, 0))
    resolve_taskset("iov", tmp_path)
    assert sorted(path.name for path in (tmp_path / "iov").iterdir()) == ["low-0", "low-5-mine"]
