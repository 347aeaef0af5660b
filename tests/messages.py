"""Every `UserError` of a test, from any of its processes, held against the rules for messages; see `rule_broken`."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contextlora.errors import UserError

LONGEST = 300
SOURCE = str(Path(__file__).parents[1] / "src")
REPORT = re.compile(r"has \d+ faults:")
# What asks for a change: an order where a clause begins, a rule, a setting, or the names there are.
_ORDERS = (
    "add begin call change check choose close copy declare delete end flatten give install keep leave let load log "
    "look lower make match mend move name plan predict put raise remove rename replace restore resume save set "
    "shorten start take train try turn use wait write"
)
ADVICE = re.compile(
    rf"(^|[;:.,?(] |\b(or|and|only) )({'|'.join(_ORDERS.split())})\b"
    r"|\b(must|may only|no [a-z]+ may|needs at least|did you mean|known: (?!none\b)\S|one of \w)"
    r"|\b\w+\.\w+=",
    re.IGNORECASE,
)
BROKEN_OFF = re.compile(r"([:/,;(=+-]|\.\.\.|\b(one of|and|or|of|the|to|with|by|is|are|got))$", re.IGNORECASE)


def rule_broken(message: str) -> str:
    """The first rule that a message to users breaks, or nothing.

    Each is one line of at most 300 characters that is not broken off and names what to change. The report of a task set
    has a heading, and a line for each fault that keeps these rules.
    """
    lines = message.split("\n")
    if len(lines) > 1:
        if not REPORT.search(lines[0]) or not all(line.startswith("  ") for line in lines[1:]):
            return "more than one line, and no report of faults"
        if len(lines[0]) > LONGEST:
            return "too long"
        return next(filter(None, map(rule_broken, (line.strip() for line in lines[1:]))), "")
    if len(message) > LONGEST:
        return "too long"
    if not message.isprintable():
        return "not printable"
    if not message or BROKEN_OFF.search(message):
        return "broken off"
    return "" if ADVICE.search(message) else "no word of what to change"


@contextmanager
def recorded_errors() -> Iterator[list[tuple[str, str]]]:
    """Fills the list, at the end, with place and message of every `UserError` that the package made.

    Tests make some of their own, which are left out. Processes that a test forks write into the same file.
    """
    made: list[tuple[str, str]] = []
    own = UserError.__init__
    with tempfile.TemporaryFile("ab+", buffering=0) as file:

        def record(self: UserError, *arguments: object) -> None:
            own(self, *arguments)
            if place := _place():
                file.write(json.dumps([place, str(self)]).encode() + b"\n")

        UserError.__init__ = record
        try:
            yield made
        finally:
            UserError.__init__ = own
            file.seek(0)
            made += [tuple(json.loads(line)) for line in file]


def _place() -> str:
    """File and line in the package that an error is made at, or nothing where a test makes it."""
    frame = sys._getframe(2)
    while frame.f_code.co_name == "__init__" or frame.f_code.co_filename.endswith("faults.py"):  # which others fill
        frame = frame.f_back
    path = frame.f_code.co_filename
    return f"{os.path.relpath(path, SOURCE)}:{frame.f_lineno}" if path.startswith(SOURCE) else ""
