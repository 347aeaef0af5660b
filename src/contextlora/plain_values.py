"""What the values of settings may be, before OmegaConf reads more into them than a user meant."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from contextlora.errors import ConfigError, squeezed

# YAML 1.1 reads these as octal and as base 60: 8 and 90.
_OLD_NUMBER = re.compile(r"[-+]?0[0-9_]*[0-9]|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


def check_numbers(text: str, source: str) -> None:
    """Raises `ConfigError` for numbers in YAML that mean others than they seem to."""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and _OLD_NUMBER.fullmatch(event.value):
            raise ConfigError(
                f"{squeezed(event.value)}{source} is another number in YAML than it seems to be; write it without a "
                "leading 0 and without colons, or text in quotes"
            )


def check_resolved(tree: Any) -> None:
    """Raises `ConfigError` for a value that would be a reference when the settings are read again."""
    for key, value in _values(tree):
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{squeezed(key)} must not hold ${{, got {value[:40]!r}; write the value itself")


def check_leaves(tree: Any, source: str) -> None:
    """Raises `ConfigError` for what OmegaConf would read more into than a value; `source` ends the message."""
    for key, value in _values(tree):
        if value == "???":  # it would be passed over
            raise ConfigError(
                f"{squeezed(key)}{source} is '???', which stands for no value; give one, or leave out the key"
            )
        # A foreign file could copy secrets into what is logged, by ${oc.env:...} and the like.
        if source and isinstance(value, str) and _calls_resolver(value):
            raise ConfigError(
                f"{squeezed(key)}{source} is {value[:40]!r}: a file may refer to its own keys (${{a.b}}), but not "
                "call a resolver; write the value itself, or set it on the command line"
            )


def _values(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each leaf of a plain tree."""
    if not isinstance(tree, dict | list):
        yield key, tree
        return
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _values(value, f"{key}.{name}" if key else str(name))


def _calls_resolver(text: str) -> bool:
    depth = 0
    for mark in re.findall(r"\$\{|[}:]", text):  # a resolver's name may hold references: ${${a}:b}
        if mark == ":" and depth:
            return True
        depth = max(0, depth + {"${": 1, "}": -1, ":": 0}[mark])
    return False
