"""Divides the scenes of a table into splits, as a mapping says; a scene never stands in two."""

import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from contextlora.tasks.faults import Faults, label, shown
from contextlora.tasks.importers.mapping import SplitRule
from contextlora.tasks.importers.tables import Row
from contextlora.tasks.task import SPLITS


def split_scenes(scenes: Mapping[str, Sequence[Row]], rule: SplitRule, faults: Faults) -> dict[str, str]:
    """The split of each scene.

    Args:
        scenes: with the rows of all their items.
        rule: how to divide them.
        faults: takes scenes that stand in two groups or splits, and unknown splits.
    """
    if rule.by == "scene":
        return _in_order(_shuffled({scene: [scene] for scene in scenes}, rule.seed), rule)
    values = {scene: _value(scene, rows, rule, faults) for scene, rows in scenes.items()}
    if rule.by == "given":
        meant = {str(word): split for split in SPLITS for word in _words(rule.names.get(split, split))}
        for value in sorted({value for value in values.values() if value not in meant}):
            words = ", ".join(map(shown, meant))
            faults.add("", f"split: names must say what {shown(value)} in column {rule.column} means; known: {words}")
        return {scene: meant.get(value, "train") for scene, value in values.items()}
    groups: dict[str, list[str]] = {}
    for scene, value in values.items():
        groups.setdefault(value, []).append(scene)
    if rule.by == "group":
        return _in_order(_shuffled(groups, rule.seed), rule)
    return _in_order([groups[value] for value in sorted(groups, key=_sort_key(groups))], rule)


def _value(scene: str, rows: Sequence[Row], rule: SplitRule, faults: Faults) -> str:
    values = sorted({str(row.cells[rule.column]) for row in rows})
    if rule.by == "time":
        return min(values, key=_sort_key(values))
    if len(values) > 1:
        faults.add(
            rows[0].where, f"scene {label(scene)} has several values of {rule.column}, {shown(values)}; give it one"
        )
    return values[0]


def _sort_key(values: Iterable[str]) -> Callable[[str], Any]:
    """Numbers in their order where all are, else as text, as ISO times sort."""
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return str
    return numbers.__getitem__


def _words(names: object) -> list[object]:
    return list(names) if isinstance(names, list) else [names]


def _shuffled(groups: Mapping[str, list[str]], seed: int) -> list[list[str]]:
    names = sorted(groups)  # whatever the order of the table's rows
    random.Random(seed).shuffle(names)
    return [groups[name] for name in names]


def _in_order(groups: Sequence[Sequence[str]], rule: SplitRule) -> dict[Hashable, str]:
    """The first groups train, the last test; a group belongs where its middle lies."""
    total, before, split = sum(map(len, groups)), 0, {}
    for group in groups:
        middle = 100 * (before + len(group) / 2) / total
        part = (
            "train"
            if middle < 100 - rule.validation - rule.test
            else "validation"
            if middle < 100 - rule.test
            else "test"
        )
        split |= dict.fromkeys(group, part)
        before += len(group)
    return split
