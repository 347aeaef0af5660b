"""Errors that a user can mend, and errors of others in one line."""

import difflib
import errno
import os
import re
import textwrap
from collections.abc import Iterable

LONGEST = 285  # characters of a message's line: 300 with the program's name before it
LONGEST_WORD, LONGEST_REASON, LONGEST_LIST = 80, 110, 120  # and of what goes into one
# What is wrong with a path, not with what it lies on.
_PATH_ERRORS = (
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENXIO),
)


class UserError(ValueError):
    """A mistake the user can mend; the CLI prints it in one line and exits with 2.

    Args:
        message: a line; line ends in it are those of values, and become their codes.
        report: lines below it.

    Attributes:
        passes: whether a run that it ended may be resumed as it is, as neither its settings nor its data are at fault.
    """

    passes = False

    def __init__(self, message: str, report: Iterable[str] = ()) -> None:
        # A last resort: whoever raises it keeps values short, as only there it is known what the user needs of them.
        super().__init__("\n".join(map(cut, (message, *report))))


class PassingError(UserError):
    """What a run met and may not meet again: a machine, a network or a service is at fault."""

    passes = True


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


def first_line(error: BaseException, but: object = None) -> str:
    """What an error of another library says in its first line, up to 110 characters; its type where it says nothing.

    Args:
        error: of YAML with its line; of others lines that end in ":" or "," with the next.
        but: a path that the message names already, left out.
    """
    text = str(error)
    if mark := getattr(error, "problem_mark", None):
        text = f"line {mark.line + 1}: {error.problem or error.context}"
    if but is not None:
        # With what leads to it and any file below it.
        text = re.sub(rf"(:| in| at)? ?(?<![\w/])['\"]?{re.escape(str(but))}(/[^\s'\"]*)?(?!\w)['\"]?", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = 1
    while lines[said - 1 : said] and lines[said - 1].endswith((":", ",")) and said < len(lines):
        said += 1  # or it would break off in mid-sentence
    line = squeezed(_printable(" ".join(lines[:said]).rstrip(" :,;.")))
    return textwrap.shorten(line, LONGEST_REASON, placeholder=" ...") or type(error).__name__


def tail(path: object, most: int = LONGEST_WORD) -> str:
    """A path in a message, or the end of one that would fill the line."""
    text = str(path) if str(path).isprintable() else ascii(str(path))
    return text if len(text) <= most else f"...{text[3 - most :]}"


def cut(line: str) -> str:
    """A line at its longest: what is too long loses its middle, as rules stand at the start and advice at the end."""
    line = _printable(line)
    if len(line) > LONGEST:
        line = squeezed(line)
    half = (LONGEST - 5) // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def squeezed(line: str) -> str:
    """A line whose words of more than 80 characters have lost their middle."""
    half = (LONGEST_WORD - 3) // 2
    return re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: f"{word[0][:half]}...{word[0][-half:]}", line)


def _printable(line: str) -> str:
    """With codes in place of what a terminal would obey or cannot show."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def suggestion(value: object, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: `; did you mean X?` with the nearest known one, or nothing."""
    near = difflib.get_close_matches(str(value)[:LONGEST_LIST], list(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def explained(error: BaseException) -> tuple[str, int] | None:
    """What to say of an error in one line, and the exit code; None for one that nobody expected."""
    if isinstance(error, UserError):
        return str(error), 2
    if is_out_of_memory(error):
        return (
            "the memory is full; set training.micro_batch_size=auto (the same steps in parts), lower "
            "evaluation.batch_size, or set model.dtype=bfloat16 or model.gradient_checkpointing=true"
        ), 2
    if _is_disk_full(error):
        return "the disk, a quota or a limit of file sizes is full; make room. Earlier runs are as they were", 1
    if isinstance(error, OSError) and error.errno in _PATH_ERRORS and error.filename is not None:
        path = error.filename if error.filename2 is None else error.filename2
        return f"{tail(path)} cannot be read or written ({error.strerror}); check what lies there and who owns it", 2
    return (cut(str(error)), 1) if isinstance(error, OSError) else None


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is a full disk or quota; torch and safetensors only pass its text on."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    texts = [os.strerror(number) for number in full]
    while error is not None:
        if getattr(error, "errno", None) in full or any(text in str(error) for text in texts):
            return True
        error = error.__cause__ or error.__context__
    return False


def known(value: object, names: Iterable[str], prefix: str = "") -> str:
    """As `suggestion`, with the known names behind it."""
    names = list(names)
    return f"{suggestion(value, names, prefix) or ';'} Known: {listed(names)}"


def listed(names: Iterable[str]) -> str:
    """Names in a message: as many as 120 characters hold, at least one, and how many more there are."""
    names = list(names)
    shown = 1
    while shown < len(names) and len(", ".join(names[: shown + 1])) <= LONGEST_LIST:
        shown += 1
    rest = f" and {len(names) - shown} more" if shown < len(names) else ""
    return f"{', '.join(names[:shown]) or 'none'}{rest}"
