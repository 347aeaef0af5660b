"""Errors that a user can mend, and errors of others in one line."""

import difflib
import errno
import os
from collections.abc import Iterable

# What is wrong with a path, not with what it lies on.
_PATH_ERRORS = (
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENXIO),
)


class UserError(ValueError):
    """A mistake the user can mend; the CLI prints it in one line and exits with 2."""


class ConfigError(UserError):
    """A configuration key or value that does not fit the schema."""


class NotFiniteError(UserError):
    """A number that training or evaluation goes on with is nan or infinite."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"all numbers must be finite, but {what}; train again: lower training.learning_rate or set "
            "model.dtype=float32"
        )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is a lack of memory; torch says so by a name or in its text only."""
    while error is not None:
        text = f"{type(error).__name__}: {error}"
        if any(word in text for word in ("MemoryError", "out of memory", "allocate memory")):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    """What an error says in its first line that is not blank, whole; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = 1
    while lines[said - 1 : said] and lines[said - 1].endswith((":", ",")) and said < len(lines):
        said += 1  # or it would break off in mid-sentence
    return " ".join(lines[:said])[:200] or type(error).__name__


def suggestion(value: object, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: `; did you mean X?` with the nearest known one, or nothing."""
    near = difflib.get_close_matches(str(value), list(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def explained(error: BaseException) -> tuple[str, int] | None:
    """What to say of an error in one line, and the exit code; None for one that nobody expected."""
    if isinstance(error, UserError):
        return str(error), 2
    if is_out_of_memory(error):
        return (
            "the memory is full; lower training.batch_size (training.steps_per_task makes up for it), "
            "evaluation.batch_size or method.rank, or set model.dtype=bfloat16, and train again"
        ), 2
    if _is_disk_full(error):
        return "the disk, a quota or a limit of file sizes is full; make room. Earlier runs are as they were", 1
    if isinstance(error, OSError) and error.errno in _PATH_ERRORS and error.filename is not None:
        path = error.filename if error.filename2 is None else error.filename2
        return f"{path} cannot be read or written ({error.strerror}); see what lies there and whose it is", 2
    return (str(error), 1) if isinstance(error, OSError) else None


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is a full disk or quota; torch and safetensors only pass its text on."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    texts = [os.strerror(number) for number in full]
    while error is not None:
        if getattr(error, "errno", None) in full or any(text in str(error) for text in texts):
            return True
        error = error.__cause__ or error.__context__
    return False
