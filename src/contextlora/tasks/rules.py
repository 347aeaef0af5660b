"""Rules that join an item with its task, its files and other items."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from contextlora.errors import listed, tail
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
        # Before each ancestor all those that need it.
        self._downwards = {
            name: sorted(above, key=lambda one: (-len(self.ancestors.get(one, ())), one))
            for name, above in self.ancestors.items()
        }
        self._images = ImageCheck(folder)
        self._ids: set[tuple[str, str, str]] = set()
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
        """The items with all their parents and these' right answers, and their places.

        Given answers that are not right go to the faults, as do parents that are not there or not named.
        """
        offered: dict[str, set[str]] = {}
        for (task, _), rows in items.items():
            offered.setdefault(task, set()).update(word for placed in rows for word in placed.item.options)
        found: _Families = {}
        splits = dict.fromkeys(items)
        # Parents come first: whatever a task needs has fewer ancestors than the task itself.
        for task, split in sorted(items, key=lambda key: len(self.ancestors[key[0]])):
            rows = [self._with_parents(task, placed, found) for placed in items[task, split]]
            splits[task, split] = tuple(self._with_gold(task, placed, found, offered) for placed in rows)
            for item in splits[task, split]:
                found.setdefault((task, item.scene), {})[item.id] = item
        return splits, {key: tuple(placed.where for placed in rows) for key, rows in items.items()}

    def _own(self, task: Task, item: Item) -> Iterator[str]:
        name = f"item {label(item.id)}"
        if len(item.options) > task.num_options:
            yield f"{name} has {len(item.options)} options, its task at most {task.num_options}; raise num_options"
        ancestors = self.ancestors[task.name]
        unknown = [label(needed) for needed in {**item.prerequisites, **item.parents} if needed not in ancestors]
        if unknown and ancestors <= self.tasks.keys():  # else the graph is at fault, which is reported once
            few = f"give only {', '.join(sorted(ancestors)[:5])}" if ancestors else "leave them out"
            yield f"{name} names {', '.join(unknown[:3])}, no prerequisite of {label(task.name)}; {few}"
        # Found out now, not when training comes to the item.
        fault = self._images.fault(item.image) if item.image else ""
        if fault:
            yield f"{name}: image {tail(item.image)} {fault}"

    def _placed(self, task: Task, split: str, placed: Placed) -> Iterator[str]:
        item, scene = placed.item, label(placed.item.scene)
        if (task.name, split, item.id) in self._ids:
            yield f"id {label(item.id)} stands twice in {split}/{task.name}.jsonl; give each item an id of its own"
        self._ids.add((task.name, split, item.id))
        first_split, first = self._scenes.setdefault(item.scene, (split, placed.where))
        if first_split != split:
            yield f"scene {scene} is in {first_split} too ({first}); no scene may be in two splits"

    def _with_parents(self, task: str, placed: Placed, found: "_Families") -> Placed:
        """The item with the id of an item of each ancestor: as given, its parents' own, or the scene's only one."""
        item, ids = placed.item, dict(placed.item.parents)
        for name, one in item.parents.items():
            here = found.get((name, item.scene), {})
            if one not in here and name in self.ancestors[task]:
                fault = f"item {label(item.id)}: parents names item {label(one)} of {label(name)}, which its scene"
                self.faults.add(placed.where, f"{fault} {label(item.scene)} lacks; name one that it has: {_few(here)}")
        # Whom the parents build on, which may be items that are not the same.
        above: dict[str, set[str]] = {}
        for name in self._downwards[task]:
            here = found.get((name, item.scene), {})
            is_direct = name in self.tasks[task].prerequisites
            if name not in ids:
                may_be = above.get(name) or set(here)
                if len(may_be) == 1:
                    [ids[name]] = may_be
                elif may_be and is_direct:
                    fault = f"item {label(item.id)} must say which item of {label(name)} it builds on: {_few(may_be)}"
                    self.faults.add(placed.where, f'{fault}; add "parents": {{"{label(name)}": "{min(may_be)}"}}')
            if is_direct and ids.get(name) in here:
                for upper, one in here[ids[name]].parents.items():
                    above.setdefault(upper, set()).add(one)
        return placed if ids == item.parents else Placed(placed.where, replace(item, parents=ids))

    def _with_gold(self, task: str, placed: Placed, found: "_Families", offered: Mapping[str, set[str]]) -> Item:
        item = placed.item
        families = {name: found.get((name, item.scene), {}) for name in item.parents}
        right = {name: families[name][one].answer_word for name, one in item.parents.items() if one in families[name]}
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


_Families = dict[tuple[str, str], dict[str, Item]]  # (task, scene) -> id -> item


def _few(ids: Collection[str]) -> str:
    return listed(map(label, sorted(ids)))


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
