"""The planner: the fastest way to train every stage that fits the devices' memory, as `cost` models them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from contextlora.errors import UserError
from contextlora.gear.planning.candidates import Candidate, TaskPlan, Weighted, plan_task, weighted_tasks, with_details
from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.devices import Fleet
from contextlora.gear.planning.search import LAYOUTS, Cuts, Search
from contextlora.gear.planning.workload import Workload


@dataclass(frozen=True)
class StagePlan:
    """One stage.

    Attributes:
        stage: name of the workload.
        batch_size: B.
        candidates: every one that was weighed, the best first and those that do not fit last.
        tasks: how the batches of each task run under the best.
        bound_s: all devices busy all the time with nothing to send; no plan is faster.
    """

    stage: str
    batch_size: int
    candidates: tuple[Candidate, ...]
    tasks: tuple[TaskPlan, ...]
    bound_s: float

    @property
    def best(self) -> Candidate:
        """The fastest candidate that fits."""
        return self.candidates[0]

    def best_of_each_strategy(self) -> list[Candidate]:
        """The first candidate of each strategy, answers kept or not, in the order of `candidates`."""
        first: dict[tuple[str, bool], Candidate] = {}
        for candidate in self.candidates:
            first.setdefault((candidate.strategy, candidate.later is not None), candidate)
        return list(first.values())


@dataclass(frozen=True)
class Plan:
    """All stages of a training on one fleet."""

    fleet: str
    stages: tuple[StagePlan, ...]

    @property
    def seconds(self) -> float:
        """Predicted time of all stages."""
        return sum(stage.best.seconds for stage in self.stages)

    def to_json(self) -> str:
        """The plan as JSON; numbers in seconds and bytes, devices by name."""
        return json.dumps(asdict(self), indent=1)


def plan_training(
    fleet: Fleet, workloads: Sequence[Workload], cache_answers: bool = True, layouts: Sequence[str] = LAYOUTS
) -> Plan:
    """Plans every stage.

    Args:
        fleet: devices and links.
        workloads: the stages, from `workload.estimate_workloads`.
        cache_answers: whether the prerequisites' answers of the first epoch may be kept; they are constant in a stage.
        layouts: what groups of several devices may be.

    Raises:
        UserError: no candidate fits the memory of the devices.
    """
    known_cuts: Cuts = {}  # stages of one shape find them once
    stages = tuple(plan_stage(fleet, workload, cache_answers, known_cuts, layouts) for workload in workloads)
    return Plan(fleet.name, stages)


def plan_stage(
    fleet: Fleet,
    workload: Workload,
    cache_answers: bool = True,
    known_cuts: Cuts | None = None,
    layouts: Sequence[str] = LAYOUTS,
) -> StagePlan:
    """Weighs the candidates of one stage and takes the fastest that fits; arguments as of `plan_training`."""
    cost = StageCost(fleet, workload)
    tasks = weighted_tasks(workload.tasks, workload.batch_size)
    search = Search(cost, tasks, cache_answers, known_cuts, layouts)
    candidates = sorted(search.run(), key=_order)
    # Misfits come last, single devices first of them: nothing fits, and the reason is that of one device.
    if candidates[0].seconds is None:
        reason = candidates[0].reason + (", and pipelines hold it on every device too" if workload.whole_model else "")
        raise UserError(
            f"{workload.name} fits no use of the devices of {fleet.name}: a whole model {reason}; "
            "add memory or devices, or lower training.batch_size, method.rank or the model's size"
        )
    best = with_details(cost, candidates[0], tasks)
    losers = [_with_reason(cost, other, best, tasks) for other in candidates[1:]]
    plans = [plan_task(cost, best, task) for task in workload.tasks]
    bound_s = _bound_s(cost, tasks, search.cache_answers)
    return StagePlan(workload.name, workload.batch_size, (best, *losers), tuple(plans), bound_s)


def _bound_s(cost: StageCost, tasks: Sequence[Weighted], keeps_answers: bool) -> float:
    """All devices training and running chains at full speed, with nothing to send."""
    names, total_s = [device.name for device in cost.fleet.devices], 0.0
    for row in tasks:
        later_steps = row.steps - row.first_steps if keeps_answers else 0
        later = replace(row.task, num_prerequisites=0)
        total_s += (row.steps - later_steps) * cost.lower_bound_s(names, (), row.task)
        total_s += later_steps * cost.lower_bound_s(names, (), later)
    return total_s


def _order(candidate: Candidate) -> tuple:
    """Fastest first; among equals the one with fewer devices and without D_f."""
    if candidate.seconds is None:
        return (True, 0.0, len(candidate.devices), False)
    return (False, candidate.seconds, len(candidate.devices), candidate.forward is not None)


def _with_reason(cost: StageCost, candidate: Candidate, best: Candidate, tasks: list[Weighted]) -> Candidate:
    if candidate.seconds is None:
        return candidate
    slower = candidate.seconds / best.seconds - 1
    reason = f"slower by {_percent(slower)} %" if slower >= 5e-5 else "as fast, less simple"
    return replace(with_details(cost, candidate, tasks), reason=reason)


def _percent(share: float) -> str:
    return f"{100 * share:,.0f}" if share >= 1 else f"{100 * share:.2g}"
