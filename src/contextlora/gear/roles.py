"""Who does what in a stage, by rank: a `StagePlan` made out for the items of single batches.

Rows of a batch of 6 for D_t = ranks 0 and 1, D_f = rank 2, one chain reassigned to each of D_t:

    row      0  1  2  3  4  5
    trains   0  0  0  1  1  1      while answers are being made; `later` may have other shares and more ranks
    chain    0  2  2  1  2  2      whose forward-only passes give the row its context
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from contextlora.errors import UserError
from contextlora.gear.candidates import Candidate, TaskPlan
from contextlora.gear.group import Group, Share
from contextlora.gear.plan import StagePlan


@dataclass(frozen=True)
class TaskRoles:
    """The shares of one task's batches.

    Attributes:
        edges: rank r trains rows edges[r] to edges[r + 1] - 1.
        later_edges: likewise once all answers are known.
        chain_owners: for each row the rank that runs its chain.
    """

    edges: tuple[int, ...]
    later_edges: tuple[int, ...]
    chain_owners: tuple[int, ...]

    def rows(self, rank: int, later: bool, num_items: int) -> range:
        """The rows of a batch that a rank trains; a batch of fewer items than planned is cut in proportion."""
        edges = self.later_edges if later else self.edges
        return range(*(edge * num_items // edges[-1] for edge in edges[rank : rank + 2]))

    def trainers(self, later: bool, num_items: int) -> tuple[int, ...]:
        """The ranks that train a batch."""
        return tuple(rank for rank in range(len(self.edges) - 1) if self.rows(rank, later, num_items))

    def owner(self, row: int, num_items: int) -> int:
        """The rank that runs the chain of a row."""
        return self.chain_owners[row * len(self.chain_owners) // num_items]


@dataclass(frozen=True)
class StageRoles:
    """The roles of all ranks in a stage.

    Attributes:
        tasks: task -> shares of its batches.
        keeps_answers: whether an item's chain runs only once in the stage.
        summary: the plan in one line, for people.
    """

    tasks: Mapping[str, TaskRoles]
    keeps_answers: bool
    summary: str


def stage_roles(plan: StagePlan, devices: Sequence[str], keeps_answers: bool) -> StageRoles:
    """Makes a plan out for ranks.

    Args:
        plan: of the stage.
        devices: name of each rank's device.
        keeps_answers: see `StageRoles`.

    Raises:
        UserError: the plan cuts the model into layers, or names a device that no rank has.
    """
    best = plan.best
    for group in filter(None, (best.train, best.forward, best.later)):
        if group.layout != "data":
            raise UserError(f"{plan.stage}: the executor runs data-parallel groups only, the plan has a {group.layout}")
        if unknown := set(group.devices) - set(devices):
            raise UserError(f"{plan.stage}: the plan uses {sorted(unknown)[0]}, but the ranks are {', '.join(devices)}")
    tasks = {task.task: _task_roles(best, task, list(devices), plan.batch_size) for task in plan.tasks}
    return StageRoles(tasks, keeps_answers, f"{plan.stage}: {_summary(plan)}")


def _task_roles(best: Candidate, task: TaskPlan, devices: list[str], batch_size: int) -> TaskRoles:
    edges = _edges(best.train, task.train, devices)
    later = _edges(best.later, task.later, devices) if best.later and task.later else edges
    trainers = [rank for rank in range(len(devices)) for _ in range(edges[rank + 1] - edges[rank])]
    owners = list(trainers)
    if task.chains is not None:
        moved = task.reassigned_passes // max(1, task.num_prerequisites)
        # As the cost model has it: each of D_t in proportion to its items, rounded up; the rest is D_f's.
        kept = [-(-(edges[rank + 1] - edges[rank]) * moved // batch_size) for rank in range(len(devices))]
        ahead = [
            devices.index(name)
            for name, n in zip(best.forward.devices, task.chains.items, strict=True)
            for _ in range(n)
        ]
        ahead = iter(ahead)
        owners = [rank if row - edges[rank] < kept[rank] else next(ahead, rank) for row, rank in enumerate(trainers)]
    return TaskRoles(edges, later, tuple(owners))


def _edges(group: Group, share: Share, devices: Sequence[str]) -> tuple[int, ...]:
    """First row of each rank, and the number of rows; ranks outside of the group have none."""
    items = dict(zip(group.devices, share.items, strict=True))
    return tuple(accumulate((items.get(name, 0) for name in devices), initial=0))


def _summary(plan: StagePlan) -> str:
    best = plan.best
    parts = [f"{best.strategy}, {' + '.join(best.train.devices)} train"]
    if best.forward is not None:
        passes = "; ".join(f"{t.task} {t.reassigned_passes}" for t in plan.tasks if t.num_prerequisites)
        parts.append(f"{' + '.join(best.forward.devices)} run the chains (reassigned passes: {passes})")
    if best.later is not None:
        parts.append(f"answers kept, then {' + '.join(best.later.devices)} train")
    return ", ".join(parts)
