"""Discrete-event simulation of a schedule: when does every action run, what waits, how much memory and traffic.

A process runs its row in order, one action at a time. A link carries one message at a time in each direction, in the
order in which they became ready, and each takes latency + size / bandwidth. An all-reduce begins when every process of
its stage is there and holds them all.
"""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from contextlora.gear.planning.devices import Link
from contextlora.gear.simulation.dependencies import Dependencies, Node
from contextlora.gear.simulation.schedule import SENDS, Action, Schedule


@dataclass(frozen=True)
class Costs:
    """What the simulator must know of the world.

    Attributes:
        action_s: (process, action) -> seconds of a compute action or an all-reduce.
        send_bytes: size of a send.
        link: (process, process) -> link.
        resident_bytes: memory of each process before the first action.
        action_bytes: (process, action) -> memory that a forward keeps until its backward, or a pass takes meanwhile.
    """

    action_s: Callable[[int, Action], float]
    send_bytes: Callable[[Action], float]
    link: Callable[[int, int], Link]
    resident_bytes: Sequence[float]
    action_bytes: Callable[[int, Action], float]


@dataclass(frozen=True)
class Interval:
    """An action and when it ran, in seconds; of a send, the time on the link."""

    process: int
    action: Action
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Simulation:
    """What happened.

    Attributes:
        schedule: what was simulated.
        intervals: of every action, in order of their end.
        peak_bytes: of each process.
        link_bytes: (sender, receiver) -> bytes of all sends; all-reduces are not among them.
    """

    schedule: Schedule
    intervals: tuple[Interval, ...]
    peak_bytes: tuple[float, ...]
    link_bytes: dict[tuple[int, int], float]

    @property
    def makespan_s(self) -> float:
        """From the first action's start to the last one's end."""
        return max(interval.stop_s for interval in self.intervals)

    @property
    def idle_shares(self) -> tuple[float, ...]:
        """Share of the makespan in which each process neither computes nor reduces."""
        busy = [0.0] * len(self.schedule.actions)
        for interval in self.intervals:
            if interval.action.kind not in SENDS:
                busy[interval.process] += interval.stop_s - interval.start_s
        return tuple(1 - seconds / self.makespan_s for seconds in busy)

    @property
    def batch_ends_s(self) -> list[float]:
        """When each batch's last backward or all-reduce ended."""
        ends = [0.0] * self.schedule.num_batches
        for interval in self.intervals:
            if interval.action.kind in ("B", "ALLREDUCE"):
                batch = self.schedule.batch_of(interval.action)
                ends[batch] = max(ends[batch], interval.stop_s)
        return ends

    def slots(self, start_s: float, stop_s: float) -> list[list[Action | None]]:
        """Compute actions that begin in a window, in rows for `schedule.grid`: one row for each time one begins."""
        begun: dict[float, list[Action | None]] = {}
        for interval in sorted(self.intervals, key=lambda interval: interval.start_s):
            if interval.action.kind not in SENDS and start_s <= interval.start_s < stop_s:
                # Rounded, so that actions of equal length stay in one row.
                row = begun.setdefault(round(interval.start_s, 9), [None] * len(self.schedule.actions))
                row[interval.process] = interval.action
        return list(begun.values())


def simulate(schedule: Schedule, costs: Costs) -> Simulation:
    """Runs a schedule.

    Raises:
        ScheduleError: the schedule is not valid.
    """
    dependencies = Dependencies(schedule)
    dependencies.check()
    return _Run(schedule, dependencies, costs).run()


class _Run:
    def __init__(self, schedule: Schedule, dependencies: Dependencies, costs: Costs) -> None:
        self.schedule, self.costs = schedule, costs
        # Once each: the action before in the row is often an input as well.
        self.waits_for = {node: len(set(needs)) for node, needs in dependencies.nodes.items()}
        self.followers: dict[Node, list[Node]] = defaultdict(list)
        for node, needs in dependencies.nodes.items():
            for needed in set(needs):
                self.followers[needed].append(node)
        self.now_s = 0.0
        self.events: list[tuple[float, int, Node]] = []  # (end, order of entry, node)
        self.intervals: list[Interval] = []
        self.queues: dict[tuple[int, int], deque[Node]] = defaultdict(deque)
        self.arrived: dict[tuple[int, int], set[int]] = defaultdict(set)  # processes waiting in an all-reduce
        self.members = self._members()
        self.memory = list(costs.resident_bytes)
        self.peak = list(costs.resident_bytes)
        self.link_bytes: dict[tuple[int, int], float] = defaultdict(float)

    def _members(self) -> dict[tuple[int, int], set[Node]]:
        members: dict[tuple[int, int], set[Node]] = defaultdict(set)
        for process, row in enumerate(self.schedule.actions):
            for position, action in enumerate(row):
                if action.kind == "ALLREDUCE":
                    members[action.stage, action.micro_batch].add((process, position))
        return members

    def run(self) -> Simulation:
        for node in [node for node, count in self.waits_for.items() if count == 0]:
            self._begin(node)
        while self.events:
            self.now_s, _, node = heapq.heappop(self.events)
            self._end(node)
        done = tuple(sorted(self.intervals, key=lambda interval: (interval.stop_s, interval.start_s)))
        return Simulation(self.schedule, done, tuple(self.peak), dict(self.link_bytes))

    def _action(self, node: Node) -> Action:
        return self.schedule.actions[node[0]][node[1]]

    def _begin(self, node: Node) -> None:
        """All that the action waits for is there, its process included."""
        process, action = node[0], self._action(node)
        if action.kind in SENDS:
            # The process goes on at once; whoever needs the message waits for its end on the link.
            queue = self.queues[process, action.to]
            queue.append(node)
            if len(queue) == 1:
                self._transmit(node)
            self._release((process, node[1] + 1), node)
        elif action.kind == "ALLREDUCE":
            key = (action.stage, action.micro_batch)
            self.arrived[key].add(process)
            if len(self.arrived[key]) == len(self.members[key]):
                for member in sorted(self.members[key]):
                    self._occupy(member, self.costs.action_s(process, action))
        else:
            self._occupy(node, self.costs.action_s(process, action))
            self.memory[process] += self._kept_bytes(process, action)
            self.peak[process] = max(self.peak[process], self.memory[process])

    def _kept_bytes(self, process: int, action: Action) -> float:
        # A backward adds nothing, and frees what its forward kept when it ends.
        return 0.0 if action.kind == "B" else self.costs.action_bytes(process, action)

    def _occupy(self, node: Node, seconds: float) -> None:
        self.intervals.append(Interval(node[0], self._action(node), self.now_s, self.now_s + seconds))
        heapq.heappush(self.events, (self.now_s + seconds, len(self.intervals), node))

    def _transmit(self, node: Node) -> None:
        process, action = node[0], self._action(node)
        size = self.costs.send_bytes(action)
        self.link_bytes[process, action.to] += size
        self._occupy(node, self.costs.link(process, action.to).seconds(size))

    def _end(self, node: Node) -> None:
        process, action = node[0], self._action(node)
        following = (process, node[1] + 1)
        if action.kind in SENDS:
            queue = self.queues[process, action.to]
            queue.popleft()
            if queue:
                self._transmit(queue[0])
        elif action.kind in ("P", "R"):
            self.memory[process] -= self.costs.action_bytes(process, action)
        elif action.kind == "B":
            forward = Action(action.stage, "F", action.micro_batch)
            self.memory[process] -= self.costs.action_bytes(process, forward)
        for follower in self.followers[node]:
            # A send has let its own process go on when it began.
            if action.kind not in SENDS or follower != following:
                self._release(follower, node)

    def _release(self, node: Node, needed: Node) -> None:
        # The last action of a row has none behind it.
        if node in self.waits_for and node in self.followers[needed]:
            self.waits_for[node] -= 1
            if self.waits_for[node] == 0:
                self._begin(node)
