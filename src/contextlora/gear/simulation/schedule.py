"""Schedules: which process does what in which order. Actions print as in torch.distributed.pipelining and parse back.

    action = stage kind micro-batch [ "/" pass ] [ ">" process ]

    2F0         stage 2, forward, micro-batch 0 (FP(T_t))
    2B0         its backward (BP(T_t))
    0P3/1       forward-only pass 1 of the prerequisite chain for chain micro-batch 3 (FP(T_f))
    0R3/1       the same, reassigned to D_t
    2SEND_F0>3  activations to the next stage; likewise SEND_B (their gradients) and SEND_P, SEND_R (of a pass)
    0SEND_A3/1>2  the answers of a pass
    0ALLREDUCE4 the gradients of batch 4 over all processes of this stage

Stages count within a group, so data-parallel processes all say 0. Sends are asynchronous: they wait for nothing but
what they carry and take no time of their process. A process that needs something from another waits for its arrival, so
receives need no action of their own.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from contextlora.errors import UserError
from contextlora.limits import shown

# How far D_f may be ahead: it goes on while D_t runs a whole batch's long chains. More only takes memory for answers.
QUEUE_BATCHES = 16
COMPUTE = ("F", "B", "P", "R")
SENDS = ("SEND_F", "SEND_B", "SEND_P", "SEND_R", "SEND_A")
_ACTION = re.compile(r"(\d+)(SEND_[FBPRA]|ALLREDUCE|[FBPR])(\d+)(?:/(\d+))?(?:>(\d+))?")


class ScheduleError(UserError):
    """An action that cannot be read, or a schedule that cannot run."""


@dataclass(frozen=True)
class Action:
    """One entry of a process's schedule, see the module's head.

    Attributes:
        stage: of the process's group.
        kind: one of `COMPUTE`, `SENDS` or ALLREDUCE.
        micro_batch: number of the train micro-batch (F, B), of the chain micro-batch (P, R, A) or of the batch.
        chain_pass: pass of the chain, for P, R and what they send.
        to: receiving process of a send.
    """

    stage: int
    kind: str
    micro_batch: int
    chain_pass: int | None = None
    to: int | None = None

    def __str__(self) -> str:
        passed = "" if self.chain_pass is None else f"/{self.chain_pass}"
        return f"{self.stage}{self.kind}{self.micro_batch}{passed}" + ("" if self.to is None else f">{self.to}")

    @classmethod
    def parse(cls, text: str) -> "Action":
        """Reads what `str` wrote.

        Raises:
            ScheduleError: it is no action.
        """
        match = _ACTION.fullmatch(text)
        if not match:
            raise ScheduleError(f"an action must read like 2F0, 0P3/1 or 2SEND_F0>3, got {shown(text)}")
        stage, kind, number, chain_pass, to = match.groups()
        needs = {"pass": kind[-1] in "PRA", "receiving process": kind in SENDS}
        for part, found in (("pass", chain_pass), ("receiving process", to)):
            if needs[part] != (found is not None):
                raise ScheduleError(f"{kind} must name {'a' if needs[part] else 'no'} {part}, got {shown(text)}")
        return cls(int(stage), kind, int(number), *(None if part is None else int(part) for part in (chain_pass, to)))


@dataclass(frozen=True)
class Schedule:
    """What every process does, in order.

    Attributes:
        name: for people.
        devices: of the processes.
        actions: one row per process.
        train_items: items of each train micro-batch, numbered through all batches.
        chain_items: items of each chain micro-batch.
        batch_size: B; item i belongs to batch i // B.
        num_passes: n, passes of a chain.
        queue_batches: batches that D_f may be ahead of the one that D_t trains.
    """

    name: str
    devices: tuple[str, ...]
    actions: tuple[tuple[Action, ...], ...]
    train_items: tuple[tuple[int, ...], ...]
    chain_items: tuple[tuple[int, ...], ...]
    batch_size: int
    num_passes: int
    queue_batches: int

    @property
    def num_batches(self) -> int:
        """Batches trained."""
        return 1 + max(items[-1] for items in self.train_items) // self.batch_size

    def batch_of(self, action: Action) -> int:
        """The batch that an action works for."""
        if action.kind == "ALLREDUCE":
            return action.micro_batch
        # The last letter: SEND_P, SEND_R and SEND_A carry what belongs to a chain.
        items = self.chain_items if action.kind[-1] in "PRA" else self.train_items
        return items[action.micro_batch][0] // self.batch_size

    def to_json(self) -> str:
        """JSON with actions as text."""
        tree = asdict(self) | {"actions": [" ".join(map(str, row)) for row in self.actions]}
        return json.dumps(tree)

    @classmethod
    def from_json(cls, text: str) -> "Schedule":
        """Reads what `to_json` wrote."""
        tree = json.loads(text)
        rows = tuple(tuple(map(Action.parse, row.split())) for row in tree["actions"])
        items = {key: tuple(map(tuple, tree[key])) for key in ("train_items", "chain_items")}
        return cls(**(tree | items | {"actions": rows, "devices": tuple(tree["devices"])}))


def grid(slots: Sequence[Sequence[Action | None]], headings: Sequence[str]) -> str:
    """Time downwards, processes across: one row per slot, `.` where a process waits.

    Args:
        slots: for each slot the action of each process, or None.
        headings: of the processes.
    """
    rows = [["", *headings]]
    for number, row in enumerate(slots):
        rows.append([str(number), *("." if action is None else str(action) for action in row)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def parse_grid(text: str) -> tuple[list[list[Action | None]], list[str]]:
    """Reads what `grid` wrote: slots and headings."""
    first, *lines = text.splitlines()
    slots = [[None if cell == "." else Action.parse(cell) for cell in line.split()[1:]] for line in lines]
    return slots, first.split()
