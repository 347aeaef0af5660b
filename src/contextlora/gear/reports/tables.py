"""Tables of a plan over several devices, for the terminal."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from contextlora.evaluation.report import as_rich
from contextlora.gear.planning.devices import Device, Fleet
from contextlora.gear.planning.plan import StagePlan
from contextlora.gear.planning.workload import Workload
from contextlora.gear.simulation.simulate import Simulation

MOST_DEVICES = 16
NUM_BATCHES = 6  # of a simulation: the pipeline fills in the first two
MOST_BATCHES = 64


def work_table(workloads: Sequence[Workload]) -> Table:
    """What every task of every stage asks for."""
    header = ["task", "stage", "steps", "epochs", "batch", "n", "MFLOP/item", "gradient", "boundary/item"]
    rows = [
        [
            task.task,
            workload.name.removeprefix("stage "),
            str(task.steps),
            f"{task.steps * workload.batch_size / task.epoch_items:.1f}",
            str(workload.batch_size),
            str(task.num_prerequisites),
            f"{task.forward_flops / 1e6:,.0f}",
            size(task.gradient_bytes),
            size(task.boundary_bytes),
        ]
        for workload in workloads
        for task in workload.tasks
    ]
    return as_rich("work: n forward-only passes come before each item; MFLOP of one forward", header, rows)


def devices_table(fleet: Fleet, stages: Sequence[StagePlan]) -> Table:
    """Which device does what."""
    used = [device for device in fleet.devices if any(device.name in stage.best.devices for stage in stages)]
    spare = [device for device in fleet.devices if device not in used]
    shown = [*used, *spare][:MOST_DEVICES]
    left_out = len(fleet.devices) - len(shown)
    rows = [
        [device.name, _speed(device), f"{device.memory_bytes / 1e9:.3g} GB", *(_role(device.name, s) for s in stages)]
        for device in fleet.devices
        if device in shown
    ]
    title = f"devices of {fleet.name}" + (f", and {left_out} more" if left_out else "")
    return as_rich(title, ["device", "speed", "memory", *(stage.stage for stage in stages)], rows)


def candidates_table(stage: StagePlan, simulations: Sequence[Simulation], task: str) -> Table:
    """The best of each strategy: what it is predicted to take, and why it was not chosen.

    Args:
        stage: a planned stage.
        simulations: of the candidates that fit, in the order of `best_of_each_strategy`.
        task: which was simulated.
    """
    header = ["strategy", "kept", "D_t+D_f", "stage", "step", "memory", "sent", "slower by"]
    rows, left = [], iter(simulations)
    for candidate in stage.best_of_each_strategy():
        sizes = f"{len(candidate.train.devices)}+{len(candidate.forward.devices) if candidate.forward else 0}"
        figures = ["-"] * 4
        if candidate.seconds is not None:
            most = max(candidate.memory_bytes.values())
            figures = [seconds(candidate.seconds), seconds(step_s(next(left))), size(most), size(candidate.link_bytes)]
        kept = "yes" if candidate.later else "-"
        rows.append(
            [
                candidate.strategy,
                kept,
                sizes,
                *figures,
                candidate.reason.removeprefix("slower by ") or Text("chosen", "bold"),
            ]
        )
    num_fit = sum(candidate.seconds is not None for candidate in stage.candidates)
    title = f"{stage.stage}: the best of each strategy; {num_fit} of {len(stage.candidates)} candidates fit. "
    title += f"kept: answers of the first epoch; step: of {task}, simulated; memory: of the fullest device"
    return as_rich(title, header, rows)


def stage_tables(stage: StagePlan, simulation: Simulation) -> list[Table]:
    """The chosen candidate: every task's step, and what every device is in for."""
    header = ["task", "C_T", "C_F", "reassigned", "step", "answers known"]
    tasks = [
        [
            plan.task,
            seconds(plan.train_s),
            seconds(plan.forward_s) if plan.chains else "-",
            f"{100 * plan.reassigned_share:.1f} %" if plan.chains else "-",
            seconds(plan.step_s),
            seconds(plan.later_step_s) if stage.best.later else "-",
        ]
        for plan in stage.tasks[:MOST_DEVICES]
    ]
    bound = f"lower bound {seconds(stage.bound_s)}: every device busy all the time, nothing to send"
    title = f"{stage.stage}, {stage.best.strategy}; {bound}"
    names = simulation.schedule.devices[:MOST_DEVICES]
    devices = [
        [name, f"{100 * idle:.0f} %", size(peak), _sent(simulation, process)]
        for process, (name, idle, peak) in enumerate(
            zip(names, simulation.idle_shares, simulation.peak_bytes, strict=False)  # names end at MOST_DEVICES
        )
    ]
    few = f"{simulation.schedule.num_batches} batches, simulated"
    return [as_rich(title, header, tasks), as_rich(few, ["device", "idle", "peak memory", "sends"], devices)]


def step_s(simulation: Simulation) -> float:
    """Seconds from one batch's end to the next with the pipeline filled; of batches with chains if there are any.

    Where batches are reassigned, the mean from one of them to another.
    """
    schedule, ends = simulation.schedule, simulation.batch_ends_s
    with_chains = {items[0] // schedule.batch_size for items in schedule.chain_items}
    own = sorted({schedule.batch_of(action) for row in schedule.actions for action in row if action.kind == "R"})
    last = len(with_chains or ends) - 1
    # Not from the start: the first batches fill the pipeline, and the first of all is a reassigned one.
    first, last = (own[1], own[-1]) if len(own) > 2 else ((last - 1) // 2, last)
    return (ends[last] - ends[first]) / (last - first)


def batches_for_step(reassigned_share: float) -> int:
    """How many batches to simulate for `step_s`: where some are reassigned, so many that six of those are in it."""
    if not reassigned_share:
        return NUM_BATCHES
    return min(MOST_BATCHES, max(NUM_BATCHES, math.ceil(5 / reassigned_share) + 1))


def seconds(value: float) -> str:
    """1.234 -> "1.23 s", 0.0123 -> "12.3 ms"."""
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes:.0f} B"


def _speed(device: Device) -> str:
    return f"{1e-9 / device.forward_s(1.0):,.0f} GFLOP/s"


def _role(name: str, stage: StagePlan) -> str:
    best, plan = stage.best, max(stage.tasks, key=lambda plan: plan.num_prerequisites)
    for group, share, what in ((best.train, plan.train, "trains"), (best.forward, plan.chains, "chains of")):
        if group is None or name not in group.devices:
            continue
        position = group.devices.index(name)
        edges = (0, *group.cuts)
        role = f"{what} {share.items[position] if share else 0}"
        role = role if group.layout == "data" else f"{what} from layer {edges[position]}"
        joins = best.later is not None and group is best.forward and name in best.later.devices
        return role + (", then trains" if joins else "")
    return "-"


def _sent(simulation: Simulation, process: int) -> str:
    names = simulation.schedule.devices
    sent = [(to, size) for (sender, to), size in simulation.link_bytes.items() if sender == process]
    return ", ".join(f"{size(count)} to {names[to]}" for to, count in sent) or "-"
