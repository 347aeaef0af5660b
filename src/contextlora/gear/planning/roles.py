"""Who does what in a stage, by process: a `StagePlan` made out for the items of single batches.

Rows of a batch of 6 for D_t = processes 0 and 1, D_f = processes 2 and 3:

    row      0  1  2  3  4  5
    trains   0  0  0  1  1  1      while answers are being made; `later` may have other shares and more processes
    chain    2  2  2  2  3  3      whose forward-only passes give the row its context
    own      0  0  0  1  1  1      the same in the batches that are reassigned to D_t
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from contextlora.errors import UserError, listed
from contextlora.gear.planning.candidates import Candidate, TaskPlan, is_reassigned
from contextlora.gear.planning.device_groups import DeviceGroup, Share
from contextlora.gear.planning.plan import StagePlan


@dataclass(frozen=True)
class TaskRoles:
    """The shares of one task's batches.

    Attributes:
        edges: process r trains rows edges[r] to edges[r + 1] - 1.
        later_edges: likewise once all answers are known.
        chain_owners: for each row the process that runs its chain.
        own_owners: likewise in a reassigned batch; empty without D_f.
        reassigned_share: of the batches, see `candidates.is_reassigned`.
        sizes: k of each process, the most items that it computes at a time; empty sets no limit.
        later_sizes: likewise once all answers are known.

    A layer pipeline stands here as its last process, which has all of its rows.
    """

    edges: tuple[int, ...]
    later_edges: tuple[int, ...]
    chain_owners: tuple[int, ...]
    sizes: tuple[int, ...] = ()
    later_sizes: tuple[int, ...] = ()
    own_owners: tuple[int, ...] = ()
    reassigned_share: float = 0.0

    @property
    def all_owners(self) -> set[int]:
        """All processes that run chains."""
        return {*self.chain_owners, *(self.own_owners if self.reassigned_share else ())}

    def rows(self, process: int, later: bool, num_items: int) -> range:
        """The rows of a batch that a process trains; a batch of fewer items than planned is cut in proportion."""
        # Both ends are rounded down, so that neighbours' rows meet and all rows are trained.
        edges = self.later_edges if later else self.edges
        return range(*(edge * num_items // edges[-1] for edge in edges[process : process + 2]))

    def trainers(self, later: bool, num_items: int) -> tuple[int, ...]:
        """The processes that train a batch."""
        return tuple(process for process in range(len(self.edges) - 1) if self.rows(process, later, num_items))

    def owner(self, row: int, num_items: int, batch: int) -> int:
        """The process that runs the chain of a row, in a batch numbered from 0 among those that need chains."""
        owners = self.own_owners if is_reassigned(self.reassigned_share, batch) else self.chain_owners
        return owners[row * len(owners) // num_items]


@dataclass(frozen=True)
class Pipeline:
    """Processes that share the layers.

    Attributes:
        processes: in the order of the stages.
        layout: 1f1b or gpipe.
        cuts: first layer of every stage but the first.
    """

    processes: tuple[int, ...]
    layout: str
    cuts: tuple[int, ...]

    def layers(self, stage: int) -> slice:
        """The layers of a stage; the last one's have no stop, whatever their number."""
        edges = (0, *self.cuts, None)
        return slice(*edges[stage : stage + 2])


@dataclass(frozen=True)
class StageRoles:
    """The roles of all processes in a stage.

    Attributes:
        tasks: task -> shares of its batches.
        keeps_answers: whether an item's chain runs only once in the stage.
        summary: the plan in one line, for people.
        train, forward, later: D_t, D_f, and who trains once all answers are known, where these are layer pipelines;
            None where every process computes whole items.
    """

    tasks: Mapping[str, TaskRoles]
    keeps_answers: bool
    summary: str
    train: Pipeline | None = None
    forward: Pipeline | None = None
    later: Pipeline | None = None

    @property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """All of them, each once."""
        # Ordered, unlike a set: all processes must make the pipelines' groups in one order.
        return tuple(dict.fromkeys(filter(None, (self.train, self.forward, self.later))))

    def runs_chains_in(self, process: int) -> Pipeline | None:
        """The pipeline in which a process runs prerequisite chains."""
        return next((p for p in (self.train, self.forward) if p is not None and process in p.processes), None)


def stage_roles(plan: StagePlan, devices: Sequence[str], keeps_answers: bool) -> StageRoles:
    """Makes a plan out for processes.

    Args:
        plan: of the stage.
        devices: name of each process's device.
        keeps_answers: see `StageRoles`.

    Raises:
        UserError: the plan names a device that no process has.
    """
    best, names = plan.best, list(devices)
    later = best.later or best.train
    for group in filter(None, (best.train, best.forward, later)):
        if unknown := set(group.devices) - set(names):
            name = sorted(unknown)[0]
            raise UserError(f"{plan.stage}: the plan uses {name}, but the processes are {listed(devices)}: plan anew")
    tasks = {task.task: _task_roles(best, task, names) for task in plan.tasks}
    pipelines = (_pipeline(group, names) for group in (best.train, best.forward, later))
    return StageRoles(tasks, keeps_answers, f"{plan.stage}: {_summary(plan)}", *pipelines)


def _pipeline(group: DeviceGroup | None, devices: list[str]) -> Pipeline | None:
    if group is None or group.layout == "data":
        return None
    return Pipeline(tuple(devices.index(name) for name in group.devices), group.layout, group.cuts)


def _task_roles(best: Candidate, task: TaskPlan, devices: list[str]) -> TaskRoles:
    edges, sizes = _edges(best.train, task.train, devices), _sizes(best.train, task.train, devices)
    later, later_sizes = edges, sizes
    if best.later and task.later:
        later, later_sizes = _edges(best.later, task.later, devices), _sizes(best.later, task.later, devices)
    if task.chains is None:
        return TaskRoles(edges, later, _owners(best.train, task.train, devices), sizes, later_sizes)
    # A process is in D_t or in D_f, and has 0 in the other.
    sizes = tuple(map(max, sizes, _sizes(best.forward, task.chains, devices)))
    ahead, own = _owners(best.forward, task.chains, devices), _owners(best.train, task.own_chains, devices)
    return TaskRoles(edges, later, ahead, sizes, later_sizes, own, task.reassigned_share)


def _owners(group: DeviceGroup, share: Share, devices: list[str]) -> tuple[int, ...]:
    """The process of each row, in the order of the processes."""
    items = _items(group, share)
    return tuple(process for process, name in enumerate(devices) for _ in range(items.get(name, 0)))


def _items(group: DeviceGroup, share: Share) -> dict[str, int]:
    """Items of each device; a pipeline, all of whose devices work on every item, stands as its last one."""
    # The last stage knows the loss and the answers.
    items = share.items if group.layout == "data" else (*(0 for _ in share.items[1:]), share.items[-1])
    return dict(zip(group.devices, items, strict=True))


def _sizes(group: DeviceGroup, share: Share, devices: Sequence[str]) -> tuple[int, ...]:
    """k of each process; 0 outside of the group."""
    sizes = dict(zip(group.devices, share.micro_batches, strict=True))
    return tuple(sizes.get(name, 0) for name in devices)


def _edges(group: DeviceGroup, share: Share, devices: Sequence[str]) -> tuple[int, ...]:
    """First row of each process, and the number of rows; processes outside of the group have none."""
    items = _items(group, share)
    return tuple(accumulate((items.get(name, 0) for name in devices), initial=0))


def _summary(plan: StagePlan) -> str:
    best = plan.best
    parts = [f"{best.strategy}, {_names(best.train)} train"]
    if best.forward is not None:
        moved = ", ".join(f"{100 * t.reassigned_share:.1f} % of {t.task}" for t in plan.tasks if t.reassigned_share)
        own = f" (reassigned: the chains of {moved})" if moved else ""
        parts.append(f"{_names(best.forward)} run the chains{own}")
    if best.later is not None:
        parts.append(f"answers kept, then {_names(best.later)} train")
    return ", ".join(parts)


def _names(group: DeviceGroup) -> str:
    """The devices, `a + b`; of a pipeline with its layout and cuts, `a > b (1f1b, cut before layer 3)`."""
    if group.layout == "data":
        return " + ".join(group.devices)
    return f"{' > '.join(group.devices)} ({group.layout}, cut before layer {', '.join(map(str, group.cuts))})"
