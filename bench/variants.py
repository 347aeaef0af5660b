"""The benchmark's fleets and work, and the ways to train that it compares; all planned by the package's planner."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from emulation import Variant

from contextlora.gear.planning.candidates import Candidate, TaskPlan, forward_share, is_reassigned, plan_task
from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.devices import Device, Fleet, Link
from contextlora.gear.planning.plan import plan_stage
from contextlora.gear.planning.workload import ANSWER_BYTES, Workload

ONE, DATA, ONE_F_ONE_B, GPIPE = "one device", "data parallel", "1F1B", "GPipe"
PLAIN, GEAR = "ContextGear", "ContextGear, reassigned"
KEPT = ", kept"  # the answers of the first epoch
RIVALS = (ONE, DATA, ONE_F_ONE_B, GPIPE)
ANEW = (*RIVALS, PLAIN, GEAR)
MOST_EXTRA_STEPS = 30
PLENTY_BYTES = 1e15  # memory never decides here
FLEETS = {"two": (1.0, 1.0), "half": (1.0, 0.5), "four": (1.0,) * 4}
FLEET_NAMES = {"two": "two equal", "half": "second at half speed", "four": "four equal"}


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        n: prerequisites.
        fleet, link: keys of `FLEETS` and `links.LINKS`.
    """

    n: int
    fleet: str
    link: str

    def fits(self, patterns: str) -> bool:
        """Whether all parts of one of the patterns, such as `n2/two,20mbit`, are this cell's; no pattern fits all."""
        own = {f"n{self.n}", self.fleet, self.link}
        return not patterns or any(set(pattern.split("/")) <= own for pattern in patterns.split(","))


def make_fleet(calibrated: Device, speeds: Sequence[float], links: dict[tuple[int, int], Link]) -> Fleet:
    """Devices of these speeds, as shares of the calibrated one's; links by pairs of processes."""
    devices = []
    for process, speed in enumerate(speeds):
        seconds = {key: getattr(calibrated.measured, key) / speed for key in ("forward_s", "train_s")}
        measured = replace(calibrated.measured, **seconds)
        devices.append(Device(f"d{process}", PLENTY_BYTES, calibrated.overhead_s / speed, measured=measured))
    named = {(f"d{first}", f"d{second}"): link for (first, second), link in links.items()}
    return Fleet("emulated", tuple(devices), next(iter(named.values())), named)


def with_prerequisites(workload: Workload, n: int) -> Workload:
    """The stage with n prerequisites before each item of its first task."""
    task = replace(workload.tasks[0], num_prerequisites=n, answer_bytes=ANSWER_BYTES * n)
    return replace(workload, tasks=(task,))


def plan_variants(fleet: Fleet, workload: Workload) -> dict[str, Variant]:
    """Every variant by name, each the fastest of its kind that the planner finds.

    Groups of ContextGear are data-parallel; layer pipelines are compared alone.
    """
    cost, task = StageCost(fleet, workload), workload.tasks[0]
    anew = plan_stage(fleet, workload, cache_answers=False, layouts=("data",)).candidates
    kept = plan_stage(fleet, workload, cache_answers=True, layouts=("data",)).candidates
    layers = plan_stage(fleet, workload, cache_answers=False).candidates
    found = {
        ONE: _first(anew, "one device"),
        DATA: _first(anew, "data parallel"),
        ONE_F_ONE_B: _first(layers, "pipeline 1f1b"),
        GPIPE: _first(layers, "pipeline gpipe"),
        GEAR: _first(anew, "contextgear"),
    }
    for name, strategy in ((ONE, "one device"), (DATA, "data parallel"), (PLAIN, "contextgear")):
        found[name + KEPT] = _first([candidate for candidate in kept if candidate.later], strategy)
    plans = {name: (candidate, plan_task(cost, candidate, task)) for name, candidate in found.items()}
    splits = [candidate for candidate in anew if candidate.strategy == "contextgear"]
    # Without reassignment another split may be the best, so each is planned anew.
    plain = [(candidate, _without_reassignment(cost, candidate)) for candidate in splits]
    plans[PLAIN] = min(plain, key=lambda pair: pair[1].step_s)
    return {name: Variant(fleet, workload, *pair) for name, pair in plans.items()}


def _first(candidates: Sequence[Candidate], strategy: str) -> Candidate:
    return next(candidate for candidate in candidates if candidate.strategy == strategy)


def _without_reassignment(cost: StageCost, candidate: Candidate) -> TaskPlan:
    """All chains on D_f: q = 0."""
    (task,) = cost.workload.tasks
    train, chains = cost.train(candidate.train, task, False), forward_share(cost, candidate, task)
    return TaskPlan(task.task, task.num_prerequisites, train, chains, own_chains=train)


def timed_window(variant: Variant, warm: int, least: int) -> tuple[int, int]:
    """The steps to time, first and last + 1, with the pipeline filled: at least `least` after `warm`.

    Where batches are reassigned, from the second of them on, as D_f has no lead before, and to where as large a share
    of the steps is reassigned as in a whole stage.
    """
    share = variant.plan.reassigned_share
    if share:
        warm = next(batch for batch in count(1) if is_reassigned(share, batch))

    def error(num: int) -> float:
        return abs(sum(is_reassigned(share, batch) for batch in range(warm, warm + num)) / num - share)

    return warm, warm + min(range(least, least + MOST_EXTRA_STEPS), key=error)


def stage_mean_s(variant: Variant, first_s: float, later_s: float, once_s: float = 0.0) -> float:
    """Mean seconds of a step over a whole stage.

    Args:
        variant: that keeps answers.
        first_s, later_s: of a step while answers are made, and after.
        once_s: what the change takes.
    """
    task = variant.task
    first = task.first_epoch_steps(variant.workload.batch_size)
    return (first * first_s + (task.steps - first) * later_s + once_s) / task.steps


def predicted_s(variant: Variant) -> float:
    """C of the cost model; with answers kept, the mean over the stage."""
    plan = variant.plan
    return plan.step_s if variant.candidate.later is None else stage_mean_s(variant, plan.step_s, plan.later_step_s)


def bound_s(variant: Variant) -> float:
    """max((n f + t) / (S_F + S_T), t / S_T) for the variant's groups.

    f and t are one batch's seconds on the first device, with the overhead of one call for each pass, forward and
    backward; S are speeds as shares of the first device's.
    """
    cost, task, groups = StageCost(variant.fleet, variant.workload), variant.task, variant.candidate
    first, batch_size = variant.fleet.devices[0].name, variant.workload.batch_size

    def seconds(kinds: str) -> float:
        return sum(cost.call_s(first, task, kind, batch_size) for kind in kinds)

    speeds = {name: cost.pass_s(first, task) / cost.pass_s(name, task) for name in groups.devices}
    train = sum(speeds[name] for name in groups.train.devices)
    chains_s, train_s = task.num_prerequisites * seconds("P"), seconds("FB")
    return max((chains_s + train_s) / sum(speeds.values()), train_s / train)


def describe(variant: Variant) -> str:
    """Groups, cuts and the reassigned share, for people."""
    groups, plan = variant.candidate, variant.plan
    text = "+".join(groups.train.devices)
    if groups.train.layout != "data":
        text += (
            f", {groups.train.layout}, cut at {', '.join(map(str, groups.train.cuts))}, k={plan.train.micro_batches[0]}"
        )
    if groups.forward is not None:
        text = f"D_t {text}, D_f {'+'.join(groups.forward.devices)}, reassigned {100 * plan.reassigned_share:.1f} %"
    return text + (f", then {'+'.join(groups.later.devices)}" if groups.later else "")
