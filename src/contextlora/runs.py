"""Run folders: `runs/<taskset>/<method>/<id>/`, and how far each run has come.

A run is finished only when its status file says so, and that is written last. A process that is killed leaves
`running` behind with its identity, so that `resume` can continue a dead process's run and refuse a live one's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contextlora.errors import UserError, first_line, tail
from contextlora.files import read_file, remove_leftovers, write_atomically
from contextlora.process_identity import identity, is_alive, parent
from contextlora.run_places import enter, hold, latest_path, order_of, place_of_runs, point_latest, release
from contextlora.signals import Terminated

# `trained`: it ended after all training; `unreadable`: nobody can tell, as the status file is damaged.
STATES = ("running", "interrupted", "failed", "trained", "finished", "unreadable")


class VanishedRunError(UserError):
    """A run's folder was deleted or moved while a process worked on it."""


class RunFolder:
    """One run's folder.

    Attributes:
        path: the folder, with config.yaml, status.json, results.json, checkpoints/, adapters/<task>/, figures/, wandb/.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, runs_dir: Path | str, taskset: str, method: str, seed: int, config: str) -> RunFolder:
        """Make a new folder that belongs to this process.

        Args:
            runs_dir: the folder of all runs.
            taskset: name or path of the task set; a path counts by its last part.
            method: name of the method.
            seed: part of the id, so that the runs of one comparison can be told apart.
            config: content of config.yaml.
        """
        parent = place_of_runs(Path(runs_dir), taskset, method)
        parent.mkdir(parents=True, exist_ok=True)
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-seed{seed}"
        number = 1
        while True:
            path = parent / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                path.mkdir()  # fails where it exists, so that no two processes get one folder
                break
            except FileExistsError:  # another run started in the same second
                number += 1
        run = cls(path)
        try:
            hold(path)
            write_atomically(run.config_file, config)
            enter(Path(runs_dir), path)
            run._set_state("running")
        except OSError:
            # Nothing was trained, so there is nothing to resume.
            shutil.rmtree(path, ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """The run at a path.

        Raises:
            UserError: there is no run.
        """
        # `latest` may point at another run before this process is done.
        run = cls(Path(path).resolve())
        if not os.path.isfile(run.config_file):
            raise UserError(
                f"{tail(path)} is no run folder, it has no config.yaml: name one with --run FOLDER (make: RUN=FOLDER)"
            )
        return run

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def results_file(self) -> Path:
        """The final table; trust it only when the state is `finished`."""
        return self.path / "results.json"

    @property
    def metrics_file(self) -> Path:
        """A line of JSON for every validation."""
        return self.path / "metrics.jsonl"

    @property
    def history(self) -> list[dict[str, float]]:
        """The validations so far, oldest first: `step`, `stage`, `accuracy/<task>` and more."""
        lines = read_file(self.metrics_file).decode("utf-8").splitlines() if self.metrics_file.is_file() else []
        return [json.loads(line) for line in lines]

    def folder(self, *names: str) -> Path:
        """A folder inside the run, made when missing: `run.folder("adapters", task)`."""
        path = self.path.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def state(self) -> str:
        """One of STATES; a run whose process is gone counts as interrupted."""
        status = self._status()
        state = "interrupted" if status["state"] == "running" and not is_alive(status) else status["state"]
        return "trained" if status.get("trained") and state in ("interrupted", "failed") else state

    @property
    def is_trained(self) -> bool:
        """Whether all stages are done, whatever came after."""
        return self.state in ("trained", "finished")

    @property
    def results(self) -> dict[str, Any]:
        """The content of results.json.

        Raises:
            UserError: the run is not finished.
        """
        if self.state != "finished":
            raise UserError(f"the run is {self.state}, not finished; {self.how_to_resume}")
        try:
            results = json.loads(read_file(self.results_file))
            if not isinstance(results, dict):
                raise ValueError("it holds no mapping")
            return results
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{tail(self.results_file)} cannot be read ({first_line(error, but=self.results_file)}): restore it, "
                "or write it again with: contextlora evaluate --run FOLDER"
            ) from error

    @property
    def how_to_resume(self) -> str:
        """The end of a message about an unfinished run."""
        return f"continue it with: make resume RUN={os.path.relpath(self.path)}"

    @property
    def has_same_parent(self) -> bool:
        """Whether what worked on it last was started by the process that started this one, such as one torchrun."""
        return self._status().get("parent") == parent()

    def claim(self) -> None:
        """Take over a run that is not finished, to continue it in this process.

        Raises:
            UserError: the run is finished, or a live process works on it.
        """
        status, state = self._status(), self.state
        if state == "finished":
            raise UserError(f"{tail(self.path)} is finished; there is nothing to resume: name another run")
        if state == "unreadable":
            raise UserError(
                f"{tail(self._status_file)} cannot be read: delete it to continue the run, if no process works on it"
            )
        if state == "running":
            where = f"process {status['pid']} on {status['host']}"
            rest = (
                f"; if that is gone, delete {self._status_file.name}" if status["host"] != socket.gethostname() else ""
            )
            raise UserError(f"{tail(self.path)} is still running ({where}): wait until it ends{rest}")
        # Between the look above and here another process may have taken it: only one gets the lock.
        if not hold(self.path):
            raise UserError(
                f"{tail(self.path)} is still running: another process has just taken it; wait until it ends"
            )
        if self.state in ("running", "finished"):
            release(self.path)
            raise UserError(
                f"{tail(self.path)} was taken by another process at this moment; look at it before trying again"
            )
        remove_leftovers(self.path, unknown_age_s=0.0)  # nobody else works on it
        self._set_state("running")

    def mark_trained(self) -> None:
        """Record that all stages are done: from now on whatever fails leaves a run that can be used."""
        self._set_state("running", trained=True)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record how the work inside ends, unless it ends well: then `finish` has the last word.

        What leaves carries a note on how to resume. Ctrl-C leaves as KeyboardInterrupt, also where a trainer has turned
        it into SystemExit.
        """
        try:
            yield
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | Terminated) or (
                isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
            )
            # Disk full: the status stays `running`, which without its process means interrupted.
            with suppress(OSError, VanishedRunError):
                self._set_state("interrupted" if interrupted else "failed")
            leaving = KeyboardInterrupt() if isinstance(error, SystemExit) and interrupted else error
            is_there = self.path.is_dir()
            if is_there:
                release(self.path)
            if is_there and getattr(error, "passes", True):  # else a resume would come to the same
                leaving.add_note(self.how_to_resume)
            raise leaving from error.__cause__

    def finish(self, results: dict[str, Any]) -> None:
        """Write results.json, mark the run as finished and point `latest` at it, in this order."""
        self.check_is_there()
        self.write_results(results)
        self._set_state("finished")
        point_latest(self.path)
        release(self.path)

    def write_results(self, results: dict[str, Any]) -> None:
        """Gives results.json new content."""
        write_atomically(self.results_file, json.dumps(results, indent=2) + "\n")

    def check_is_there(self) -> None:
        """Raises `VanishedRunError` where the folder is gone: what is written would lie in a folder that is no run."""
        if not self.config_file.is_file():
            raise VanishedRunError(f"the run folder {tail(self.path)} vanished while it was worked on; train again")

    @property
    def _status_file(self) -> Path:
        return self.path / "status.json"

    def _status(self) -> dict[str, Any]:
        try:
            status = json.loads(read_file(self._status_file))
        except FileNotFoundError:  # killed before the first status
            return {"state": "interrupted"}
        except (OSError, ValueError, RecursionError):
            return {"state": "unreadable"}
        known = isinstance(status, dict) and status.get("state") in STATES
        whole = known and (status["state"] != "running" or (isinstance(status.get("pid"), int) and "host" in status))
        return status if whole else {"state": "unreadable"}

    def _set_state(self, state: str, trained: bool = False) -> None:
        assert state in STATES, state
        self.check_is_there()
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        status = {"state": state, "updated": updated, **identity(os.getpid()), "parent": parent()}
        if trained or self._status().get("trained"):
            status["trained"] = True
        write_atomically(self._status_file, json.dumps(status) + "\n")


def latest_run(runs_dir: Path | str) -> RunFolder:
    """The newest finished run.

    Raises:
        UserError: there is none.
    """
    if path := latest_path(Path(runs_dir)):
        return RunFolder.open(path)
    if not (finished := find_runs(runs_dir, finished=True)):
        raise UserError(f"no finished run in {tail(runs_dir)}; start one with: make train, or name one with RUN=FOLDER")
    return finished[-1]


def find_runs(runs_dir: Path | str, taskset: str = "*", *, finished: bool) -> list[RunFolder]:
    """Finished or resumable runs, in the order of their starts; a run that a live process works on is neither."""
    states = ("finished",) if finished else ("interrupted", "failed", "trained")
    return [run for run in all_runs(runs_dir, taskset) if run.state in states]


def unreadable_runs(runs_dir: Path | str) -> list[str]:
    """A line for each run whose status file is damaged: commands leave these out."""
    runs = [run for run in all_runs(runs_dir) if run.state == "unreadable"]
    return [f"left out {os.path.relpath(run.path)}: its status.json cannot be read" for run in runs]


def remove_all_leftovers(runs_dir: Path | str) -> None:
    """Removes what killed processes left half written among the runs, and in those that no live process works on."""
    remove_leftovers(Path(runs_dir), deep=False)  # what lies deeper and is no run may be anybody's
    for run in all_runs(runs_dir):
        if run.state != "running":
            remove_leftovers(run.path)


def all_runs(runs_dir: Path | str, taskset: str = "*") -> list[RunFolder]:
    """Runs in any state, in the order of their starts."""
    paths = [path.parent for path in Path(runs_dir).glob(f"{taskset}/*/*/config.yaml") if path.is_file()]
    # By the recorded order, as a clock may go back; names begin with the time of the start.
    return [RunFolder(path) for path in sorted(paths, key=lambda path: (order_of(path), path.name))]
