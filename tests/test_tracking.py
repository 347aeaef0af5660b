"""Tracking: W&B offline inside the run folder, read back with W&B's own reader; its twin does nothing at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from contextlora.tracking import _run_id

LOGGING = """
import sys
from pathlib import Path
from contextlora.tracking import open_tracker
folder = Path(sys.argv[2])
tracker = open_tracker(sys.argv[1], "contextlora", folder, "iov-joint-1")
tracker.log_config({"method": {"delta": 0.5}})
tracker.log({"stage1/loss": 1.5}, step=20)
tracker.log({"stage1/loss": 1.25}, step=10)
tracker.log_table("results", ["task", "final"], [["grip", 0.5]])
tracker.log_image("graph", folder / "graph.png")
tracker.log_summary({"mean/end_to_end": 0.75})
tracker.finish()
assert "wandb" in sys.modules or sys.argv[1] == "off"
print(tracker.how_to_show)
"""


def log(mode, folder, **environment):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "graph.png")
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    paths = {"HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", LOGGING, mode, str(folder)],
        env=paths | environment,
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=True,
    )


def summary(folder):
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", folder / "wandb"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_without_a_login_everything_is_logged_offline_and_only_in_the_run_folder(tmp_path):
    done = log("auto", tmp_path / "run")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{done.stdout.split()[0]} leet run/wandb"]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "home"}
    assert list((tmp_path / "home").rglob("*")) == []
    logged = summary(tmp_path / "run")
    assert (logged["project"], logged["name"], logged["state"]) == ("contextlora", "iov-joint-1", "finished")
    assert logged["config"] == {"method": {"delta": 0.5}}
    assert logged["summary"]["mean/end_to_end"] == 0.75
    # Logged last, though at an earlier step.
    assert (logged["summary"]["stage1/loss"], logged["summary"]["step"]) == (1.25, 10)
    assert (logged["summary"]["graph"]["_type"], logged["summary"]["graph"]["width"]) == ("image-file", 8)
    assert (logged["summary"]["results"]["ncols"], logged["summary"]["results"]["nrows"]) == (2, 1)


def test_a_resumed_run_continues_the_same_run(tmp_path):
    log("offline", tmp_path / "run")
    log("offline", tmp_path / "run", WANDB_RUN_ID="other")
    ids = {path.stem for path in (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")}
    assert ids == {"run-" + (tmp_path / "run" / "wandb" / "run-id").read_text()}


def test_a_sweep_names_the_run(tmp_path):
    log("offline", tmp_path / "run", WANDB_RUN_ID="fromsweep")
    assert (tmp_path / "run" / "wandb" / "run-id").read_text() == "fromsweep"


def test_off_is_silent_and_leaves_nothing(tmp_path):
    done = log("off", tmp_path / "run")
    assert (done.stdout, done.stderr) == ("None\n", "")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"graph.png"}


def test_a_run_id_that_is_a_pipe_is_made_anew(tmp_path):
    os.mkfifo(tmp_path / "run-id")
    assert _run_id(tmp_path) == _run_id(tmp_path) == (tmp_path / "run-id").read_text()
