"""Run folders: `runs/<taskset>/<method>/<id>/`, and how far each run has come.

A run is finished only when its status file says so, and that is written last. A process that is killed leaves
`running` behind with its identity, so that `resume` can continue a dead process's run and refuse a live one's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contextlora.errors import NotFiniteError, UserError
from contextlora.files import slug, write_atomically
from contextlora.signals import Terminated

STATES = ("running", "interrupted", "failed", "finished")


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
        # Resolved, as a path like `.` has no name.
        parent = Path(runs_dir) / slug(Path(taskset).resolve().name) / slug(method)
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
            write_atomically(run.config_file, config)
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
        if not run.config_file.is_file():
            raise UserError(f"{path} is no run folder: it has no config.yaml")
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
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines() if self.metrics_file.exists() else []
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
        return "interrupted" if status["state"] == "running" and not _is_alive(status) else status["state"]

    @property
    def results(self) -> dict[str, Any]:
        """The content of results.json.

        Raises:
            UserError: the run is not finished.
        """
        if self.state != "finished":
            raise UserError(f"{self.path} is {self.state}, not finished; {self.how_to_resume}")
        return json.loads(self.results_file.read_text(encoding="utf-8"))

    @property
    def how_to_resume(self) -> str:
        """The end of a message about an unfinished run."""
        return f"continue it with: make resume RUN={os.path.relpath(self.path)}"

    @property
    def has_same_parent(self) -> bool:
        """Whether what worked on it last was started by the process that started this one, such as one torchrun."""
        return self._status().get("parent") == _parent()

    def claim(self) -> None:
        """Take over a run that is not finished, to continue it in this process.

        Raises:
            UserError: the run is finished, or a live process works on it.
        """
        status, state = self._status(), self.state
        if state == "finished":
            raise UserError(f"{self.path} is finished; there is nothing to resume")
        if state == "running":
            where = f"process {status['pid']} on {status['host']}"
            rest = f"; if that is gone, delete {self._status_file}" if status["host"] != socket.gethostname() else ""
            raise UserError(f"{self.path} is still running ({where}){rest}")
        self._set_state("running")

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
            with suppress(
                OSError
            ):  # disk full: the status stays `running`, which without its process means interrupted
                self._set_state("interrupted" if interrupted else "failed")
            leaving = KeyboardInterrupt() if isinstance(error, SystemExit) and interrupted else error
            if not isinstance(error, NotFiniteError):  # a resume would come to the same numbers
                leaving.add_note(self.how_to_resume)
            raise leaving from error.__cause__

    def finish(self, results: dict[str, Any]) -> None:
        """Write results.json, mark the run as finished and point `latest` at it, in this order."""
        write_atomically(self.results_file, json.dumps(results, indent=2) + "\n")
        self._set_state("finished")
        runs_dir = self.path.parents[2]
        temporary = runs_dir / f".latest.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.path.relative_to(runs_dir))  # relative: the folder of runs may move
        # A link is replaced in one step; deleted and made anew it would be missing in between.
        os.replace(temporary, runs_dir / "latest")

    @property
    def _status_file(self) -> Path:
        return self.path / "status.json"

    def _status(self) -> dict[str, Any]:
        try:
            return json.loads(self._status_file.read_text(encoding="utf-8"))
        except FileNotFoundError:  # killed before the first status
            return {"state": "interrupted"}

    def _set_state(self, state: str) -> None:
        assert state in STATES, state
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        status = {"state": state, "updated": updated, **_identity(os.getpid()), "parent": _parent()}
        write_atomically(self._status_file, json.dumps(status) + "\n")


def latest_run(runs_dir: Path | str) -> RunFolder:
    """The newest finished run.

    Raises:
        UserError: there is none.
    """
    link = Path(runs_dir) / "latest"
    if not link.exists():
        raise UserError(f"no finished run in {runs_dir}; start one with: make train, or name one with RUN=...")
    return RunFolder.open(link)


def find_runs(runs_dir: Path | str, taskset: str = "*", *, finished: bool) -> list[RunFolder]:
    """Finished or resumable runs, oldest first; a run that a live process works on is neither."""
    states = ("finished",) if finished else ("interrupted", "failed")
    runs = [RunFolder(path.parent) for path in Path(runs_dir).glob(f"{taskset}/*/*/config.yaml")]
    # Names begin with the time of the start.
    return sorted((run for run in runs if run.state in states), key=lambda run: run.path.name)


def _is_alive(status: dict[str, Any]) -> bool:
    # A process on another host cannot be seen from here: it counts as alive, and claim() says what to do.
    return status["host"] != socket.gethostname() or status | _identity(status["pid"]) == status


def _identity(pid: int) -> dict[str, Any]:
    """What tells a process from a later one with the same number; its start is None when it is gone."""
    # Starts count from boot, so a process of another boot may have the same number and start.
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else None,
        "started": _start_of(pid),
    }


def _parent() -> list[Any]:
    return [os.getppid(), _start_of(os.getppid())]


def _start_of(pid: int) -> str | None:
    """When a process started (clock ticks since boot on Linux, a date elsewhere), None for a dead one or a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            # The name in parentheses may hold anything; after it come the state (field 3) ... the start (field 22).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    listing = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listing.stdout.strip() or None
