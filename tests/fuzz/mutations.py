"""Damages files and trees of plain values, each time in one way that a random generator draws.

What is drawn depends on the generator and the content alone, so that a number brings an input back.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

OUTSIDE = "../outside/new"  # seen from the working directory of a command; nothing may be written there
TEXTS = (
    *("", " ", "\n", "a\nb", "\u2028", "\ufeff", "\x1b[31m", "\ud800", "\x00", "é", "🙂", "x" * 300, "x" * 5000),
    *("no", "yes", "on", "null", "None", "~", "nan", ".inf", "-inf", "1e999", "010", "1:30", "2020-01-01", "0x10"),
    *(".", "..", "/", "//", "~/x", "a/b", "../../x", OUTSIDE, "/dev/null", "/proc/self/mem", "-1", "--", "-"),
    *("${oc.env:HOME}", "${seed}", "${nothing}", "${", "{}", "[]", "{a: 1}", "%s", "{0}", "{question}", "<image>"),
    *("!!python/object:os.system", "&a *a", "[a](b)", "[bold]", "*", "???", "bundled", "runs", "taskset.yaml"),
)
NUMBERS = (0, 1, -1, 2, 3, 255, 2**31, 2**63 - 1, 2**63, 10**20, 10**400, 0.5, -0.5, 1e-300, 1e39, 1e308)
NUMBERS += (float("nan"), float("inf"), float("-inf"))
DEEP: Any = 1
for _ in range(60):
    DEEP = [DEEP]
VALUES = (None, True, False, [], {}, [[]], {"": ""}, ["a"], [1, "a", None], {"a": {"b": []}}, DEEP)
BYTES = (
    *(b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r", b"\r\n", b"\n", b"\t", b"\xed\xa0\x80"),
    *(b"[" * 5000, b"{" * 5000, b'{"a":' * 5000, b"9" * 5000, b"- " * 3000, b'"', b"'", b":", b"#", b"%", b"&a", b"*a"),
    *(b"NaN", b"Infinity", b"-", b"---\n", b"...\n", b"!!binary ", b"<<: ", b"? ", b"| ", b"null", b"\\ud800", b"\\"),
)


def odd_value(rng: random.Random) -> Any:
    return rng.choice(rng.choice((TEXTS, NUMBERS, VALUES)))


def _places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all values of a tree, its own first."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in inside for place in _places(value, (*path, key)))]


def _at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mutate_tree(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """A tree with one part changed, in place where that is possible, and what was done."""
    *above, key = rng.choice(_places(tree)[1:] or [("",)])
    if key == "":
        return odd_value(rng), "all of it replaced"
    owner, where = _at(tree, tuple(above)), ".".join(map(str, (*above, key)))
    value = owner[key]
    what = rng.choice(("value", "value", "value", "remove", "wrap", "swap", "key", "again", "text", "scale", "trim"))
    if what == "remove":
        del owner[key]
    elif what == "key" and isinstance(owner, dict):
        owner[rng.choice(TEXTS)] = owner.pop(key)
    elif what == "again" and isinstance(owner, list):
        owner += [value] * rng.choice((1, 2, 50))
    elif what == "again":
        owner[rng.choice(TEXTS)] = value
    else:
        owner[key] = {
            "wrap": lambda: rng.choice(([value], {"a": value}, [value, value])),
            "swap": lambda: json.loads(json.dumps(_at(tree, rng.choice(_places(tree))), default=str)),
            "text": lambda: str(value),
            "scale": lambda: value * rng.choice((-1, 0, 2, 1000, 10**9)) if type(value) in (int, float) else 7,
            "trim": lambda: value[: len(value) // 2] if isinstance(value, str | list) else None,
        }.get(what, lambda: odd_value(rng))()
        what += f" -> {ascii(owner[key])[:80]}"
    return tree, f"{where}: {what}"


def mutate_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes with some of them changed, and what was done."""
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((1, 2, 8, 100, 10000)))
    what = rng.choice(("bits", "bits", "cut", "remove", "insert", "insert", "again", "number", "empty", "noise"))
    if what == "bits":
        made = bytearray(content)
        for _ in range(rng.choice((1, 1, 3, 20)) if content else 0):
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
        return bytes(made), "bits turned"
    if what == "number" and (numbers := list(re.finditer(rb"-?\d+(\.\d+)?", content))):
        found, new = rng.choice(numbers), str(rng.choice(NUMBERS)).encode()
        return content[: found.start()] + new + content[found.end() :], f"number at {found.start()} -> {new[:40]!r}"
    odd = rng.choice(BYTES)
    return {
        "cut": (content[:start], f"cut at {start} of {len(content)}"),
        "remove": (content[:start] + content[end:], f"{start}-{end} removed"),
        "again": (content[:end] + content[start:], f"{start}-{end} twice"),
        "empty": (b"", "emptied"),
        "noise": (rng.randbytes(rng.choice((1, 100, 5000))), "noise instead"),
    }.get(what, (content[:start] + odd + content[start:], f"{odd[:12]!r} put in at {start}"))


def mutate_place(path: Path, rng: random.Random) -> str:
    """Puts something else where a file or folder is, and says what."""
    beside = rng.choice(sorted(path.parent.iterdir()))
    root = next(folder for folder in path.parents if (folder / "outside").is_dir())
    what = rng.choice(("none", "folder", "fifo", "device", "dangling", "circle", "beside", "outside", "long", "same"))
    content = path.read_bytes() if path.is_file() else b""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    ways: dict[str, Callable[[], Any]] = {
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/null"),
        "dangling": lambda: path.symlink_to("nowhere"),
        "circle": lambda: path.symlink_to(path.name),
        "beside": lambda: path.symlink_to(beside.name),
        "outside": lambda: path.symlink_to(root / "outside" / "file"),
        "long": lambda: path.with_name("x" * 255).write_bytes(content),
        "same": lambda: path.with_name(rng.choice((" ", "a\nb", "\u2028", path.name + ".yaml"))).write_bytes(content),
    }
    ways.get(what, lambda: None)()
    return f"in its place: {what}"


def mutate_file(path: Path, rng: random.Random) -> str:
    """Changes a file by its kind: its tree, its bytes, or what lies there at all; says what was done."""
    if path.is_dir() or rng.random() < 0.12:
        return mutate_place(path, rng)
    content, suffix = path.read_bytes(), path.suffix
    if rng.random() < 0.35 or suffix not in (".json", ".jsonl", ".yaml", ".safetensors"):
        made, what = mutate_bytes(content, rng)
    elif suffix == ".jsonl":
        lines = content.splitlines(keepends=True)
        number = rng.randrange(len(lines))
        tree, what = mutate_tree(json.loads(lines[number]), rng)
        lines[number], what = json.dumps(tree).encode() + b"\n", f"line {number + 1}: {what}"
        made = b"".join(lines)
    elif suffix == ".safetensors":
        start = 8 + int.from_bytes(content[:8], "little")
        tree, what = mutate_tree(json.loads(content[8:start]), rng)
        header = json.dumps(tree).encode()
        made, what = len(header).to_bytes(8, "little") + header + content[start:], f"header: {what}"
    elif suffix == ".json":
        tree, what = mutate_tree(json.loads(content), rng)
        made = json.dumps(tree).encode()
    else:
        tree, what = mutate_tree(yaml.safe_load(content), rng)
        made = yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")
    path.write_bytes(made)
    return what


def odd_text(rng: random.Random) -> str:
    """Something odd as an argument may hold it."""
    return rng.choice((*TEXTS, *map(str, NUMBERS), "1", "true")).replace("\0", "")


def mutate_text(text: str, rng: random.Random) -> str:
    """One argument changed, as far as a shell can pass it."""
    start = rng.randrange(len(text) + 1)
    key, equals, value = text.partition("=")
    odd = odd_text(rng)
    if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", value) and rng.random() < 0.6:
        return f"{key}={float(value) * rng.choice((0, -1, 0.01, 0.5, 1.5, 2, 100, 1e6)):{rng.choice(('g', '.0f'))}}"
    return rng.choice(
        (*[key + equals + odd] * 6, text + odd, text[:start], text[:start] + odd + text[start:], odd, value, key * 2)
    )


# A number of any length may stand in an input; Python writes out 4300 digits.
assert max(len(str(number)) for number in NUMBERS) < 4300
