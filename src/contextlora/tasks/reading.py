"""Reads a task set's files: YAML and JSON in which nothing is guessed, dropped or without end."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from contextlora.errors import first_line
from contextlora.files import read_file
from contextlora.tasks.faults import Faults, TaskSetError, shown

_MOST_YAML_BYTES = 1 << 20  # PyYAML takes seconds for it
_MOST_YAML_NODES = 200_000  # after aliases are written out: a few lines can make billions
_MOST_JSONL_BYTES = 1 << 31
_MOST_LINE_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_STRING = "tag:yaml.org,2002:str"
_KEPT_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "merge")}
_INT = ("tag:yaml.org,2002:int", re.compile(r"(?:0|-?[1-9][0-9]*)\Z"))  # not 010 or 1:30, which mean 8 and 90


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content without a byte-order mark.

    Raises:
        TaskSetError: it cannot be read, is no ordinary file, or is too large.
    """
    try:
        return read_file(path, most).removeprefix(_BOM)
    except OSError as error:
        raise TaskSetError(f"must be a readable file: {error.strerror or error}") from error


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yields number and value of each JSON line that is not blank; of a broken one a `TaskSetError` as its value.

    Raises:
        TaskSetError: as `read_bytes`.
    """
    # Not splitlines(): JSON may hold U+2028 and other line ends as they are.
    for number, line in enumerate(read_bytes(path, _MOST_JSONL_BYTES).split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line)
            except TaskSetError as error:
                yield number, error


def parse_json(line: bytes, most: int = _MOST_LINE_BYTES) -> Any:
    """One JSON value, with every rule of JSON that Python's reader is lax about."""
    if len(line) > most:
        raise TaskSetError(f"a line must hold at most {most >> 20} MiB, holds {len(line)} bytes")
    try:
        text = line.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite)
        if re.search(r"\\u[dD]", text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeDecodeError as error:
        raise TaskSetError(
            f"must be UTF-8, byte {error.start + 1} is {line[error.start]:#x}; save it as UTF-8"
        ) from None
    except UnicodeEncodeError as error:
        raise TaskSetError(f"holds half of a surrogate pair, {error.object[error.start]!a}; write it whole") from None
    except RecursionError:
        raise TaskSetError("must be a JSON object, lists or objects lie too deep in one another") from None
    except json.JSONDecodeError as error:
        raise TaskSetError(f"not valid JSON: {error}; mend the line") from None
    except TaskSetError:
        raise
    except ValueError:  # Python's own limit
        raise TaskSetError("holds a number of more than 4300 digits; shorten it") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise TaskSetError(f"key {shown(twice)} stands twice in one object; keep one")
    return made


def _refuse_constant(name: str) -> None:
    raise TaskSetError(f"not valid JSON: {name} is no JSON value; write null or a number")


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise TaskSetError(f"a number must be finite, got {shown(text)}")
    return float(text)


class _PlainLoader(yaml.SafeLoader):
    """Reads words as words: `no`, `on`, 1.5 and 2020-01-01 are text, only whole numbers and null are not."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag in _KEPT_TAGS]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    } | {first: [_INT] for first in "-0123456789"}


def read_yaml(path: Path, faults: Faults) -> tuple[Any, dict[str, int]]:
    """A YAML file's value, and the line of each key of its mapping `tasks`; keys that stand twice go to `faults`.

    Raises:
        TaskSetError: as `read_bytes`, or the file is no YAML.
    """
    raw = read_bytes(path, _MOST_YAML_BYTES)
    try:
        loader = _PlainLoader(raw.decode("utf-8"))
        root = loader.get_single_node()
        if root is None:
            return None, {}
        if _check_nodes(root, path.name, faults, {}) > _MOST_YAML_NODES:
            raise TaskSetError(f"must hold at most {_MOST_YAML_NODES} values after aliases are written out")
        return loader.construct_document(root), _task_lines(root)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise TaskSetError(f"must be UTF-8, line {line} holds byte {raw[error.start]:#x}; save it as UTF-8") from None
    except RecursionError:
        raise TaskSetError("is no valid YAML: lists or mappings lie too deep in one another; flatten them") from None
    except TaskSetError:
        raise
    except yaml.MarkedYAMLError as error:
        raise TaskSetError(f"is no valid YAML: {first_line(error)}; mend it there") from error
    except yaml.YAMLError as error:
        raise TaskSetError(f"is no valid YAML: {' '.join(str(error).split())[:150]}; remove it") from error
    except Exception as error:  # PyYAML lets through whatever a wrong value behind an explicit tag causes
        raise TaskSetError(
            "is no valid YAML: a number is too long, or a value does not fit its !!tag; mend it"
        ) from error


def _check_nodes(node: yaml.Node, name: str, faults: Faults, sizes: dict[int, int]) -> int:
    """Number of values under a node with aliases written out; makes all keys text and notes those that stand twice."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise TaskSetError("is no valid YAML: an alias stands within what it names; remove it")
        return sizes[id(node)]
    sizes[id(node)] = 0
    children = []
    if isinstance(node, yaml.ScalarNode) and re.search("[\ud800-\udfff]", node.value):
        faults.add(
            f"{name}:{node.start_mark.line + 1}", f"holds half of a surrogate pair, {shown(node.value)}; write it whole"
        )
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            children += [key, value]
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                key.tag = _STRING
                if key.value in seen:
                    where = f"{name}:{key.start_mark.line + 1}"
                    faults.add(where, f"key {shown(key.value)} stands twice in one mapping; keep one")
                seen.add(key.value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    sizes[id(node)] = 1 + sum(_check_nodes(child, name, faults, sizes) for child in children)
    return sizes[id(node)]


def _task_lines(root: yaml.Node) -> dict[str, int]:
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    tasks = [value for key, value in pairs if key.value == "tasks" and isinstance(value, yaml.MappingNode)]
    return {str(key.value): key.start_mark.line + 1 for value in tasks for key, _ in value.value}
