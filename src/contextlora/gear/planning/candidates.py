"""Ways to run a stage on several devices, and what each costs.

Every candidate is a group D_t that trains and perhaps a group D_f that runs the prerequisite chains ahead of it:

    one device       D_t is one device and runs the chains itself
    data parallel    D_t shares the items in proportion to speed, each device runs its items' chains
    pipeline         D_t shares the layers (1F1B or GPipe), the chains go through the same stages
    contextgear      D_f runs FP(T_f) of the next batch while D_t runs FP(T_t) and BP(T_t) of this one (Eq. (7)); if
                     D_f is slower, some batches' chains are reassigned to D_t

With `later`, answers are kept: the first epoch runs as above, the others need no chain, and D_f may join D_t in data
parallelism.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.device_groups import DeviceGroup, Misfit, Share
from contextlora.gear.planning.workload import TaskWork


@dataclass(frozen=True)
class Candidate:
    """One way to run a stage.

    Attributes:
        strategy: as in the module's head.
        train: D_t.
        forward: D_f, or None where D_t runs the chains.
        later: who trains from the second epoch on, without chains; None where answers are not kept.
        seconds: predicted time of the stage; None where it does not fit.
        memory_bytes: predicted peak of each device.
        link_bytes: bytes on all links together in the stage.
        reason: why it was not chosen; empty for the best.
    """

    strategy: str
    train: DeviceGroup
    forward: DeviceGroup | None = None
    later: DeviceGroup | None = None
    seconds: float | None = None
    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    link_bytes: float = 0.0
    reason: str = ""

    @property
    def devices(self) -> tuple[str, ...]:
        """D_t, then D_f."""
        return self.train.devices + (self.forward.devices if self.forward else ())


@dataclass(frozen=True)
class TaskPlan:
    """How the batches of one task run.

    Attributes:
        task: its name.
        num_prerequisites: n.
        train: items and micro-batches of D_t.
        chains: items and micro-batches of D_f's chains; None without D_f.
        later: items and micro-batches of who trains then; None where answers are not kept.
        reassigned_share: q / (n B), share of the batches whose chains D_t runs instead of D_f, see `is_reassigned`.
        own_chains: how D_t's devices share the chains of such a batch; None without D_f.
        step_s: C, seconds of a step once the pipeline is filled; the mean over the batches.
        later_step_s: likewise where the answers are known already.
    """

    task: str
    num_prerequisites: int
    train: Share
    chains: Share | None
    later: Share | None = None
    reassigned_share: float = 0.0
    own_chains: Share | None = None
    step_s: float = field(init=False)  # of the figures above, for plan.json
    later_step_s: float = field(init=False)

    def __post_init__(self) -> None:
        step_s = max(self.train_s, self.forward_s)
        object.__setattr__(self, "step_s", step_s)
        object.__setattr__(self, "later_step_s", self.later.seconds if self.later else step_s)

    @property
    def train_s(self) -> float:
        """C_T, the mean over the batches."""
        return self.train.seconds + (self.reassigned_share * self.own_chains.seconds if self.own_chains else 0.0)

    @property
    def forward_s(self) -> float:
        """C_F, the mean over the batches; 0 without D_f."""
        return (1 - self.reassigned_share) * self.chains.seconds if self.chains else 0.0

    @property
    def fill_s(self) -> float:
        """Seconds until the first batch can be trained by D_t, whose own chains come first."""
        if self.chains is None:
            return 0.0
        return self.own_chains.seconds if self.reassigned_share else self.chains.seconds


def is_reassigned(share: float, batch: int) -> bool:
    """Whether D_t runs the chains of a task's batch itself, numbered from 0: the first one, then evenly spread.

    Whole batches, since a call has an overhead however few items it has.
    """
    return math.ceil((batch + 1) * share) > math.ceil(batch * share)


@dataclass(frozen=True)
class Weighted:
    """A task and how many steps of the stage look like it: tasks with equal figures count as one."""

    task: TaskWork
    steps: int
    first_steps: int


def weighted_tasks(tasks: Sequence[TaskWork], batch_size: int) -> list[Weighted]:
    """Tasks with equal figures merged."""
    merged: dict[TaskWork, Weighted] = {}
    for task in tasks:
        # What a step costs depends on none of these.
        key = replace(task, task="", steps=0, epoch_items=0)
        first = task.first_epoch_steps(batch_size)
        seen = merged.get(key)
        merged[key] = (
            Weighted(seen.task, seen.steps + task.steps, seen.first_steps + first)
            if seen
            else Weighted(task, task.steps, first)
        )
    return list(merged.values())


def plan_task(cost: StageCost, candidate: Candidate, task: TaskWork) -> TaskPlan | Misfit:
    """The best k and q of one task under a candidate's groups."""
    n = task.num_prerequisites
    if candidate.forward is None or n == 0:
        train = cost.train(candidate.train, task, n > 0)
        if isinstance(train, Misfit):
            return train
        plan = TaskPlan(task.task, n, train, None)
    else:
        plan = _plan_ahead(cost, candidate, task)
        if isinstance(plan, Misfit):
            return plan
    if candidate.later is None:
        return plan
    later = cost.train(candidate.later, task, False)
    return later if isinstance(later, Misfit) else replace(plan, later=later)


def _plan_ahead(cost: StageCost, candidate: Candidate, task: TaskWork) -> TaskPlan | Misfit:
    """With D_f: chains are reassigned until both sides take equally long, t + x R = (1 - x) F."""
    options = cost.reassignable(candidate.train, task)
    chains = forward_share(cost, candidate, task)
    for found in (options, chains):
        if isinstance(found, Misfit):
            return found

    def planned(train: Share, own: Share) -> TaskPlan:
        # The x of the docstring; below 0 D_t is the slower side, and the chains stay on D_f.
        moved = max(0.0, (chains.seconds - train.seconds) / (chains.seconds + own.seconds))
        return TaskPlan(task.task, task.num_prerequisites, train, chains, None, moved, own)

    return min((planned(*option) for option in options), key=lambda plan: (plan.step_s, plan.train.seconds))


def forward_share(cost: StageCost, candidate: Candidate, task: TaskWork) -> Share | Misfit:
    """A batch's chains on D_f, with the link to D_t in it: C_F where nothing is reassigned."""
    share = cost.forward(candidate.forward, task)
    if isinstance(share, Misfit):
        return share
    return replace(share, seconds=share.seconds + cost.answers_s(candidate.forward, candidate.train, task))


def weigh(cost: StageCost, candidate: Candidate, tasks: Iterable[Weighted]) -> Candidate:
    """The candidate with its predicted seconds, or with the reason why it does not fit."""
    total_s = fill_s = 0.0
    for row in tasks:
        plan = plan_task(cost, candidate, row.task)
        if isinstance(plan, Misfit):
            return replace(candidate, reason=misfit_text(plan))
        total_s += row.first_steps * plan.step_s + (row.steps - row.first_steps) * plan.later_step_s
        fill_s = fill_s or plan.fill_s  # once a stage: D_f is ahead when another task's turn comes
    return replace(candidate, seconds=total_s + fill_s)


def misfit_text(misfit: Misfit) -> str:
    """Why a group cannot do its work."""
    needed, has = (value / 1e9 for value in (misfit.needed_bytes, misfit.has_bytes))
    return f"does not fit: {misfit.device} needs {needed:.3g} GB, has {has:.3g} GB"


def with_details(cost: StageCost, candidate: Candidate, tasks: Iterable[Weighted]) -> Candidate:
    """Adds memory and bytes to a candidate that fits."""
    memory: dict[str, float] = {}
    total_bytes, seen = 0.0, set()

    def occupy(group: DeviceGroup, task: TaskWork, share: Share, trains: bool) -> None:
        # All that memory depends on; hundreds of tasks may differ in nothing of it.
        key = (group, share.micro_batches, trains, task.train_activation_bytes, task.forward_activation_bytes)
        if (key, task.num_prerequisites > 0) in seen:
            return
        seen.add((key, task.num_prerequisites > 0))
        for position, name in enumerate(group.devices):
            needed = cost.memory_bytes(group, position, task, share.micro_batches[position], trains)
            memory[name] = max(memory.get(name, 0.0), needed)

    for row in tasks:
        task, plan = row.task, plan_task(cost, candidate, row.task)
        occupy(candidate.train, task, plan.train, trains=True)
        if plan.chains:
            occupy(candidate.forward, task, plan.chains, trains=False)
        ahead = 1 - plan.reassigned_share if plan.chains else 0.0
        later_steps = row.steps - row.first_steps
        with_chains = row.steps if candidate.later is None else row.first_steps
        total_bytes += with_chains * _train_bytes(cost, candidate.train, task, 1 - ahead)
        total_bytes += with_chains * ahead * _chain_bytes(cost, candidate, task)
        if candidate.later is not None:
            occupy(candidate.later, task, cost.train(candidate.later, task, False), trains=True)
            total_bytes += later_steps * _train_bytes(cost, candidate.later, task, 0)
    return replace(candidate, memory_bytes=memory, link_bytes=total_bytes)


def _train_bytes(cost: StageCost, group: DeviceGroup, task: TaskWork, chains: float) -> float:
    """Bytes of a step within D_t: the ring all-reduce, or activations and their gradients between stages.

    `chains` is the share of the batches whose chains D_t runs.
    """
    hops = len(group.devices) - 1
    if group.layout == "data":
        # Each of p devices sends 2 (p - 1) messages of 1/p of the gradients.
        return 2 * hops * task.gradient_bytes
    item_bytes = 2 * task.boundary_bytes + chains * task.num_prerequisites * task.prerequisite_boundary_bytes
    return hops * cost.workload.batch_size * item_bytes


def _chain_bytes(cost: StageCost, candidate: Candidate, task: TaskWork) -> float:
    """Bytes of a batch's chains within D_f and from there to D_t."""
    if candidate.forward is None:
        return 0.0
    group = candidate.forward
    hops = 0 if group.layout == "data" else len(group.devices) - 1
    within = hops * task.num_prerequisites * task.prerequisite_boundary_bytes
    return cost.workload.batch_size * (within + task.answer_bytes)
