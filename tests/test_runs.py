"""Run folders: a run counts as finished only after its last write, and a dead process is told from a live one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from contextlora.errors import ConfigError, PassingError, UserError
from contextlora.files import write_atomically
from contextlora.run_places import release
from contextlora.runs import RunFolder, find_runs, latest_run, remove_all_leftovers, unreadable_runs
from contextlora.tasks.faults import TaskSetError
from contextlora.training.checkpoint import CheckpointError

RESULTS = {"taskset": "iov", "tasks": {}}


def create(runs_dir, method="joint", **settings):
    return RunFolder.create(runs_dir, "iov", method, **({"seed": 0, "config": "seed: 0\n"} | settings))


def test_a_new_run_lies_under_its_taskset_and_method(tmp_path):
    run = create(tmp_path, seed=7)
    assert run.path.parent == tmp_path / "iov" / "joint"
    assert run.path.name.endswith("-seed7")
    assert run.config_file.read_text() == "seed: 0\n"
    assert run.state == "running"
    assert run.history == []


@pytest.mark.parametrize("file", ["config.yaml", "status.json", "results.json", "metrics.jsonl", ".order", "latest"])
def test_a_run_file_that_is_none_is_not_waited_for(tmp_path, no_file, file):
    run, other = create(tmp_path), create(tmp_path)
    other.finish(RESULTS)
    run.finish(RESULTS)
    no_file((tmp_path / file).parent / file if file == "latest" else run.path / file)
    assert latest_run(tmp_path).path in (run.path, other.path)
    assert other.path in [one.path for one in find_runs(tmp_path, finished=True)]
    assert run.history == []
    if file in ("status.json", "results.json"):
        with pytest.raises(UserError, match=r"unreadable|no ordinary file"):
            _ = run.results


def test_a_taskset_folder_counts_by_its_last_part(tmp_path):
    run = RunFolder.create(tmp_path, "../my sets/traffic/", "joint", 0, "")
    assert run.path.parent == tmp_path / "traffic" / "joint"


@pytest.mark.parametrize(("taskset", "method"), [("..", ".."), ("/", "."), ("a/..", "../../x"), ("x" * 255, "/etc")])
def test_a_run_lies_below_the_folder_of_runs_whatever_the_names(tmp_path, taskset, method):
    run = RunFolder.create(tmp_path / "runs", taskset, method, 0, "")
    assert run.path.resolve().parents[2] == tmp_path / "runs"


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path):
    assert len({create(tmp_path).path for _ in range(5)}) == 5


def test_latest_is_a_relative_link_to_the_run_that_finished_last(tmp_path):
    first, second, third = create(tmp_path), create(tmp_path, "per_task"), create(tmp_path)
    first.finish(RESULTS)
    second.finish(RESULTS)
    assert latest_run(tmp_path).path == second.path
    assert not os.path.isabs(os.readlink(tmp_path / "latest"))
    assert third.state == "running"
    tmp_path.rename(moved := tmp_path.with_name("moved"))
    assert latest_run(moved).results == RESULTS


@pytest.mark.parametrize("path", ["nowhere", "x" * 300, "/dev/null", "/dev/null/x"])
def test_what_is_no_run_is_refused(path):
    with pytest.raises(UserError, match="is no run folder") as caught:
        RunFolder.open(path)
    assert len(str(caught.value)) <= 300


def test_results_of_an_unfinished_run_are_refused(tmp_path):
    run = create(tmp_path)
    write_atomically(run.results_file, json.dumps(RESULTS))  # as after a kill between the two writes of finish()
    with pytest.raises(UserError, match="not finished"):
        _ = run.results
    with pytest.raises(UserError, match="no finished run"):
        latest_run(tmp_path)


def test_a_killed_run_is_found_and_claimed_but_a_live_one_is_refused(tmp_path):
    code = (
        "import sys, time; from contextlora.runs import RunFolder;"
        "print(RunFolder.create(sys.argv[1], 'iov', 'joint', 0, '').path, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    run = RunFolder.open(process.stdout.readline().strip())
    assert run.state == "running"
    assert find_runs(tmp_path, finished=False) == []
    with pytest.raises(UserError, match=f"still running .process {process.pid} "):
        run.claim()
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while run.state == "running" and time.monotonic() < deadline:  # seen before the parent reaps it, too
        time.sleep(0.01)
    assert run.state == "interrupted"
    process.communicate()
    assert [found.path for found in find_runs(tmp_path, finished=False)] == [run.path]
    run.claim()
    assert run.state == "running"


@pytest.mark.parametrize(("key", "value"), [("started", "1"), ("boot", "another boot")])
def test_a_later_process_with_the_same_number_is_not_the_run(tmp_path, key, value):
    run = create(tmp_path)
    status = json.loads((run.path / "status.json").read_text())
    (run.path / "status.json").write_text(json.dumps(status | {key: value}))
    assert run.state == "interrupted"


def test_a_run_of_another_host_is_refused_with_the_way_out(tmp_path):
    run = create(tmp_path)
    status = json.loads((run.path / "status.json").read_text())
    (run.path / "status.json").write_text(json.dumps(status | {"host": socket.gethostname() + "2"}))
    with pytest.raises(UserError, match=r"delete .*status\.json"):
        run.claim()
    (run.path / "status.json").unlink()
    run.claim()


def test_a_finished_run_is_not_resumed(tmp_path):
    run = create(tmp_path)
    run.finish(RESULTS)
    with pytest.raises(UserError, match="nothing to resume"):
        run.claim()
    assert find_runs(tmp_path, finished=False) == []
    assert [found.path for found in find_runs(tmp_path, "iov", finished=True)] == [run.path]


def ctrl_c():
    raise KeyboardInterrupt


def ctrl_c_as_lightning_passes_it_on():
    try:
        ctrl_c()
    except KeyboardInterrupt:
        sys.exit(1)


def crash():
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("work", "leaves", "state"),
    [
        (ctrl_c, KeyboardInterrupt, "interrupted"),
        (ctrl_c_as_lightning_passes_it_on, KeyboardInterrupt, "interrupted"),
        (crash, RuntimeError, "failed"),
    ],
)
def test_how_the_work_ends_is_recorded_and_the_error_says_how_to_resume(tmp_path, work, leaves, state):
    run = create(tmp_path)
    with pytest.raises(leaves) as caught, run.recording():
        work()
    assert run.state == state
    assert caught.value.__notes__ == [f"continue it with: make resume RUN={os.path.relpath(run.path)}"]
    assert find_runs(tmp_path, finished=False)[0].path == run.path


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (OSError("disk full"), True),
        (PassingError("a peer is gone; begin again"), True),
        (ConfigError("no such setting; leave it out"), False),
        (TaskSetError("a.jsonl has changed; restore it"), False),
        (CheckpointError("another task set; restore it or train again"), False),
    ],
)
def test_nobody_is_told_to_resume_what_would_fail_again(tmp_path, error, may_pass):
    run = create(tmp_path)
    with pytest.raises(type(error)) as caught, run.recording():
        raise error
    assert getattr(caught.value, "__notes__", []) == ([run.how_to_resume] if may_pass else [])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        RunFolder.open(tmp_path)


def test_a_run_knows_whether_one_process_started_both_it_and_this(tmp_path):
    run = create(tmp_path)
    assert run.has_same_parent
    status = json.loads((run.path / "status.json").read_text())
    (run.path / "status.json").write_text(json.dumps(status | {"parent": [status["parent"][0], "another start"]}))
    assert not run.has_same_parent


def test_of_two_claims_at_one_instant_one_wins(tmp_path):
    run = create(tmp_path)
    run._set_state("failed")
    release(run.path)
    for _ in range(5):
        at, children = time.time() + 0.05, []
        for _ in range(2):
            if not (pid := os.fork()):
                while time.time() < at:
                    pass
                try:
                    RunFolder(run.path).claim()
                except UserError:
                    os._exit(0)
                time.sleep(0.1)
                os._exit(1)
            children.append(pid)
        assert sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": "running"}', '{"state": 5}', "\0", '{"state": "no"}'])
def test_a_damaged_status_keeps_no_other_run_from_being_found(tmp_path, content):
    bad, good = create(tmp_path), create(tmp_path)
    good.finish(RESULTS)
    (bad.path / "status.json").write_text(content)
    assert bad.state == "unreadable"
    assert [run.path for run in find_runs(tmp_path, finished=True)] == [good.path]
    assert find_runs(tmp_path, finished=False) == []
    assert len(unreadable_runs(tmp_path)) == 1
    with pytest.raises(UserError, match="delete it"):
        bad.claim()


def test_what_fails_after_training_leaves_a_trained_run(tmp_path):
    run = create(tmp_path)
    with pytest.raises(RuntimeError), run.recording():
        run.mark_trained()
        assert run.state == "running"
        crash()
    assert run.state == "trained"
    assert find_runs(tmp_path, finished=False)[0].path == run.path
    run.claim()
    run.finish(RESULTS)
    assert run.state == "finished"


def test_a_folder_that_vanished_is_not_finished(tmp_path):
    run = create(tmp_path)
    run.path.rename(tmp_path / "away")
    with pytest.raises(UserError, match="vanished"), run.recording():
        run.finish(RESULTS)
    assert not run.path.exists()


def test_leftovers_of_a_killed_process_go_when_the_run_is_claimed(tmp_path):
    run = create(tmp_path)
    run._set_state("failed")
    for name in (".last.ckpt.new", ".status.json.new-12ab", "last.ckpt.tmp", ".low-5.old-cdef", "low-5", "my.tmp"):
        (run.folder("checkpoints") / name).touch()
    run.claim()
    assert sorted(path.name for path in run.folder("checkpoints").iterdir()) == ["low-5", "my.tmp"]


def test_leftovers_go_from_all_runs_but_those_that_live(tmp_path):
    dead, live = create(tmp_path / "runs"), create(tmp_path / "runs")
    dead._set_state("finished")
    places = [dead.folder("checkpoints"), live.folder("checkpoints"), tmp_path / "runs", tmp_path / "runs" / "mine"]
    for place in places:
        place.mkdir(exist_ok=True)
        (place / ".file.new-12ab").touch()
        os.utime(place / ".file.new-12ab", (0, 0))
    remove_all_leftovers(tmp_path / "runs")
    assert [(place / ".file.new-12ab").exists() for place in places] == [False, True, False, True]
