"""Faults of a task set: gathered while it is read, so that one report names them all."""

from collections.abc import Iterable

from contextlora.errors import UserError, cut, tail

_MOST_SHOWN = 20
_MOST_KEPT = 1000  # of a huge file in a wrong form; the others are only counted
_VALUE = 60


class TaskSetError(UserError):
    """A task set's folder or one of its items breaks a rule of the format.

    Attributes:
        faults: each in a line of its own; the message alone where there is one.
    """

    def __init__(self, message: str, faults: list[str] | None = None, report: Iterable[str] = ()) -> None:
        super().__init__(message, report)
        self.faults = tuple(faults or [message])


class Faults:
    """What breaks the rules in one task set.

    Args:
        source: the task set's folder or name, which begins the report.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.count = 0
        self._kept: list[tuple[str, str]] = []

    def add(self, where: str, rule: str) -> None:
        """Notes that a rule is broken; `where` is a place within the source, or empty for all of it."""
        self.count += 1
        if len(self._kept) < _MOST_KEPT:
            self._kept.append((tail(where), rule))

    def raise_any(self) -> None:
        """Raises `TaskSetError` with a line for each fault, where there is one."""
        if not self.count:
            return
        if self.count == 1:
            [(where, rule)] = self._kept
            raise TaskSetError(cut(f"{tail(f'{self.source}/{where}' if where else self.source)}: {rule}"))
        lines = [cut(f"{where}: {rule}" if where else rule) for where, rule in self._kept]
        heading = f"task set {tail(self.source)} has {self.count} faults:"
        report = [f"  {line}" for line in lines[:_MOST_SHOWN]]
        if self.count > _MOST_SHOWN:
            report.append(f"  and {self.count - _MOST_SHOWN} more; mend these first")
        raise TaskSetError(heading, lines, report)


def shown(value: object) -> str:
    """A value as a message shows it: in one line, short, and with nothing that a terminal would obey."""
    # Cut before it is written out: aliases of YAML make a few lines into more than fits into memory.
    if isinstance(value, dict):
        text = f"a mapping with {len(value)} keys"
        few = list(value)[:3]
        return _short(f"{text} ({', '.join(shown(key) for key in few)})") if few else "{}"
    if isinstance(value, list | tuple):
        parts = [shown(part) for part in value[:4]] if _depth(value) < 3 else ["..."]
        return _short(f"[{', '.join(parts)}{', ...' if len(value) > 4 else ''}]")
    if isinstance(value, str):
        text = value if len(value) <= 2 * _VALUE else value[:_VALUE] + value[-_VALUE:]
        return _short(repr(text) if text.isprintable() else ascii(text))
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**_VALUE:
        return "a number of more than 60 digits"
    return _short(repr(value))


def label(value: object) -> str:
    """A name in a message: as it is where it is plain, else as `shown`."""
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text if text and text.isprintable() and len(text) <= _VALUE else shown(value)


def _short(text: str) -> str:
    # With its end: a message that ended in dots would look broken off.
    return text if len(text) <= _VALUE else f"{text[: _VALUE - 10]} ... {text[-5:]}"


def _depth(value: object, most: int = 3) -> int:
    """How deep lists lie in one another, up to `most`."""
    if not isinstance(value, list | tuple) or not most:
        return 0
    return 1 + max((_depth(part, most - 1) for part in value[:4]), default=0)
