"""Rules that join an item with its task, its files and other items."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from contextlora.errors import tail
from contextlora.tasks.faults import Faults, label, shown
from contextlora.tasks.images import ImageCheck
from contextlora.tasks.task import SPLITS, Item, Task, item_faults

# Of files that somebody may take for items.
_ITEM_SUFFIXES = (".json", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".zip")


class Placed(NamedTuple):
    """An item and where it stands, such as `train/route.jsonl:3`."""

    where: str
    item: Item


class ItemRules:
    """Checks items one by one, in file order, and at the end what they say about one another.

    Args:
        folder: of the task set, which images lie in.
        tasks: by name; their graph need not be one yet.
        faults: where broken rules go.
    """

    def __init__(self, folder: Path, tasks: Mapping[str, Task], faults: Faults) -> None:
        self.tasks, self.faults = tasks, faults
        self.ancestors = {name: _ancestors(name, tasks) for name in tasks}
        for task in tasks.values():
            foreign = [label(name) for name in task.context or () if name not in self.ancestors[task.name]]
            if foreign:
                listed = ", ".join(foreign[:3])
                faults.add("", f"task {label(task.name)}: context must list tasks that it needs, got {listed}")
        self._images = ImageCheck(folder)
        self._ids: set[tuple[str, str, str]] = set()
        self._task_scenes: dict[tuple[str, str], tuple[str, str]] = {}  # (task, scene) -> split and place
        self._scenes: dict[str, tuple[str, str]] = {}  # scene -> split, where it stands first

    def well_formed(self, found: Sequence[Placed]) -> list[Placed]:
        """The items that break no rule by themselves, as those made in memory may; notes the faults of the others."""
        faulty = {placed.where: list(item_faults(vars(placed.item))) for placed in found}
        for where, faults in faulty.items():
            for fault in faults:
                self.faults.add(where, fault)
        return [placed for placed in found if not faulty[placed.where]]

    def check(self, task: Task, split: str, found: Sequence[Placed]) -> None:
        """Notes every rule that well-formed items of one task and split break."""
        for placed in found:
            for fault in (*self._own(task, placed.item), *self._placed(task, split, placed)):
                self.faults.add(placed.where, fault)

    def complete(
        self, items: Mapping[tuple[str, str], Sequence[Placed]]
    ) -> tuple[dict[tuple[str, str], tuple[Item, ...]], dict[tuple[str, str], tuple[str, ...]]]:
        """The items with all the right answers of their scene's ancestors, and their places.

        Given answers that are not right go to the faults.
        """
        words, offered = {}, {}
        for (task, _), rows in items.items():
            words |= {(task, placed.item.scene): placed.item.answer_word for placed in rows}
            offered.setdefault(task, set()).update(word for placed in rows for word in placed.item.options)
        splits = {
            (task, split): tuple(self._with_gold(task, placed, words, offered) for placed in rows)
            for (task, split), rows in items.items()
        }
        return splits, {key: tuple(placed.where for placed in rows) for key, rows in items.items()}

    def _own(self, task: Task, item: Item) -> Iterator[str]:
        name = f"item {label(item.id)}"
        if len(item.options) > task.num_options:
            yield f"{name} has {len(item.options)} options, its task at most {task.num_options}; raise num_options"
        ancestors = self.ancestors[task.name]
        unknown = [label(needed) for needed in item.prerequisites if needed not in ancestors]
        if unknown and ancestors <= self.tasks.keys():  # else the graph is at fault, which is reported once
            few = f"give only {', '.join(sorted(ancestors)[:5])}" if ancestors else "leave them out"
            yield f"{name} answers {', '.join(unknown[:3])}, no prerequisite of {label(task.name)}; {few}"
        # Found out now, not when training comes to the item.
        fault = self._images.fault(item.image) if item.image else ""
        if fault:
            yield f"{name}: image {tail(item.image)} {fault}"

    def _placed(self, task: Task, split: str, placed: Placed) -> Iterator[str]:
        item, scene = placed.item, label(placed.item.scene)
        if (task.name, split, item.id) in self._ids:
            yield f"id {label(item.id)} stands twice in {split}/{task.name}.jsonl; give each item an id of its own"
        self._ids.add((task.name, split, item.id))
        before, place = self._task_scenes.setdefault((task.name, item.scene), (split, placed.where))
        first_split, first = self._scenes.setdefault(item.scene, (split, placed.where))
        if place != placed.where:
            yield (
                f"scene {scene} already has an item of task {task.name} in {before} ({place}); "
                "give each item a scene of its own, and no scene to two splits"
            )
        elif first_split != split:
            yield f"scene {scene} is in {first_split} too ({first}); no scene may be in two splits"

    def _with_gold(
        self, task: str, placed: Placed, words: Mapping[tuple[str, str], str], offered: Mapping[str, set[str]]
    ) -> Item:
        item = placed.item
        right = {name: words[name, item.scene] for name in self.ancestors[task] if (name, item.scene) in words}
        for name, word in item.prerequisites.items():
            scene = f"item {label(item.id)}: {label(name)} of scene {label(item.scene)}"
            if word != right.get(name, word):
                self.faults.add(placed.where, f"{scene} is {shown(right[name])} there, {shown(word)} here; keep one")
            elif name in self.ancestors[task] and name not in right and offered.get(name) and word not in offered[name]:
                self.faults.add(placed.where, f"{scene} must be an option of {label(name)}, got {shown(word)}")
        return (
            item
            if right.keys() <= item.prerequisites.keys()
            else replace(item, prerequisites={**right, **item.prerequisites})
        )


def note_stray_files(folder: Path, tasks: Mapping[str, Task], faults: Faults) -> None:
    """Notes item files that nothing reads: a misspelt name would leave out what it holds without a word."""
    read = {f"{split}/{task}.jsonl" for split in SPLITS for task in tasks}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*"), *folder.glob("*/*/*")]):
        name, suffix = path.relative_to(folder).as_posix(), path.suffix.casefold()
        # In any case of letters: some file systems tell Train from train, and a set must load alike on all.
        in_split = path.relative_to(folder).parts[0].casefold() in SPLITS
        known_place = suffix == ".jsonl" or (in_split and suffix in _ITEM_SUFFIXES)
        if name not in read and known_place and not name.startswith(".") and not path.name.startswith("."):
            faults.add(
                label(name),
                f"belongs to no task; item files are <split>/<task>.jsonl with the splits {', '.join(SPLITS)} and a "
                f"task of taskset.yaml; rename or remove it",
            )


def _ancestors(name: str, tasks: Mapping[str, Task]) -> set[str]:
    """All that a task needs; also where the graph has cycles or gaps, which are reported elsewhere."""
    found: set[str] = set()
    waiting = list(tasks[name].prerequisites)
    while waiting:
        needed = waiting.pop()
        if needed not in found:
            found.add(needed)
            waiting += tasks[needed].prerequisites if needed in tasks else ()
    return found
