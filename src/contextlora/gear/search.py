"""Which candidates are weighed: all of them on a few devices, a greedy start and local search on many.

Up to `EXHAUSTIVE_DEVICES` devices, every subset and every D_t/D_f split is weighed, with every layout and every cut
worth it. Beyond, the devices that a batch can use at all are sorted by speed; groups are runs of that order whose sizes
grow geometrically; the best split is then improved by moving single devices until nothing helps. The search never ends
worse than its greedy start, because the start stays among the candidates.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations

from contextlora.gear.candidates import Candidate, Weighted, weigh
from contextlora.gear.cost import StageCost
from contextlora.gear.group import Group

EXHAUSTIVE_DEVICES = 4
# On many devices the search looks at a few tasks that stand for all; what it finds is then weighed with all.
SAMPLED_TASKS = 3
MAX_ROUNDS = 40
GREEDY_STARTS = 2
PIPELINE_STAGES = (2, 3, 4, 8)


class Search:
    """Candidates of one stage.

    Args:
        cost: of the stage on the fleet.
        tasks: with equal ones merged.
        cache_answers: whether answers may be kept from the first epoch on.
    """

    def __init__(self, cost: StageCost, tasks: list[Weighted], cache_answers: bool) -> None:
        self.cost, self.tasks = cost, tasks
        self.needs_answers = any(row.task.num_prerequisites for row in tasks)
        self.cache_answers = cache_answers and self.needs_answers and any(r.steps > r.first_steps for r in tasks)
        self.heaviest = max(tasks, key=lambda row: row.steps * row.task.forward_flops).task
        self._cuts: dict[tuple[tuple[str, ...], str], list[tuple[int, ...]]] = {}

    def run(self) -> list[Candidate]:
        """Every candidate weighed, the best of each pair of groups and way of keeping answers."""
        names = tuple(device.name for device in self.cost.fleet.devices)
        found = self._few(names) if len(names) <= EXHAUSTIVE_DEVICES else self._many(names)
        best: dict[tuple, Candidate] = {}
        for candidate in found:
            key = (candidate.strategy, candidate.train.devices, candidate.forward and candidate.forward.devices)
            key += (candidate.later is None,)
            if key not in best or _better(candidate, best[key]):
                best[key] = candidate
        return list(best.values())

    # ---- a few devices: everything

    def _few(self, names: tuple[str, ...]) -> Iterator[Candidate]:
        subsets = [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
        for subset in subsets:
            for candidate in self._alone(subset):
                yield from self._weighed(candidate)
        if not self.needs_answers:
            return
        for train in subsets:
            rest = tuple(name for name in names if name not in train)
            for forward in (subset for subset in subsets if set(subset) <= set(rest)):
                for first in self._layouts(train, ("1f1b",)):
                    for second in self._layouts(forward, ("1f1b",)):
                        yield from self._weighed(Candidate("contextgear", first, second))

    def _alone(self, devices: tuple[str, ...]) -> Iterator[Candidate]:
        """A group without D_f."""
        for group in self._layouts(devices, ("1f1b", "gpipe")):
            strategy = "one device" if len(devices) == 1 else "data parallel"
            yield Candidate(f"pipeline {group.layout}" if group.layout != "data" else strategy, group)

    def _layouts(self, devices: tuple[str, ...], pipelines: Iterable[str]) -> list[Group]:
        groups = [Group(devices)]
        if 1 < len(devices) <= self.cost.workload.num_layers:
            for layout in pipelines:
                if (devices, layout) not in self._cuts:
                    self._cuts[devices, layout] = self.cost.cuts(devices, layout, self.heaviest)
                groups += [Group(devices, layout, cuts) for cuts in self._cuts[devices, layout]]
        return groups

    def _weighed(self, candidate: Candidate, tasks: list[Weighted] | None = None) -> list[Candidate]:
        """The candidate as it is, and with answers kept."""
        tasks = tasks or self.tasks
        plain = weigh(self.cost, candidate, tasks)
        if not self.cache_answers or plain.seconds is None:
            return [plain]
        laters = [candidate.train]
        if candidate.forward:
            laters.append(Group(candidate.devices))
        kept = [weigh(self.cost, replace(candidate, later=later), tasks) for later in laters]
        return [plain, min(kept, key=lambda found: (found.seconds is None, found.seconds or 0.0))]

    # ---- many devices: greedy start, local search

    def _many(self, names: tuple[str, ...]) -> Iterator[Candidate]:
        order = self._by_speed(names)
        for name in order:
            yield from self._weighed(Candidate("one device", Group((name,))))
        for size in _sizes(len(order), self.cost.workload.batch_size):
            yield from self._weighed(Candidate("data parallel", Group(order[:size])))
        by_memory = sorted(names, key=lambda name: -self.cost.devices[name].memory_bytes)
        for size in PIPELINE_STAGES:
            for row in dict.fromkeys((order[:size], tuple(by_memory[:size]))):
                if len(row) == size <= self.cost.workload.num_layers:
                    for candidate in self._alone(row):
                        yield from self._weighed(candidate)
        if self.needs_answers:
            yield from self._splits(order)

    def _by_speed(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Devices that a batch can use, the fastest first: a group cannot give items to more than B."""
        most = 2 * self.cost.workload.batch_size
        return tuple(sorted(names, key=lambda name: self.cost.item_s(name, self.heaviest))[:most])

    def _splits(self, order: tuple[str, ...]) -> Iterator[Candidate]:
        """Greedy starts and what local search makes of them, weighed with all tasks."""
        sample = self._sample()
        batch_size = self.cost.workload.batch_size
        starts = [
            (self._bound(order[:a], order[a : a + b], sample), a, b)
            for a in _sizes(len(order) - 1, batch_size)
            for b in _sizes(len(order) - a, batch_size)
        ]
        for _, a, b in sorted(starts)[:GREEDY_STARTS]:
            start = Candidate("contextgear", Group(order[:a]), Group(order[a : a + b]))
            yield from self._weighed(start)
            yield from self._weighed(self._improved(start, order, sample))
            if 1 < a <= min(self.cost.workload.num_layers, max(PIPELINE_STAGES)):
                for group in self._layouts(order[:a], ("1f1b",))[1:]:
                    yield from self._weighed(replace(start, train=group))

    def _sample(self) -> list[Weighted]:
        """The tasks with least, middle and most prerequisites, each for a third of the steps."""
        rows = sorted(self.tasks, key=lambda row: row.task.num_prerequisites)
        if len(rows) <= SAMPLED_TASKS:
            return rows
        chosen = [rows[(len(rows) - 1) * k // (SAMPLED_TASKS - 1)] for k in range(SAMPLED_TASKS)]
        return [Weighted(row.task, 1, 1) for row in chosen]

    def _bound(self, train: tuple[str, ...], forward: tuple[str, ...], tasks: list[Weighted]) -> float:
        """Steps of the tasks at the bound of the groups, with the all-reduce, which the bound leaves out."""
        return sum(
            row.steps * (self.cost.lower_bound_s(train, forward, row.task) + self.cost.all_reduce_s(train, row.task))
            for row in tasks
        )

    def _improved(self, start: Candidate, order: tuple[str, ...], tasks: list[Weighted]) -> Candidate:
        """Moves single devices between D_t, D_f and neither while that makes the sample faster."""
        best = weigh(self.cost, start, tasks)
        for _ in range(MAX_ROUNDS):
            moved = [weigh(self.cost, other, tasks) for other in _moves(best, order)]
            ahead = min(moved, key=lambda found: (found.seconds is None, found.seconds or 0.0), default=best)
            if not _better(ahead, best):
                break
            best = ahead
        return replace(best, seconds=None, reason="")


def _moves(candidate: Candidate, order: tuple[str, ...]) -> Iterator[Candidate]:
    """Neighbours of a split: one device more, less or elsewhere, at the fast and slow ends of the groups."""
    train, forward = candidate.train.devices, candidate.forward.devices
    spare = [name for name in order if name not in {*train, *forward}][:1]
    pairs = [pair for name in spare for pair in (((*train, name), forward), (train, (*forward, name)))]
    if len(train) > 1:
        pairs += [(train[:-1], forward), (train[:-1], (train[-1], *forward))]
    if len(forward) > 1:
        pairs += [(train, forward[:-1]), ((*train, forward[0]), forward[1:]), ((*train, forward[-1]), forward[:-1])]
    pairs += [((*train[:-1], forward[0]), (train[-1], *forward[1:]))]
    for first, second in pairs:
        yield replace(candidate, train=Group(first), forward=Group(second))


def _better(one: Candidate, other: Candidate) -> bool:
    return one.seconds is not None and (other.seconds is None or one.seconds < other.seconds)


def _sizes(num_devices: int, batch_size: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 ... up to what a batch can use."""
    most = min(num_devices, batch_size)
    sizes = {size for e in range(11) for size in (2**e, 3 * 2**e) if size <= most}
    return sorted(sizes | {most} if most > 0 else sizes)
