"""Where runs lie: which is the latest and which began last, also without links, copied, or by a wrong clock."""

import pytest

from contextlora.errors import UserError
from contextlora.runs import RunFolder, find_runs, latest_run

RESULTS = {"taskset": "iov", "tasks": {}}


def create(runs_dir):
    return RunFolder.create(runs_dir, "iov", "joint", seed=0, config="seed: 0\n")


def test_latest_without_links_is_a_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(type(tmp_path), "symlink_to", refuse)
    first, second = create(tmp_path), create(tmp_path)
    second.finish(RESULTS)
    first.finish(RESULTS)
    assert (tmp_path / "latest").is_file()
    assert latest_run(tmp_path).path == first.path
    (tmp_path / "latest").unlink()
    assert latest_run(tmp_path).path == second.path  # the one that began last


def test_a_copied_run_plants_no_latest_elsewhere(tmp_path):
    run = create(tmp_path / "runs")
    run._set_state("failed")
    run.path.rename(copied := tmp_path / "copied")
    moved = RunFolder.open(copied)
    moved.claim()
    moved.finish(RESULTS)
    assert moved.results == RESULTS
    assert not list(tmp_path.parent.glob("latest")) and not list(tmp_path.parents[1].glob("latest"))


def test_the_run_that_began_last_is_resumed_though_the_clock_went_back(tmp_path):
    first, second = create(tmp_path), create(tmp_path)
    for run in (first, second):
        run._set_state("failed")
    second.path.rename(earlier := second.path.with_name("19990101T000000Z-seed0"))
    assert find_runs(tmp_path, finished=False)[-1].path == earlier


def test_a_task_set_cannot_take_the_place_of_the_newest_run(tmp_path):
    with pytest.raises(UserError, match=r"must not be named latest, got sets/latest; rename it"):
        RunFolder.create(tmp_path / "runs", "sets/latest", "joint", 1, "")
    assert not list(tmp_path.glob("runs/*"))
