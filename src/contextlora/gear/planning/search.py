"""Which candidates are weighed: all of them on a few devices, a greedy start and local search on many.

Up to `EXHAUSTIVE_DEVICES` devices, every subset and every D_t/D_f split is weighed, with every layout and every cut
worth it. Beyond, the devices that a batch can use at all are sorted by speed, and groups are runs of that order whose
sizes grow geometrically. A few tasks stand for all until each strategy has its finalists, which are then weighed with
all tasks. The best split is improved by moving single devices until nothing helps; the search never ends worse than its
greedy start, because the start stays among the candidates.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate, combinations

from contextlora.gear.planning.candidates import Candidate, Weighted, weigh
from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.device_groups import DeviceGroup
from contextlora.gear.planning.workload import TaskWork

EXHAUSTIVE_DEVICES = 4  # splits into D_t, D_f and neither number 3^devices
# On many devices the search looks at a few tasks that stand for all; what it finds is then weighed with all.
SAMPLED_TASKS = 2
FINALISTS = 2
MAX_ROUNDS = 24
PIPELINE_STAGES = (2, 3, 4, 8)
LAYOUTS = ("data", "1f1b", "gpipe")
Cuts = dict[tuple, list[tuple[int, ...]]]


class Search:
    """Candidates of one stage.

    Args:
        cost: of the stage on the fleet.
        tasks: with equal ones merged.
        cache_answers: whether answers may be kept from the first epoch on.
        known_cuts: of earlier stages of the same shape, to which the search on many devices adds its own.
        layouts: what groups of several devices may be.
    """

    def __init__(
        self,
        cost: StageCost,
        tasks: list[Weighted],
        cache_answers: bool,
        known_cuts: Cuts | None = None,
        layouts: Collection[str] = LAYOUTS,
    ) -> None:
        self.cost, self.tasks, self.layouts = cost, tasks, layouts
        self.needs_answers = any(row.task.num_prerequisites for row in tasks)
        # Within one epoch no answer is needed twice.
        self.cache_answers = cache_answers and self.needs_answers and any(r.steps > r.first_steps for r in tasks)
        self.heaviest = max(tasks, key=lambda row: row.steps * row.task.forward_flops).task
        self._cuts: Cuts = {}
        self._known_cuts = {} if known_cuts is None else known_cuts

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

    def _layouts(self, devices: tuple[str, ...], pipelines: Iterable[str]) -> list[DeviceGroup]:
        groups = [DeviceGroup(devices)] if self._may_share_rows(devices) else []
        if 1 < len(devices) <= self.cost.workload.num_layers:
            for layout in (name for name in pipelines if name in self.layouts):
                if (devices, layout) not in self._cuts:
                    self._cuts[devices, layout] = self.cost.cuts(devices, layout, self.heaviest)
                groups += [DeviceGroup(devices, layout, cuts) for cuts in self._cuts[devices, layout]]
        return groups

    def _may_share_rows(self, devices: tuple[str, ...]) -> bool:
        return len(devices) == 1 or "data" in self.layouts

    def _weighed(self, candidate: Candidate, tasks: list[Weighted] | None = None) -> list[Candidate]:
        """The candidate as it is, and with answers kept."""
        tasks = tasks or self.tasks
        plain = weigh(self.cost, candidate, tasks)
        if not self.cache_answers or plain.seconds is None:
            return [plain]
        laters = [candidate.train]
        # D_f has nothing left to do once all answers are known.
        if candidate.forward and self._may_share_rows(candidate.devices):
            laters.append(DeviceGroup(candidate.devices))
        kept = [weigh(self.cost, replace(candidate, later=later), tasks) for later in laters]
        return [plain, min(kept, key=_time)]

    # ---- many devices: finalists, greedy start, local search

    def _many(self, names: tuple[str, ...]) -> Iterator[Candidate]:
        order, sample = self._by_speed(names), self._sample()
        sizes = _sizes(len(order), self.cost.workload.batch_size)
        yield from self._finalists((Candidate("one device", DeviceGroup((name,))) for name in order), sample)
        together = [DeviceGroup(order[:size]) for size in sizes[1:] if self._may_share_rows(order[:size])]
        yield from self._finalists((Candidate("data parallel", group) for group in together), sample)
        # A model that is too large for any device may fit across those with most memory.
        by_memory = tuple(sorted(names, key=lambda name: -self.cost.devices[name].memory_bytes))
        rows = dict.fromkeys(row[:size] for size in PIPELINE_STAGES for row in (order, by_memory))
        groups = [group for row in rows for group in self._pipelines(row)]
        for layout in (name for name in self.layouts if name != "data"):
            yield from self._finalists(
                (Candidate(f"pipeline {layout}", replace(group, layout=layout)) for group in groups), sample
            )
        if self.needs_answers:
            yield from self._splits(order, sample)

    def _by_speed(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Devices that a batch can use, the fastest first: a group cannot give items to more than B."""
        most = 2 * self.cost.workload.batch_size
        return tuple(sorted(names, key=lambda name: self.cost.item_s(name, self.heaviest))[:most])

    def _sample(self) -> list[Weighted]:
        """The tasks with middle and most prerequisites."""
        rows = sorted(self.tasks, key=lambda row: row.task.num_prerequisites)
        return rows if len(rows) <= SAMPLED_TASKS else [rows[len(rows) // 2], rows[-1]]

    def _finalists(self, candidates: Iterable[Candidate], sample: list[Weighted]) -> Iterator[Candidate]:
        """Those that are fastest on the sample, weighed with all tasks, and one that does not fit."""
        weighed = [(min(self._weighed(candidate, sample), key=_time), candidate) for candidate in candidates]
        # One misfit is kept for its reason, which the table of candidates shows.
        misfits = [found for found, _ in weighed if found.seconds is None]
        fitting = sorted((pair for pair in weighed if pair[0].seconds is not None), key=lambda pair: _time(pair[0]))
        for _, candidate in fitting[:FINALISTS]:
            yield from self._weighed(candidate)
        yield from misfits[:1]

    def _pipelines(self, devices: tuple[str, ...]) -> list[DeviceGroup]:
        """1F1B pipelines over a row of devices; GPipe has the same stages."""
        work = self.cost.workload
        if set(self.layouts) <= {"data"} or not 1 < len(devices) <= work.num_layers:
            return []
        key = (devices, work.layer_flops_shares, work.batch_size, self.heaviest.boundary_bytes)
        fitting = self._fitting(devices, self._known_cuts.get(key, []))
        if not fitting:  # none known, or of a stage with less to train or other activations: memory is not in the key
            self._known_cuts[key] = self.cost.cuts(devices, "1f1b", self.heaviest, exact=False)
            fitting = self._fitting(devices, self._known_cuts[key])
        return fitting

    def _fitting(self, devices: tuple[str, ...], cuts: Sequence[tuple[int, ...]]) -> list[DeviceGroup]:
        def fits(group: DeviceGroup) -> bool:
            return all(
                self.cost.memory_bytes(group, position, self.heaviest, min(self.cost.sizes), trains=True)
                <= self.cost.devices[name].memory_bytes
                for position, name in enumerate(devices)
            )

        return list(filter(fits, (DeviceGroup(devices, "1f1b", one) for one in cuts)))

    def _splits(self, order: tuple[str, ...], sample: list[Weighted]) -> Iterator[Candidate]:
        """The greedy start and what local search makes of it, and the start with a pipeline for D_t."""
        most = self.cost.workload.batch_size if "data" in self.layouts else 1
        starts = [(a, b) for a in _sizes(len(order) - 1, most) for b in _sizes(len(order) - a, most)]
        a, b = min(starts, key=self._scores(order, sample))
        # The fastest train: D_t may take over chains from D_f, but D_f cannot train.
        start = Candidate("contextgear", DeviceGroup(order[:a]), DeviceGroup(order[a : a + b]))
        yield from self._weighed(start)
        if "data" in self.layouts:
            yield from self._weighed(self._improved(start, order, sample))
        if "1f1b" not in self.layouts:
            return
        pipelines = [group for size in PIPELINE_STAGES if size < len(order) for group in self._pipelines(order[:size])]
        ahead = [order[len(group.devices) :][:most] for group in pipelines]
        pairs = zip(pipelines, ahead, strict=True)
        yield from self._finalists(
            (Candidate("contextgear", group, DeviceGroup(rest)) for group, rest in pairs), sample
        )

    def _scores(self, order: tuple[str, ...], sample: list[Weighted]) -> Callable[[tuple[int, int]], float]:
        """(|D_t|, |D_f|) -> the sample's steps at the bound of the groups, plus the all-reduce, which it leaves out."""
        devices = [self.cost.devices[name] for name in order]
        ratio = self.cost.workload.train_ratio
        # Prefix sums: groups are runs of the order, so that a pair of sizes is scored without a walk over its devices.
        rates = list(accumulate((1 / device.forward_s(1.0) for device in devices), initial=0.0))
        train_rates = list(accumulate((1 / device.train_s(1.0, ratio) for device in devices), initial=0.0))

        @cache
        def reduce_s(a: int, task: TaskWork) -> float:
            return self.cost.all_reduce_s(order[:a], task)

        def score(sizes: tuple[int, int]) -> float:
            a, b = sizes
            total_s = 0.0
            for row in sample:
                task = row.task
                flops = task.num_prerequisites * task.prerequisite_flops + ratio * task.forward_flops
                item_s = max(flops / rates[a + b], task.forward_flops / train_rates[a])
                total_s += row.steps * (self.cost.workload.batch_size * item_s + reduce_s(a, task))
            return total_s

        return score

    def _improved(self, start: Candidate, order: tuple[str, ...], tasks: list[Weighted]) -> Candidate:
        """Moves single devices between D_t, D_f and neither while that makes the sample faster."""
        best = weigh(self.cost, start, tasks)
        for _ in range(MAX_ROUNDS):
            moved = [weigh(self.cost, other, tasks) for other in _moves(best, order)]
            ahead = min(moved, key=_time, default=best)
            if not _better(ahead, best):
                break
            best = ahead
        # Its seconds are those of the sample; the caller weighs it with all tasks.
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
        yield replace(candidate, train=DeviceGroup(first), forward=DeviceGroup(second))


def _time(candidate: Candidate) -> float:
    return float("inf") if candidate.seconds is None else candidate.seconds


def _better(one: Candidate, other: Candidate) -> bool:
    return one.seconds is not None and (other.seconds is None or one.seconds < other.seconds)


def _sizes(num_devices: int, batch_size: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 ... up to what a batch can use."""
    most = min(num_devices, batch_size)
    sizes = {size for e in range(11) for size in (2**e, 3 * 2**e) if size <= most}
    return sorted(sizes | {most} if most > 0 else sizes)
