"""The schemas for editors take what loads and refuse what does not, and know every key."""

import json
import re
from pathlib import Path

import pytest
import yaml

from contextlora.tasks.description import SET_KEYS
from contextlora.tasks.example import SCHEMAS, write_example
from contextlora.tasks.faults import TaskSetError
from contextlora.tasks.generators import iov
from contextlora.tasks.task import TASK_KEYS, Item, item_faults
from contextlora.tasks.taskset import TaskSet

ROOT = Path(__file__).parents[2]
SET, ITEM = (json.loads((SCHEMAS / f"{name}.schema.json").read_text()) for name in ("taskset", "item"))
TASK = SET["definitions"]["task"]
KINDS = {"string": str, "integer": int, "number": int | float, "object": dict, "array": list, "null": type(None)}
LIMITS = {
    "pattern": lambda text, limit: not isinstance(text, str) or re.search(limit, text),
    "minLength": lambda text, limit: text is None or len(text) >= limit,
    "maxLength": lambda text, limit: not isinstance(text, str) or len(text) <= limit,
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "minItems": lambda rows, limit: len(rows) >= limit,
    "minProperties": lambda value, limit: len(value) >= limit,
    "uniqueItems": lambda rows, _: len(set(rows)) == len(rows),
    "required": lambda value, keys: set(keys) <= set(value),
}
KNOWN = {*LIMITS, "type", "properties", "additionalProperties", "items", "description", "title", "$schema"}


def takes(schema, value):
    """Whether a value is as a schema wants it, of as much of the standard as these schemas use."""
    if "$ref" in schema:
        return takes(TASK, value)
    assert set(schema) <= KNOWN | {"definitions"}
    kinds = schema.get("type", list(KINDS))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if "type" in schema and (isinstance(value, bool) or not any(isinstance(value, KINDS[kind]) for kind in kinds)):
        return False
    if not all(holds(value, schema[name]) for name, holds in LIMITS.items() if name in schema):
        return False
    parts = []
    if isinstance(value, dict):
        rest = schema.get("additionalProperties", True)
        parts = [(schema.get("properties", {}).get(key, rest), part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(schema.get("items", True), part) for part in value]
    return all(one if isinstance(one, bool) else takes(one, part) for one, part in parts)


def test_the_schemas_and_the_documentation_know_every_key():
    assert set(SET["properties"]) == set(SET_KEYS)
    assert set(TASK["properties"]) == set(TASK_KEYS)
    assert set(ITEM["properties"]) == set(Item.__dataclass_fields__)
    text = (ROOT / "docs" / "extending.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert rows >= {*SET_KEYS, *TASK_KEYS, *Item.__dataclass_fields__}
    keys = [SET["properties"], TASK["properties"], ITEM["properties"]]
    assert all(key.get("description") for properties in keys for key in properties.values())


RIGHT = {"id": "1", "scene": 7, "question": "which ?", "options": ["x", "y"], "answer": 1}


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({}, True),
        ({"id": ""}, False),
        ({"id": " 1"}, False),
        ({"scene": None}, False),
        ({"scene": 1.5}, False),
        ({"question": " "}, False),
        ({"options": ["x"]}, False),
        ({"options": ["x", "x"]}, False),
        ({"options": "xy"}, False),
        ({"answer": -1}, False),
        ({"answer": True}, False),
        ({"answer": "x"}, False),
        ({"image": None, "image_text": None, "parents": None, "fields": None, "metadata": None}, True),
        ({"image": ""}, False),
        ({"image_text": 1}, False),
        ({"prerequisites": {"a": "x"}, "parents": {"a": 1}, "fields": {"n": 1.5}, "metadata": [1]}, True),
        ({"prerequisites": None}, False),
        ({"prerequisites": {"a": 1}}, False),
        ({"parents": ["a"]}, False),
        ({"parents": {"a": ["1"]}}, False),
        ({"fields": {"n": []}}, False),
        ({"note": "mine"}, False),
    ],
)
def test_an_item_is_right_by_the_schema_where_it_loads(change, right):
    record = RIGHT | change
    assert takes(ITEM, record) is right
    assert (list(item_faults(record)) == []) is right


@pytest.mark.parametrize(
    ("old", "new", "right"),
    [
        ("name: mine", "name: 7", True),
        ("name: mine", "", True),
        ("name: mine", "name: a/b", False),
        ("name: mine", "name: mine\nmetadata: [1, {a: b}]", True),
        ("name: mine", "name: mine\nnote: 1", False),
        ("name: mine", "template: '{question} {options}'\nas_context: '{answer}'", True),
        ("name: mine", "template: '{options}'", False),
        ("name: mine", "template: 1", False),
        ("name: mine", "as_context: no word of it", False),
        ("num_options: 2", "num_options: 1", False),
        ("num_options: 2", "", False),
        ("num_options: 2", "num_options: 2\n    rule: [[x]]\n    template: '{question} {option_lines}'", True),
        ("num_options: 2", "num_options: 2\n    rule: [[1]]", False),
        ("num_options: 2", "num_options: 2\n    as_context: [a]", False),
        ("num_options: 2", "num_options: 2\n    context: all", False),
        ("num_options: 2", "num_options: 2\n    metadata: {a: 1}", True),
        ("num_options: 2", "num_options: 2\n    note: 1", False),
        ("prerequisites: []", "prerequisites: state", False),
        ("prerequisites: []", "", True),
    ],
)
def test_a_description_is_right_by_the_schema_where_it_loads(old, new, right, tmp_path):
    write_example(tmp_path / "mine")
    path = tmp_path / "mine" / "taskset.yaml"
    text = path.read_text().replace('name: "mine"', "name: mine")
    assert old in text and takes(SET, yaml.safe_load(text))
    path.write_text(text.replace(old, new, 1))
    assert takes(SET, yaml.safe_load(path.read_text())) is right
    if right:
        assert TaskSet.load(path.parent).tasks
    else:
        with pytest.raises(TaskSetError):
            TaskSet.load(path.parent)


def test_an_example_brings_its_schema_along(tmp_path):
    write_example(tmp_path / "mine")
    first = (tmp_path / "mine" / "taskset.yaml").read_text().splitlines()[0]
    named = tmp_path / "mine" / first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(named.read_text()) == SET
    for path in (tmp_path / "mine").glob("*/*.jsonl"):
        assert all(takes(ITEM, json.loads(line)) for line in path.read_text().splitlines())


def test_shipped_items_are_right(tmp_path):
    iov.build(tmp_path, 0, {"train": 2, "validation": 1, "test": 1})
    assert takes(SET, yaml.safe_load((tmp_path / "taskset.yaml").read_text()))
    for path in tmp_path.glob("*/*.jsonl"):
        assert all(takes(ITEM, json.loads(line)) for line in path.read_text().splitlines())
