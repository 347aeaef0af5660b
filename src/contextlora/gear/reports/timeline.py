"""The time line of a plan: what every device does when, simulated, one panel a stage."""

from collections.abc import Sequence
from textwrap import fill

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contextlora.gear.planning.plan import StagePlan
from contextlora.gear.reports.tables import seconds
from contextlora.gear.simulation.schedule import SENDS
from contextlora.gear.simulation.simulate import Simulation

# Okabe and Ito's palette, told apart by colour-blind people too; the letters are those of the schedule.
KINDS = {
    "P": ("#56B4E9", "forward-only pass, answers a prerequisite"),
    "R": ("#0072B2", "the same, on a device that trains"),
    "F": ("#009E73", "forward of the trained task"),
    "B": ("#E69F00", "its backward"),
    "ALLREDUCE": ("#CC79A7", "all-reduce of gradients"),
    "SEND": ("#6b7280", "message on a link"),
}
WHITE_TEXT = ("R", "F")
INK, GREY, PALE = "#22272e", "#6b7280", "#f1f3f5"
MOST_DEVICES = 12
MOST_LEFT_OUT = 3
TITLE_WIDTH = 114  # characters that a panel is wide
LETTER_SHARE = 0.013  # of the width, that each letter in a bar needs


def timeline_figure(stages: Sequence[tuple[StagePlan, Simulation]], left_out: Sequence[StagePlan] = ()) -> Figure:
    """One panel per stage, devices downwards, time to the right; bars carry their letter and their batch.

    Args:
        stages: to draw, with a simulation of some of their batches.
        left_out: stages that a note below names instead.
    """
    counts = [min(MOST_DEVICES, len(simulation.schedule.devices)) for _, simulation in stages]
    figure, panels = plt.subplots(
        len(stages),
        1,
        figsize=(9, 1.1 + sum(0.42 * count + 0.95 for count in counts)),
        height_ratios=[count + 0.6 for count in counts],
        layout="constrained",
        squeeze=False,
    )
    for axes, (stage, simulation) in zip(panels[:, 0], stages, strict=True):
        _draw(axes, stage, simulation)
    text = "seconds from a cold start; the number is the batch, a dashed line its end" + _note(left_out)
    panels[-1, 0].set_xlabel(text, color=INK, fontsize=9)
    present = {_kind(i.action.kind) for _, simulation in stages for i in simulation.intervals}
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for kind, (colour, _) in KINDS.items() if kind in present]
    labels = [f"{kind}: {text}" if len(kind) == 1 else text for kind, (_, text) in KINDS.items() if kind in present]
    figure.legend(handles, labels, ncols=2, loc="outside lower center", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _draw(axes: Axes, stage: StagePlan, simulation: Simulation) -> None:
    schedule, total = simulation.schedule, simulation.makespan_s
    names = schedule.devices[:MOST_DEVICES]
    for process in range(len(names)):
        axes.broken_barh([(0, total)], (process - 0.36, 0.72), facecolor=PALE, zorder=0)
    for interval in simulation.intervals:
        kind, length = _kind(interval.action.kind), interval.stop_s - interval.start_s
        if interval.process >= len(names):
            continue
        colour = KINDS[kind][0]
        if kind == "SEND":
            axes.plot([interval.start_s, interval.stop_s], [interval.process + 0.42] * 2, color=colour, linewidth=2)
            continue
        axes.broken_barh(
            [(interval.start_s, length)],
            (interval.process - 0.36, 0.72),
            facecolor=colour,
            edgecolor="white",
            linewidth=0.6,
        )
        batch = str(schedule.batch_of(interval.action))
        text = next((t for t in (kind + batch, batch) if len(kind) == 1 and length > LETTER_SHARE * total * len(t)), "")
        ink, middle = "white" if kind in WHITE_TEXT else INK, interval.start_s + length / 2
        axes.text(middle, interval.process, text, ha="center", va="center", fontsize=8, color=ink)
    for end_s in simulation.batch_ends_s:  # behind the bars, not through their letters
        axes.axvline(end_s, color=INK, linewidth=0.7, linestyle=(0, (3, 3)), alpha=0.6, zorder=0.5)
    labels = [f"{name}  idle {100 * idle:.0f} %" for name, idle in zip(names, simulation.idle_shares, strict=False)]
    axes.set_yticks(range(len(names)), labels, fontsize=9, color=INK)
    axes.set(xlim=(0, total), ylim=(len(names) - 0.4, -0.6))  # upside down: D_t on top
    axes.tick_params(length=0)
    axes.tick_params(axis="x", labelsize=8, labelcolor=GREY)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(fill(_title(stage, simulation), TITLE_WIDTH), fontsize=9, color=INK, loc="left")


def _title(stage: StagePlan, simulation: Simulation) -> str:
    best, plan = stage.best, max(stage.tasks, key=lambda plan: plan.num_prerequisites)
    schedule = simulation.schedule
    later = ""
    if best.later:
        first = 1 + max((items[-1] // schedule.batch_size for items in schedule.chain_items), default=-1)
        later = f", {seconds(plan.later_step_s)} with answers kept (batch {first} on)"
    hidden = len(schedule.devices) - MOST_DEVICES
    more = f"; {hidden} more devices" if hidden > 0 else ""
    return (
        f"{stage.stage} ({plan.task}): {best.strategy}, a step every {seconds(plan.step_s)}{later}; "
        f"{seconds(best.seconds)} in all{more}"
    )


def _note(left_out: Sequence[StagePlan]) -> str:
    named = []
    for stage in left_out[:MOST_LEFT_OUT]:
        has_chains = any(plan.num_prerequisites for plan in stage.tasks)
        why = "" if has_chains else "no prerequisites to answer, "
        named.append(f"{stage.stage} ({why}{stage.best.strategy}, {seconds(stage.best.seconds)})")
    if len(left_out) > MOST_LEFT_OUT:
        named.append(f"{len(left_out) - MOST_LEFT_OUT} more")
    return "\nnot drawn: " + ", ".join(named) if named else ""


def _kind(kind: str) -> str:
    return "SEND" if kind in SENDS else kind
