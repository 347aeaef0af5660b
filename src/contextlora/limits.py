"""What a setting's value may be: by its type and the limits beside it, from the command line as from Python."""

import math
import operator
from collections.abc import Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from contextlora.errors import ConfigError

# How a limit of `settings.setting` reads, and what holds for a number within it.
LIMITS = {
    "minimum": ("at least", operator.ge),
    "maximum": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}
WHOLE = 2**63 - 1  # what torch, numpy and files take
# Beyond it products of two or three settings are more than a float32 holds, in which the weights are.
LARGEST = 10**9
PATH_BYTES, NAME_BYTES = 3000, 255  # file systems take 4095 and 255; a run's files lie some folders deeper
WORDS = {
    int: f"a whole number of at most {WHOLE}",
    float: "a finite number from -1e9 to 1e9",
    str: "text without NUL and lone surrogates",
    bool: "true or false",
    NoneType: "null",
}


def check_values(section: Any, prefix: str) -> None:
    """Checks all fields of a dataclass by their types, and by the limits in their metadata.

    Args:
        section: an instance; its numbers must be finite also within lists and mappings.
        prefix: of its keys in messages, with the dot.

    Raises:
        ConfigError: key, rule and value of the first that does not fit.
    """
    hints = get_type_hints(type(section))
    for entry in fields(section):
        value, hint, key = getattr(section, entry.name), hints[entry.name], prefix + entry.name
        if not fits(value, hint):
            raise ConfigError(f"{key} must be {rule(hint)}, got {shown(value)}")
        if entry.metadata.get("is_path") and not _fits_on_disk(value):
            said = f"a path of at most {PATH_BYTES} bytes, {NAME_BYTES} for each name in it"
            raise ConfigError(f"{key} must be {said}, got {shown(value)}")
        limits = {name: entry.metadata[name] for name in LIMITS if name in entry.metadata}
        for number in value.values() if isinstance(value, dict) else [value]:
            if isinstance(number, int | float) and not all(LIMITS[name][1](number, limits[name]) for name in limits):
                said = " and ".join(f"{LIMITS[name][0]} {limit}" for name, limit in limits.items())
                raise ConfigError(f"{key} must be {said}, got {shown(number)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says, as far as settings use them; numbers must be finite."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return value in inner
    if kind in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if kind is Any:
        if isinstance(value, float):
            return math.isfinite(value)
        kind = type(value) if isinstance(value, str | list | dict) else object
    if kind is list:
        return isinstance(value, list | tuple) and all(fits(one, *inner or (Any,)) for one in value)
    if kind in (dict, Mapping):
        of_key, of_value = inner or (Any, Any)
        is_mapping = isinstance(value, Mapping)
        return is_mapping and all(fits(name, of_key) and fits(one, of_value) for name, one in value.items())
    if kind in (int, float):
        # Compared, not converted: an int may be larger than any float. To Python, True is an int.
        most = WHOLE if kind is int else LARGEST
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return is_number and -most <= value <= most
    return isinstance(value, kind) and (not isinstance(value, str) or is_text(value))


def is_text(value: str) -> bool:
    """Whether files and paths can hold it."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _fits_on_disk(path: str) -> bool:
    parts = path.encode().split(b"/")
    return len(path.encode()) <= PATH_BYTES and all(len(part) <= NAME_BYTES for part in parts)


def rule(hint: Any) -> str:
    """What an annotation allows, as the end of "must be"."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return "one of " + ", ".join(inner) if len(inner) > 1 else inner[0]
    if kind in (Union, UnionType):
        return " or ".join(dict.fromkeys(rule(one) for one in inner))
    if kind is list:
        return "a list" + (f" of {rule(*inner)}" if inner and inner[0] is not Any else "; its numbers finite")
    if kind in (dict, Mapping):
        return "a mapping of names to " + (rule(inner[1]) if inner and inner[1] is not Any else "finite values")
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def shown(value: Any) -> str:
    """A value as messages write it, cut to about 60 characters."""
    try:
        text = repr(value) if isinstance(value, str | bytes | list | dict | tuple) else str(value)
    except (ValueError, RecursionError):  # Python refuses to write out a number of 5000 digits
        return f"{type(value).__name__} of too many digits or levels"
    return text if len(text) <= 60 else f"{text[:50]} ... ({len(text)} characters)"
