"""Builds the schedule of a planned task: GPipe, 1F1B, data parallel, ContextGear, and ContextGear with kept answers.

ContextGear runs FP(T_f) of batch i on D_f while D_t runs FP(T_t) and BP(T_t) of the batch before (Eq. (7)). D_t trains
batch i only after the update of batch i - 1, so nothing is stale. The chains of a reassigned batch run on D_t.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

from contextlora.gear.planning.candidates import Candidate, TaskPlan, is_reassigned
from contextlora.gear.planning.device_groups import DeviceGroup, Share
from contextlora.gear.simulation.schedule import QUEUE_BATCHES, Action, Schedule


def build_schedule(
    candidate: Candidate, plan: TaskPlan, batch_size: int, num_batches: int, queue_batches: int = QUEUE_BATCHES
) -> Schedule:
    """The schedule of some batches of one task, every batch with its chains.

    Args:
        candidate: D_t and D_f; D_t's devices are the first processes.
        plan: micro-batches and the reassigned share.
        batch_size: B.
        num_batches: to be trained.
        queue_batches: how far D_f may run ahead.
    """
    builder = _Builder(candidate, plan, batch_size)
    for batch in range(num_batches):
        builder.add_batch(batch)
    return Schedule(
        name=candidate.strategy,
        devices=candidate.devices,
        actions=tuple(map(tuple, builder.rows)),
        train_items=tuple(builder.train_items),
        chain_items=tuple(builder.chain_items),
        batch_size=batch_size,
        num_passes=plan.num_prerequisites,
        queue_batches=queue_batches,
    )


def then(first: Schedule, second: Schedule) -> Schedule:
    """One schedule after the other on the same processes: an epoch that makes the answers, then one that has them.

    Args:
        first: on all processes.
        second: without chains, on some of the devices of `first`.
    """
    moved = {process: first.devices.index(name) for process, name in enumerate(second.devices)}
    num_train, num_items = len(first.train_items), first.num_batches * first.batch_size

    def shifted(action: Action) -> Action:
        # All-reduces are numbered by batch, all else of `second` by train micro-batch.
        by = first.num_batches if action.kind == "ALLREDUCE" else num_train
        to = None if action.to is None else moved[action.to]
        return replace(action, micro_batch=action.micro_batch + by, to=to)

    rows = [list(row) for row in first.actions]
    for process, row in enumerate(second.actions):
        rows[moved[process]] += map(shifted, row)
    later = tuple(tuple(item + num_items for item in items) for items in second.train_items)
    rows = tuple(map(tuple, rows))
    return replace(first, actions=rows, train_items=first.train_items + later)


class _Builder:
    def __init__(self, candidate: Candidate, plan: TaskPlan, batch_size: int) -> None:
        self.train, self.forward, self.plan, self.batch_size = candidate.train, candidate.forward, plan, batch_size
        self.rows: list[list[Action]] = [[] for _ in candidate.devices]
        self.train_items: list[tuple[int, ...]] = []
        self.chain_items: list[tuple[int, ...]] = []

    def add_batch(self, batch: int) -> None:
        """All processes' actions for one batch."""
        items, data = range(batch * self.batch_size, (batch + 1) * self.batch_size), self.train.layout == "data"
        # Of a pipeline the first stage stands for all: its forward is what waits for the answers.
        edges = list(accumulate(self.plan.train.items if data else (self.batch_size,), initial=0))
        parts = [items[start:stop] for start, stop in pairwise(edges)]
        if self.plan.num_prerequisites:
            self._add_batch_chains(batch, items, {item: process for process, part in enumerate(parts) for item in part})
        if not data:
            self._add_pipeline(items)
            return
        for process, part in enumerate(parts):
            for chunk in _chunks(part, self.plan.train.micro_batches[process]):
                number = self._number(self.train_items, chunk)
                self.rows[process] += [Action(0, "F", number), Action(0, "B", number)]
            # One a batch, after the last micro-batch: gradients add up on the device until then.
            if len(parts) > 1:
                self.rows[process].append(Action(0, "ALLREDUCE", batch))

    def _add_batch_chains(self, batch: int, items: range, train_processes: dict[int, int]) -> None:
        """The chains of a batch on D_f, or on D_t where there is no D_f or they are reassigned."""
        if self.forward is None:
            self._add_chains(self.train, self.plan.train, items, 0, "P", train_processes)
        elif is_reassigned(self.plan.reassigned_share, batch):
            self._add_chains(self.train, self.plan.own_chains, items, 0, "R", train_processes)
        else:
            self._add_chains(self.forward, self.plan.chains, items, len(self.train.devices), "P", train_processes)

    def _add_chains(
        self,
        group: DeviceGroup,
        share: Share,
        items: range,
        first_process: int,
        kind: str,
        train_processes: dict[int, int],
    ) -> None:
        """The chains of some items on a group, and the answers to those who train the items."""
        last_pass, count = self.plan.num_prerequisites - 1, len(group.devices)
        if group.layout == "data":
            left = iter(items)
            for index in range(count):
                process = first_process + index
                mine = [next(left) for _ in range(share.items[index])]
                for chunk in _chunks(mine, share.micro_batches[index]):
                    number = self._add_passes(process, chunk, kind)
                    self._send_answers(process, 0, number, last_pass, {train_processes[item] for item in chunk})
            return
        numbers = [self._number(self.chain_items, chunk) for chunk in _chunks(items, share.micro_batches[0])]
        for chain_pass in range(last_pass + 1):
            for number in numbers:
                for stage in range(count):
                    process = first_process + stage
                    self.rows[process].append(Action(stage, kind, number, chain_pass))
                    if stage + 1 < count:
                        self.rows[process].append(Action(stage, f"SEND_{kind}", number, chain_pass, process + 1))
            for number in numbers:  # the executor lets a pass drain before it hands out the answers
                # Prompts of the next pass hold these answers, and it begins in the first stage.
                is_last = chain_pass == last_pass
                back = {train_processes[i] for i in self.chain_items[number]} if is_last else {first_process}
                self._send_answers(first_process + count - 1, count - 1, number, chain_pass, back)

    def _send_answers(self, process: int, stage: int, number: int, chain_pass: int, receivers: set[int]) -> None:
        self.rows[process] += [Action(stage, "SEND_A", number, chain_pass, to) for to in sorted(receivers - {process})]

    def _add_passes(self, process: int, chunk: Sequence[int], kind: str) -> int:
        number = self._number(self.chain_items, chunk)
        self.rows[process] += [Action(0, kind, number, chain_pass) for chain_pass in range(self.plan.num_prerequisites)]
        return number

    def _add_pipeline(self, items: range) -> None:
        count = len(self.train.devices)
        numbers = [self._number(self.train_items, chunk) for chunk in _chunks(items, self.plan.train.micro_batches[0])]
        for stage in range(count):
            for kind, index in _order(self.train.layout, stage, count, len(numbers)):
                self.rows[stage].append(Action(stage, kind, numbers[index]))
                to = stage + 1 if kind == "F" else stage - 1
                if 0 <= to < count:
                    self.rows[stage].append(Action(stage, f"SEND_{kind}", numbers[index], None, to))

    def _number(self, numbered: list[tuple[int, ...]], chunk: Sequence[int]) -> int:
        numbered.append(tuple(chunk))
        return len(numbered) - 1


def _order(layout: str, stage: int, num_stages: int, num_micro: int) -> Iterator[tuple[str, int]]:
    """GPipe: all forwards, all backwards. 1F1B: forwards that fill the pipeline, then one of each in turn."""
    ahead = num_micro if layout == "gpipe" else min(num_micro, num_stages - 1 - stage)
    yield from (("F", index) for index in range(ahead))
    for index in range(num_micro):
        if ahead + index < num_micro:
            yield "F", ahead + index
        yield "B", index


def _chunks(items: Sequence[int], size: int) -> list[Sequence[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
