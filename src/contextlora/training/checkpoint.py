# ruff: noqa: D102 - Lightning's hooks say what they are by their names
"""Checkpoints that survive a kill at any instant, and that say what is wrong with them."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from contextlora.errors import UserError, first_line, squeezed, tail
from contextlora.files import write_atomically
from contextlora.limits import shown
from contextlora.trees import from_bytes, to_bytes

FORMAT = 4
KEY = "contextlora"  # our part of a Lightning checkpoint
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_SEAL = b"contextlora-sha256:"  # begins what stands behind a checkpoint's own bytes


class CheckpointError(UserError):
    """A checkpoint that is damaged, of another program or of another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose bytes are not those that were written."""


class AtomicCheckpointIO(CheckpointIO):
    """After a kill or a power cut there is the old checkpoint or the new one, never half of it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        for key, state in checkpoint.get("callbacks", {}).items():
            _check_callback(key, state)
        content = to_bytes(checkpoint)
        new = path.with_name(f".{path.name}.new")
        try:
            write_atomically(new, content + _SEAL + hashlib.sha256(content).digest())
            _read_sealed(new)  # the one before goes only when this one can be read
            if path.name == LAST and path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(new, path)
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _check_callback(key: str, state: Any) -> None:
    """Raises `CheckpointError` for what no checkpoint can hold."""
    try:
        to_bytes(state)
    except TypeError as error:
        raise CheckpointError(
            f"A callback's state_dict may hold only numbers, text, lists, dicts and tensors: that of {squeezed(key)}: "
            f"{first_line(error)}. Turn it into one of these."
        ) from error


def _read_sealed(path: Path) -> bytes:
    """A checkpoint's own bytes, as they were written."""
    content = path.read_bytes()
    if content.startswith(b"PK\x03\x04"):  # a zip file of pickles; two bytes alone may be the length of our header
        raise CheckpointError(
            f"A checkpoint must have format {FORMAT}: {tail(path)} is older. Resume it with the version that wrote it."
        )
    start = max(0, len(content) - len(_SEAL) - 32)
    content, seal = content[:start], content[start:]
    if seal != _SEAL + hashlib.sha256(content).digest():
        raise OSError("its checksum is wrong")
    return content


def newest_whole(last: Path, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """The last checkpoint and its path, or the one before where that is damaged; None where there is none.

    Raises:
        CheckpointError: neither can be read.
    """
    damage = None
    for path in (last, last.with_name(PREVIOUS)):
        if path.exists() and not path.is_file():  # in whose place the next checkpoint could not be put
            raise CheckpointError(
                f"A checkpoint must be an ordinary file: {tail(path)} is a folder, a pipe or a device. Remove it."
            )
        if path.is_file():
            try:
                checkpoint = load_checkpoint(path)
            except DamagedCheckpointError as error:
                damage = damage or error
                continue
            if damage:
                say(f"{last.name} is damaged: going on from the checkpoint before, {path.name}")
            return path, checkpoint
    if damage:
        raise damage
    return None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint; no code in it could run.

    Raises:
        CheckpointError: the file is missing, damaged, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"A checkpoint must exist: there is no {tail(path)}. Give a run folder that holds one.")
    try:
        checkpoint = from_bytes(_read_sealed(path))
    except CheckpointError:
        raise
    except Exception as error:  # of safetensors, JSON or the tree, by where the damage lies
        raise _damaged(path, first_line(error, but=path)) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(KEY), dict):
        raise CheckpointError(
            f"A checkpoint must come from ContextLoRA: {tail(path)} was written by another program. Give its own run."
        )
    if checkpoint[KEY].get("format") != FORMAT:
        raise CheckpointError(
            f"A checkpoint must have format {FORMAT}: {tail(path)} has {shown(checkpoint[KEY].get('format'))}. "
            "Resume it with the version that wrote it."
        )
    if name := _name_not_finite(checkpoint):
        raise _damaged(path, f"{name} of the optimizer holds nan or infinity")
    return checkpoint


def _damaged(path: Path, why: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"A checkpoint must be whole: {tail(path)} cannot be read ({why}). Delete the "
        f"folder {path.parent.name} to begin the run anew with make resume."
    )


def _name_not_finite(checkpoint: Mapping[str, Any]) -> str:
    """The first of the optimizer's moments that is not finite; the module looks at the weights when it takes them."""
    for optimizer in checkpoint.get("optimizer_states", []):
        for moments in optimizer["state"].values():
            for name, value in moments.items():
                if isinstance(value, Tensor) and not value.isfinite().all():
                    return name
    return ""


def check_identity(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Compares what a checkpoint was made with to what is here.

    Raises:
        CheckpointError: names the first part that differs.
    """
    for part, value in expected.items():
        if found.get(part) != value:
            made_with = squeezed(str(found.get(part)))
            raise CheckpointError(
                f"A checkpoint must be resumed with the {part} that it was made with: it has {made_with}, "
                f"here it is {squeezed(value)}. Restore the {part} or train again."
            )
