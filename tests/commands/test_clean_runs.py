"""clean-runs: what it shows, what it removes, and that nothing goes which a command still needs."""

import os

import pytest
import torch
from safetensors.torch import save_file

from contextlora.cli import main
from contextlora.commands.clean_runs import clean_runs, in_units
from contextlora.commands.evaluate import evaluate
from contextlora.commands.export import export
from contextlora.commands.train import train
from contextlora.runs import RunFolder

STAGES = [["a"], ["b"]]
NEEDED = {"config.yaml", "stage-1.safetensors", "stage-2.safetensors", "adapter.safetensors"}


@pytest.fixture
def make_run(tmp_path):
    """(state) -> a run of two stages that has everything, and something half written."""

    def make(state):
        run = RunFolder.create(tmp_path, "iov", "joint", 0, "")
        names = ("last.ckpt", "previous.ckpt", "stage-1.safetensors", "stage-2.safetensors", ".last.ckpt.new-12ab")
        for path in (*(run.folder("checkpoints") / name for name in names), run.folder("adapters", "a")):
            (path if path.suffix else path / "adapter.safetensors").write_bytes(bytes(1000))
        for number in (1, 2):
            save_file({"x": torch.zeros(9)}, run.path / "checkpoints" / f"stage-{number}.safetensors")
        os.utime(run.path / "checkpoints" / ".last.ckpt.new-12ab", (0, 0))
        if state == "finished":
            run.finish({"stages": STAGES})
        elif state == "trained":
            run.mark_trained()
            run._set_state("failed")
        elif state == "unreadable":
            (run.path / "status.json").write_text("")
        else:
            run._set_state(state)
        assert run.state == state
        return run

    return make


def files(run):
    return {path.name for path in run.path.rglob("*") if path.is_file() and path.name not in (".lock", ".order")}


def clean(tmp_path, capsys, *options):
    assert main(["clean-runs", f"runs_dir={tmp_path}", *options]) == 0
    return capsys.readouterr().out


def row(said, run):
    (line,) = (line for line in said.splitlines() if run.path.name in line)
    return line.split()


def test_it_shows_what_can_go_and_removes_it_only_when_told(make_run, tmp_path, capsys):
    run = make_run("finished")
    before = files(run)
    said = clean(tmp_path, capsys)
    name, state, _, _, *removable = row(said, run)
    assert (name, state) == (f"iov/joint/{run.path.name}", "finished")
    assert removable == ["2.9", "KiB", "2", "checkpoints,", "1", "leftovers"]
    assert "ARGS=--yes" in said
    assert files(run) == before
    assert "removed 2.9 KiB" in clean(tmp_path, capsys, "--yes")
    assert files(run) == NEEDED | {"results.json", "status.json"}
    assert run.results == {"stages": STAGES}
    assert row(clean(tmp_path, capsys), run)[-3:] == ["0", "B", "-"]


def test_a_finished_run_is_evaluated_and_exported_as_before(make_config):
    config = make_config("training.steps_per_task=1")
    run = train(config)
    known, adapters = run.results, {path: path.read_bytes() for path in run.path.glob("adapters/*/*.safetensors")}
    clean_runs(config, yes=True)
    assert not list(run.path.rglob("*.ckpt"))
    assert evaluate(config, run)["tasks"] == known["tasks"]
    export(config, run)
    assert {path: path.read_bytes() for path in adapters} == adapters != {}


@pytest.mark.parametrize("state", ["interrupted", "failed", "trained", "unreadable"])
def test_a_run_that_may_go_on_keeps_its_checkpoints(state, make_run, tmp_path, capsys):
    run = make_run(state)
    clean(tmp_path, capsys, "--yes")
    assert files(run) == NEEDED | {"last.ckpt", "previous.ckpt", "status.json"}


def test_nothing_of_a_live_run_goes(make_run, tmp_path, capsys):
    run = make_run("running")
    before = files(run)
    assert row(clean(tmp_path, capsys, "--yes"), run)[-1] == "-"
    assert files(run) == before


@pytest.mark.parametrize("damage", ["no stage file", "cut stage file", "no results", "foreign results"])
def test_checkpoints_of_a_finished_run_that_lacks_something_stay(damage, make_run, tmp_path, capsys):
    run = make_run("finished")
    if damage == "no stage file":
        (run.path / "checkpoints" / "stage-2.safetensors").unlink()
    elif damage == "cut stage file":
        os.truncate(run.path / "checkpoints" / "stage-1.safetensors", 20)
    else:
        run.results_file.write_text("" if damage == "no results" else "[]")
    clean(tmp_path, capsys, "--yes")
    assert {"last.ckpt", "previous.ckpt"} < files(run)


def test_strays_beside_the_runs_go_and_folders_that_are_no_runs_stay(make_run, tmp_path, capsys):
    make_run("finished")
    (mine := tmp_path / "mine" / "own" / "folder").mkdir(parents=True)
    for path in (tmp_path / ".comparison.md.new-12ab", mine / ".a.new-12ab", mine / "last.ckpt"):
        path.touch()
        os.utime(path, (0, 0))
    assert "(in no run)" in clean(tmp_path, capsys, "--yes")
    assert not (tmp_path / ".comparison.md.new-12ab").exists()
    assert {path.name for path in mine.iterdir()} == {".a.new-12ab", "last.ckpt"}


def test_no_runs_is_no_error(tmp_path, capsys):
    assert f"no runs in {tmp_path}" in " ".join(clean(tmp_path, capsys).split())


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB"), (2**42, "4096.0 GiB")]
)
def test_sizes_in_units(num_bytes, text):
    assert in_units(num_bytes) == text
