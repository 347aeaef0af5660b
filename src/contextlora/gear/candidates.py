"""Ways to run a stage on several devices, and what each costs.

Every candidate is a group D_t that trains and perhaps a group D_f that runs the prerequisite chains ahead of it:

    one device       D_t is one device and runs the chains itself
    data parallel    D_t shares the items in proportion to speed, each device runs its items' chains
    pipeline         D_t shares the layers (1F1B or GPipe), the chains go through the same stages
    contextgear      D_f runs FP(T_f) of the next batch while D_t runs FP(T_t) and BP(T_t) of this one (Eq. (7))

With `later`, answers are kept: the first epoch runs as above, the others need no chain, and D_f may join D_t in data
parallelism.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from contextlora.gear.cost import StageCost
from contextlora.gear.group import Group, Misfit, Share
from contextlora.gear.workload import TaskWork


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
    train: Group
    forward: Group | None = None
    later: Group | None = None
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
        reassigned_passes: q, passes of a batch that D_t runs; whole chains, so a multiple of n.
        step_s: C, seconds of a step once the pipeline is filled.
        later_step_s: likewise where the answers are known already.
        later: items and micro-batches of who trains then; None where answers are not kept.
    """

    task: str
    num_prerequisites: int
    train: Share
    chains: Share | None
    reassigned_passes: int
    step_s: float
    later_step_s: float
    later: Share | None = None


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
    batch_size, n = cost.workload.batch_size, task.num_prerequisites
    if candidate.forward is None or n == 0:
        moved, chains = (batch_size if n else 0), None
        train = cost.train(candidate.train, task, moved)
        if isinstance(train, Misfit):
            return train
        step_s = train.seconds
    else:
        moved = cost.balanced(candidate.train, candidate.forward, task)
        if isinstance(moved, Misfit):
            return moved
        train = cost.train(candidate.train, task, moved)
        chains = forward_share(cost, candidate, task, batch_size - moved)
        step_s = max(train.seconds, chains.seconds)
    later_s, later = step_s, None
    if candidate.later is not None:
        later = cost.train(candidate.later, task, 0)
        if isinstance(later, Misfit):
            return later
        later_s = later.seconds
    return TaskPlan(task.task, n, train, chains, n * moved, step_s, later_s, later)


def forward_share(cost: StageCost, candidate: Candidate, task: TaskWork, num_items: int) -> Share:
    """D_f's part of a step with the link in it: C_F."""
    share = cost.forward(candidate.forward, task, num_items)
    sent_s = cost.answers_s(candidate.forward, candidate.train, task, num_items)
    return replace(share, seconds=share.seconds + sent_s)


def weigh(cost: StageCost, candidate: Candidate, tasks: Iterable[Weighted]) -> Candidate:
    """The candidate with its predicted seconds, or with the reason why it does not fit."""
    total_s = fill_s = 0.0
    for row in tasks:
        plan = plan_task(cost, candidate, row.task)
        if isinstance(plan, Misfit):
            return replace(candidate, reason=misfit_text(plan))
        total_s += row.first_steps * plan.step_s + (row.steps - row.first_steps) * plan.later_step_s
        if not fill_s and plan.chains is not None:
            fill_s = plan.chains.seconds
    return replace(candidate, seconds=total_s + fill_s)


def misfit_text(misfit: Misfit) -> str:
    """Why a group cannot do its work."""
    needed, has = (value / 1e9 for value in (misfit.needed_bytes, misfit.has_bytes))
    return f"does not fit: {misfit.device} needs {needed:.3g} GB, has {has:.3g} GB"


def with_details(cost: StageCost, candidate: Candidate, tasks: Iterable[Weighted]) -> Candidate:
    """Adds memory and bytes to a candidate that fits."""
    memory: dict[str, float] = {}
    total_bytes, seen = 0.0, set()

    def occupy(group: Group, task: TaskWork, share: Share, trains: bool) -> None:
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
        chains = plan.reassigned_passes // max(1, plan.num_prerequisites)
        later_steps = row.steps - row.first_steps
        with_chains = row.steps if candidate.later is None else row.first_steps
        total_bytes += with_chains * _train_bytes(cost, candidate.train, task, chains)
        total_bytes += with_chains * _chain_bytes(cost, candidate, task, chains)
        if candidate.later is not None:
            occupy(candidate.later, task, cost.train(candidate.later, task, 0), trains=True)
            total_bytes += later_steps * _train_bytes(cost, candidate.later, task, 0)
    return replace(candidate, memory_bytes=memory, link_bytes=total_bytes)


def _train_bytes(cost: StageCost, group: Group, task: TaskWork, chains: int) -> float:
    """Bytes of a step within D_t: the ring all-reduce, or activations and their gradients between stages."""
    hops = len(group.devices) - 1
    if group.layout == "data":
        return 2 * hops * task.gradient_bytes
    train = 2 * cost.workload.batch_size * task.boundary_bytes
    return hops * (train + task.num_prerequisites * chains * task.prerequisite_boundary_bytes)


def _chain_bytes(cost: StageCost, candidate: Candidate, task: TaskWork, chains: int) -> float:
    """Bytes of a step within D_f and from there to D_t."""
    if candidate.forward is None or not task.num_prerequisites:
        return 0.0
    ahead, group = cost.workload.batch_size - chains, candidate.forward
    hops = 0 if group.layout == "data" else len(group.devices) - 1
    within = hops * task.num_prerequisites * task.prerequisite_boundary_bytes
    return ahead * (within + task.answer_bytes)
