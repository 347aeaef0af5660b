"""Where a run's figures are logged: Weights & Biases, or a silent twin with the same interface.

W&B's files go into the run folder and nothing is printed. Without a login runs are logged offline: `wandb leet` shows
them in the terminal, and `wandb sync` can upload them later. A resumed run continues the W&B run that it began.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contextlora.errors import PassingError, first_line
from contextlora.files import write_atomically


class Tracker:
    """The silent twin: takes everything, keeps nothing. WandbTracker has the same methods."""

    how_to_show: str | None = None

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Log the resolved configuration, sections as nested mappings."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at an optimizer step; steps may repeat, as after a resume."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

    def log_image(self, name: str, path: Path) -> None:
        """Log an image file."""

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Log the figures that stand for the whole run."""

    def finish(self, succeeded: bool = True) -> None:
        """Close the run; whatever is logged later is lost."""


class WandbTracker(Tracker):
    """A W&B run whose files lie in the run folder."""

    def __init__(self, run: Any, folder: Path) -> None:
        self._run = run
        # Our own step, since W&B's cannot go back to a checkpoint.
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        wandb_command = Path(sys.executable).with_name("wandb")
        # An offline run has no URL.
        self.how_to_show = run.url or f"{os.path.relpath(wandb_command)} leet {os.path.relpath(folder / 'wandb')}"

    def log_config(self, config: Mapping[str, Any]) -> None:  # noqa: D102
        # A resume may change settings, such as the number of devices.
        self._run.config.update(dict(config), allow_val_change=True)

    def log(self, metrics: Mapping[str, float], step: int) -> None:  # noqa: D102
        self._run.log({**metrics, "step": step})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:  # noqa: D102
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def log_image(self, name: str, path: Path) -> None:  # noqa: D102
        import wandb

        self._run.log({name: wandb.Image(str(path))})

    def log_summary(self, values: Mapping[str, Any]) -> None:  # noqa: D102
        self._run.summary.update(dict(values))

    def finish(self, succeeded: bool = True) -> None:  # noqa: D102
        self._run.finish(exit_code=0 if succeeded else 1)


def open_tracker(mode: str, project: str, folder: Path, name: str) -> Tracker:
    """Start, or continue, the tracking of a run.

    Args:
        mode: auto (online when logged in, else offline), online, offline or off.
        project: W&B project.
        folder: the run folder; W&B writes to its `wandb/`, and nowhere else.
        name: what the run is called on W&B.

    Raises:
        UserError: `online`, and the server cannot be reached or refuses the login.
    """
    if mode == "off":
        return Tracker()
    home = folder / "wandb"
    home.mkdir(exist_ok=True)
    # wandb reads these once a process: a later run of a notebook shares the scratch space of its first.
    os.environ.setdefault("WANDB_DATA_DIR", str(home.resolve() / "data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(home.resolve() / "cache"))
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    wandb.setup(settings)  # before login, which would print
    # With the id of its first process a resumed run goes on in the same W&B run.
    options = {"project": project, "name": name, "dir": str(folder), "id": _run_id(home), "resume": "allow"}
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or _reachable_mode(wandb)
    try:
        return WandbTracker(wandb.init(mode=mode, settings=settings, **options), folder)
    except wandb.Error as error:
        raise PassingError(
            f"W&B did not start: {first_line(error)}; log in with `wandb login` or set tracking.mode=offline"
        ) from error


def _reachable_mode(wandb: Any) -> str:
    """Online when there is a login that the server accepts now."""
    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.Error as error:
        print(f"W&B: logging offline, the login failed ({str(error).splitlines()[0]})", file=sys.stderr)
        return "offline"


def _run_id(home: Path) -> str:
    """The W&B id of this run folder: a sweep's agent gives one, otherwise it is made on first use."""
    file = home / "run-id"
    if not file.is_file():  # a pipe would be waited for
        write_atomically(file, os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    return file.read_text()
