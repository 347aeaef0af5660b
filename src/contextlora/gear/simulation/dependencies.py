"""What every action of a schedule waits for, and whether a schedule can run at all.

A node is (process, position in the process's row). Besides the action before it in the row, an action waits for

    F   the stage before, or (first stage) the last pass of the chains of its items
    B   its own forward, and the backward of the stage behind
    P R the stage before, or (first stage) the pass before; the first pass of D_f also for a place in the queue
    SEND what it carries                    ALLREDUCE  every backward of the batch in its stage

and, where that was done by another process, for its arrival.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from contextlora.gear.simulation.schedule import COMPUTE, SENDS, Action, Schedule, ScheduleError

Node = tuple[int, int]
_Key = tuple[str, int, int, int | None]
_MOST_SHOWN = 8  # actions of a circle


class Dependencies:
    """The edges of a schedule's graph of actions.

    Args:
        schedule: to be read.

    Raises:
        ScheduleError: an action is there twice, or needs what nobody makes or sends.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._made: dict[_Key, Node] = {}
        self._sent: dict[tuple[_Key, int], Node] = {}
        self._last_stage: dict[tuple[str, int], int] = defaultdict(int)
        self._backwards: dict[tuple[int, int], list[Node]] = defaultdict(list)
        self._chains_of_item: dict[int, int] = {}
        self._index()
        self.nodes = {
            (process, position): self._needs(process, position, action)
            for process, row in enumerate(schedule.actions)
            for position, action in enumerate(row)
        }

    def check(self) -> None:
        """Raises `ScheduleError` unless every micro-batch runs forward and backward once, and no circle of waiting."""
        schedule = self.schedule
        # R is the same pass in another place: having both is once too often.
        made = Counter((key[0] if key[0] != "R" else "P", *key[1:]) for key in self._made)
        for number in range(len(schedule.train_items)):
            for stage in range(self._last_stage["F", number] + 1):
                for kind in "FB":
                    if made[kind, stage, number, None] != 1:
                        raise ScheduleError(f"{stage}{kind}{number} must be there once; it is missing")
        for number in range(len(schedule.chain_items)):
            for stage in range(self._last_stage["P", number] + 1):
                for chain_pass in range(schedule.num_passes):
                    if made["P", stage, number, chain_pass] != 1:
                        raise ScheduleError(f"pass {stage}P{number}/{chain_pass} must be there once, as P or R")
        counts = Counter(item for items in schedule.train_items for item in items)
        if sorted(counts) != list(range(schedule.num_batches * schedule.batch_size)) or set(counts.values()) != {1}:
            raise ScheduleError(f"every item of {schedule.num_batches} batches must be trained once")
        try:
            TopologicalSorter(self.nodes).prepare()
        except CycleError as error:
            # `args[1]` is where graphlib puts the cycle.
            actions = [str(schedule.actions[process][position]) for process, position in error.args[1]]
            cycle = " -> ".join(actions if len(actions) <= _MOST_SHOWN else [*actions[:_MOST_SHOWN], "..."])
            raise ScheduleError(f"these actions wait for each other: {cycle}; move one of them up") from None

    # ---- who made what

    def _index(self) -> None:
        schedule = self.schedule
        for number, items in enumerate(schedule.chain_items):
            self._chains_of_item |= dict.fromkeys(items, number)
        for process, row in enumerate(schedule.actions):
            for position, action in enumerate(row):
                if action.kind in COMPUTE:
                    self._enter(action, (process, position))
        # Only now: whether answers come from P or from R shows by what has been made.
        for process, row in enumerate(schedule.actions):
            for position, action in enumerate(row):
                if action.kind in SENDS:
                    self._sent.setdefault((self._carried(action), action.to), (process, position))

    def _enter(self, action: Action, node: Node) -> None:
        key = (action.kind, action.stage, action.micro_batch, action.chain_pass)
        if key in self._made:
            raise ScheduleError(f"{action} is there twice, on processes {self._made[key][0]} and {node[0]}: remove one")
        self._made[key] = node
        kind = "P" if action.kind in "PR" else action.kind
        number = (kind, action.micro_batch)
        self._last_stage[number] = max(self._last_stage[number], action.stage)
        if action.kind == "B":
            self._backwards[action.stage, self.schedule.batch_of(action)].append(node)

    def _carried(self, action: Action) -> _Key:
        kind = action.kind[-1]
        if kind == "A":
            kind = self._chain_kind(action.stage, action.micro_batch, action.chain_pass)
        return (kind, action.stage, action.micro_batch, action.chain_pass)

    def _chain_kind(self, stage: int, number: int, chain_pass: int | None) -> str:
        """P, or R where D_t was given this chain."""
        return "R" if ("R", stage, number, chain_pass) in self._made else "P"

    # ---- what an action waits for

    def _needs(self, process: int, position: int, action: Action) -> list[Node]:
        found = [(process, position - 1)] if position else []
        if action.kind in SENDS:
            return [*found, self._node(self._carried(action), process, action)]
        if action.kind == "ALLREDUCE":
            return found + self._backwards[action.stage, action.micro_batch]
        found += [self._node(key, process, action) for key in self._inputs(action)]
        if action.kind == "P" and action.stage == 0 and action.chain_pass == 0:
            found += self._place_in_queue(action, process)
        return found

    def _inputs(self, action: Action) -> Iterator[_Key]:
        kind, stage, number, chain_pass = action.kind, action.stage, action.micro_batch, action.chain_pass
        if kind == "B":
            yield ("F", stage, number, None)
            if stage < self._last_stage["F", number]:
                yield ("B", stage + 1, number, None)
        elif stage:
            yield (kind, stage - 1, number, chain_pass)
        elif kind == "F":
            items = self.schedule.train_items[number]
            for chain in sorted({self._chains_of_item[i] for i in items if i in self._chains_of_item}):
                yield self._chain_end(chain, self.schedule.num_passes - 1)
        elif chain_pass:
            yield self._chain_end(number, chain_pass - 1)

    def _chain_end(self, number: int, chain_pass: int) -> _Key:
        stage = self._last_stage["P", number]
        return (self._chain_kind(stage, number, chain_pass), stage, number, chain_pass)

    def _node(self, key: _Key, process: int, wanted_by: Action) -> Node:
        """Where something is made, or where it is sent from to this process."""
        node = self._made.get(key)
        if node is not None and node[0] != process:
            node = self._sent.get((key, process))
        if node is None:
            made = str(Action(key[1], key[0], key[2], key[3]))
            raise ScheduleError(
                f"{wanted_by} on process {process} needs {made}, which nobody makes or sends there: add it before"
            )
        return node

    def _place_in_queue(self, action: Action, process: int) -> list[Node]:
        # A place is free once that batch is trained; this process's own backwards come before in its row anyhow.
        batch = self.schedule.batch_of(action) - self.schedule.queue_batches - 1
        return [node for node in self._backwards.get((0, batch), []) if node[0] != process]
