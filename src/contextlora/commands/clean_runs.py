"""`contextlora clean-runs`: what takes space among the runs, and which of it no command needs any more.

    checkpoints   of a finished run: nothing is left to resume, its stage files hold what evaluate and export read
    leftovers     half-written files and folders of processes that were killed

Everything else stays: results, figures, adapters, stage files, what a run needs to go on, and all of a live run.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.errors import UserError
from contextlora.evaluation.report import as_rich, print_in_full
from contextlora.files import leftovers, remove_leftover
from contextlora.runs import RunFolder, all_runs

CHECKPOINTS = ("last.ckpt", "previous.ckpt")


@dataclass(frozen=True)
class Space:
    """What a run, or the folder of runs without them, takes.

    Attributes:
        name: of the row.
        state: of the run.
        num_bytes: of everything in it.
        checkpoints, leftovers: what can go.
    """

    name: str
    state: str
    num_bytes: int
    checkpoints: tuple[Path, ...] = ()
    leftovers: tuple[Path, ...] = ()

    @property
    def removable_bytes(self) -> int:
        """Of all that can go."""
        return sum(map(size_of, (*self.checkpoints, *self.leftovers)))

    @property
    def row(self) -> tuple[str, ...]:
        """Of the table."""
        kinds = Counter(checkpoints=len(self.checkpoints), leftovers=len(self.leftovers))
        what = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number) or "-"
        return self.name, self.state, in_units(self.num_bytes), in_units(self.removable_bytes), what


def clean_runs(config: RunConfig, yes: bool = False) -> None:
    """Prints what every run takes; with `yes` also removes what no command needs."""
    runs_dir = Path(config.runs_dir)
    spaces = [_space_of(run, runs_dir) for run in all_runs(runs_dir)]
    if strays := tuple(leftovers(runs_dir, deep=False)):
        spaces.append(Space("(in no run)", "-", sum(map(size_of, strays)), leftovers=strays))
    if not spaces:
        CONSOLE.print(f"no runs in {runs_dir}")
        return
    rows = [space.row for space in spaces]
    print_in_full(CONSOLE, as_rich(f"Space in {runs_dir}", ("run", "state", "size", "removable", "what"), rows))
    taken, removable = (sum(getattr(space, key) for space in spaces) for key in ("num_bytes", "removable_bytes"))
    CONSOLE.print(f"all: {in_units(taken)}, removable: {in_units(removable)}")
    found = sum(len(space.checkpoints) + len(space.leftovers) for space in spaces)
    if not found:
        return
    if not yes:
        CONSOLE.print("nothing was removed; remove it with: make clean-runs ARGS=--yes")
        return
    for space in spaces:
        for path in space.checkpoints:
            path.unlink(missing_ok=True)
        for path in space.leftovers:
            remove_leftover(path)
    CONSOLE.print(f"removed {in_units(removable)}")


def _space_of(run: RunFolder, runs_dir: Path) -> Space:
    name, state, num_bytes = os.path.relpath(run.path, runs_dir), run.state, size_of(run.path)
    if state == "running":
        return Space(name, state, num_bytes)
    return Space(name, state, num_bytes, _needless_checkpoints(run), tuple(leftovers(run.path)))


def _needless_checkpoints(run: RunFolder) -> tuple[Path, ...]:
    """Those of a finished run whose stages all have whole files: for another a checkpoint may hold what it held."""
    try:
        num_stages = len(run.results["stages"]) if run.state == "finished" else 0
    except (UserError, KeyError, TypeError):
        return ()
    folder = run.path / "checkpoints"
    found = tuple(path for name in CHECKPOINTS if (path := folder / name).is_file())
    return found if found and num_stages and _are_whole(folder, num_stages) else ()


def _are_whole(folder: Path, num_stages: int) -> bool:
    from contextlora.training.stage_files import DamagedSlicesError, read_slices  # brings torch, which takes seconds

    try:
        for number in range(1, num_stages + 1):
            read_slices(folder / f"stage-{number}.safetensors")
    except DamagedSlicesError:
        return False
    return True


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count as links."""
    if path.is_symlink() or not path.is_dir():
        try:
            return path.lstat().st_size
        except OSError:  # a live run replaces its files
            return 0
    return sum(size_of(Path(root, name)) for root, _, names in os.walk(path) for name in names)


def in_units(num_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
