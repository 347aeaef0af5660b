"""Pictures: task graph with stages and ranks, accuracy matrix, learning and delta curves, methods side by side."""

import io
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is looked for

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from contextlora.files import write_atomically
from contextlora.graph.plan import TrainingPlan
from contextlora.graph.task_graph import TaskGraph

STATUS_COLOURS = {"train": "#2a9d5c", "freeze": "#5b8fd6", "mask": "#e3e5e8"}
INK, GREY, PALE = "#22272e", "#6b7280", "#f6f7f9"
DPI = 160
LONGEST_NAME, INCHES_A_LETTER = 23, 0.09
MOST_NAMED = 40  # tasks whose names, arrows and figures a picture has room for; those of 1,000 would take hours to draw


def plan_figure(graph: TaskGraph, plan: TrainingPlan) -> Figure:
    """Left the task graph by generation, right the ranks of every slice, stage by stage, coloured by status.

    Of many tasks only the ranks, a pixel for every slice and stage in the mixture of its statuses' colours.
    """
    if len(graph.tasks) > MOST_NAMED:
        return _many_stages_figure(plan)
    widest = max(len(generation) for generation in graph.generations)
    height = max(3.0, 1.3 + 0.8 * max(widest, len(plan.stages)))
    num_columns = len(graph.generations)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(1.7 * num_columns + 5.0, height), width_ratios=(1.7 * num_columns, 4.8), layout="constrained"
    )
    _draw_graph(left, graph)
    _draw_stages(right, plan)
    return figure


def _many_stages_figure(plan: TrainingPlan) -> Figure:
    colours = np.array([to_rgb(colour) for colour in STATUS_COLOURS.values()])  # (3, 3)
    names, rows = list(plan.partition.ranks), []
    for tasks in plan.stages:
        statuses = plan.statuses(tasks)
        counts = np.array([[statuses[name][status] for status in STATUS_COLOURS] for name in names])
        rows.append(counts / counts.sum(axis=1, keepdims=True) @ colours)
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    extent = (0.5, len(names) + 0.5, len(rows) + 0.5, 0.5)
    axes.imshow(np.stack(rows), aspect="auto", interpolation="nearest", extent=extent)
    axes.set(xlabel="slice of the LoRA", ylabel="stage")
    _name_statuses(axes, plan, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


def _name_statuses(axes: Axes, plan: TrainingPlan, **where: Any) -> None:
    """The title, and a legend of the statuses' colours."""
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour) for colour in STATUS_COLOURS.values()]
    axes.legend(handles, STATUS_COLOURS, ncols=3, frameon=False, fontsize=10, **where)
    title = f"the {plan.partition.total_rank} ranks of the LoRA, stage by stage"
    axes.set_title(title, fontsize=11, color=INK, loc="left")


def _draw_graph(axes: Axes, graph: TaskGraph) -> None:
    widest = max(len(generation) for generation in graph.generations)
    places = {
        task: (column, (widest - 1) / 2 - row + (len(generation) - 1) / 2 - (widest - 1) / 2)
        for column, generation in enumerate(graph.generations)
        for row, task in enumerate(generation)
    }
    half_width, half_height = 0.34, 0.2
    for prerequisite, task in graph.edges:
        (x0, y0), (x1, y1) = places[prerequisite], places[task]
        # An edge over a generation bends outwards, so that it does not run through the tasks in between.
        bend = 0.0 if x1 - x0 == 1 else -0.5 if y0 + y1 >= 0 else 0.5
        axes.add_patch(
            FancyArrowPatch(
                (x0 + half_width, y0),
                (x1 - half_width, y1),
                arrowstyle="-|>",
                mutation_scale=12,
                color=GREY,
                connectionstyle=f"arc3,rad={bend}",
            )
        )
    for task, (x, y) in places.items():
        box = FancyBboxPatch(
            (x - half_width, y - half_height),
            2 * half_width,
            2 * half_height,
            boxstyle="round,pad=0,rounding_size=0.08",
        )
        box.set(facecolor=PALE, edgecolor=INK, linewidth=1.2)
        axes.add_patch(box)
        axes.text(x, y, _name(task), ha="center", va="center", fontsize=10, color=INK)
    top = (widest - 1) / 2 + 0.55
    for column in range(len(graph.generations)):
        axes.text(column, top, f"$S_{{{column + 1}}}$", ha="center", va="center", fontsize=11, color=GREY)
    axes.set(xlim=(-0.5, len(graph.generations) - 0.5), ylim=(-top, top + 0.2))
    axes.set_axis_off()
    axes.set_title("task graph", fontsize=11, color=INK, loc="left")


def _draw_stages(axes: Axes, plan: TrainingPlan) -> None:
    total = plan.partition.total_rank
    for row, tasks in enumerate(plan.stages):
        statuses = plan.statuses(tasks)
        for name in plan.partition.ranks:
            start = plan.partition.indices(name).start
            # Statuses are counts: which ranks are frozen is a policy's choice, so the order drawn says nothing.
            for status in ("freeze", "train", "mask"):
                for _ in range(statuses[name][status]):
                    cell = Rectangle((start, row + 0.18), 1, 0.64, facecolor=STATUS_COLOURS[status], edgecolor="white")
                    axes.add_patch(cell)
                    start += 1
    for name in plan.partition.ranks:
        indices = plan.partition.indices(name)
        axes.text(
            (indices.start + indices.stop) / 2, -0.12, _name(name), ha="center", va="bottom", fontsize=10, color=INK
        )
        if indices.start:
            axes.plot([indices.start] * 2, [0.05, len(plan.stages) - 0.05], color=INK, linewidth=1.2)
    bottom = max(3, len(plan.stages)) + 0.5  # leaves room for the legend; a single stage is drawn no taller than three
    axes.set(xlim=(0, total), ylim=(bottom, -0.55), xticks=[])
    labels = [f"stage {k + 1}: {_short(tasks)}" for k, tasks in enumerate(plan.stages)]
    axes.set_yticks([k + 0.5 for k in range(len(plan.stages))], labels, fontsize=10, color=INK)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    below = {"bbox_to_anchor": (total / 2, len(plan.stages) + 0.05), "bbox_transform": axes.transData}
    _name_statuses(axes, plan, loc="upper center", **below)


def _short(tasks: Sequence[str]) -> str:
    return ", ".join(map(_name, tasks)) if len(tasks) <= 2 else f"{len(tasks)} tasks"


def _name(text: str) -> str:
    """As much of a name as a picture has room for."""
    half = (LONGEST_NAME - 3) // 2
    return text if len(text) <= LONGEST_NAME else f"{text[:half]}...{text[-half:]}"


def matrix_figure(matrix: Mapping[str, Sequence[float | None]], stages: Sequence[Sequence[str]]) -> Figure:
    """Accuracy of each task (rows) after each stage (columns), in percent; empty before the task is trained."""
    names = list(map(_name, matrix))
    if len(names) > MOST_NAMED:
        return _many_accuracies_figure(matrix)
    width = 1.6 + 1.35 * len(stages) + INCHES_A_LETTER * max(0, max(map(len, names)) - 10)
    figure, axes = plt.subplots(figsize=(width, 1.1 + 0.5 * len(matrix)), layout="constrained")
    values = [[float("nan") if value is None else 100 * value for value in row] for row in matrix.values()]
    axes.imshow(values, cmap="Greens", vmin=0, vmax=180, aspect="auto")  # 180: dark text stays readable at 100
    axes.set_xticks([column - 0.5 for column in range(1, len(stages))], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, len(matrix))], minor=True)
    axes.grid(which="minor", color="white", linewidth=3)
    for row, accuracies in enumerate(values):
        for column, value in enumerate(accuracies):
            if value == value:  # nan: not trained yet
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=10, color=INK)
    axes.set_xticks(
        range(len(stages)), [f"stage {k + 1}\n{_short(tasks)}" for k, tasks in enumerate(stages)], fontsize=9
    )
    axes.set_yticks(range(len(matrix)), names, fontsize=10)
    axes.tick_params(which="both", length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title("accuracy in % after each stage", fontsize=11, color=INK, loc="left")
    return figure


def _many_accuracies_figure(matrix: Mapping[str, Sequence[float | None]]) -> Figure:
    values = np.array([[np.nan if value is None else 100 * value for value in row] for row in matrix.values()])
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    extent = (0.5, values.shape[1] + 0.5, len(values) + 0.5, 0.5)
    image = axes.imshow(values, cmap="Greens", vmin=0, vmax=100, aspect="auto", interpolation="nearest", extent=extent)
    figure.colorbar(image)
    axes.set(xlabel="stage", ylabel="task")
    axes.set_title("accuracy in % after each stage", fontsize=11, color=INK, loc="left")
    return figure


def delta_figure(curves: Mapping[str, Mapping[float, tuple[float, float, float]]], ylabel: str) -> Figure:
    """Curves over delta: name -> delta -> (mean, low, high) accuracy; the band is the 95 % interval over seeds.

    The band ends at 0 and 100 %, where Student's interval may not.
    """
    figure, axes = plt.subplots(figsize=(5.2, 3.2 + 0.2 * len(curves)), layout="constrained")
    for name, points in curves.items():
        deltas = sorted(points)
        (line,) = axes.plot(deltas, [100 * points[delta][0] for delta in deltas], marker="o", label=name)
        low, high = ([_percent(points[delta][k]) for delta in deltas] for k in (1, 2))
        axes.fill_between(deltas, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="delta (frozen share of the prerequisites' ranks)", ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def accuracy_figure(
    accuracies: Mapping[str, Mapping[str, tuple[float, float, float]]], chance: Mapping[str, float]
) -> Figure:
    """Accuracy of methods side by side, in percent: a point with its interval over seeds, and a line at chance.

    Intervals end at 0 and 100 %, where Student's may not.

    Args:
        accuracies: name -> task -> (mean, low, high), such as `mean_interval` gives.
        chance: task -> accuracy of guessing.
    """
    tasks, width = list(chance), 0.7 / len(accuracies)
    height = 3.0 + 0.2 * len(accuracies)  # of which the legend takes a line for every name
    figure, axes = plt.subplots(figsize=(2.0 + 1.5 * len(tasks), height), layout="constrained")
    for number, (name, by_task) in enumerate(accuracies.items()):
        # Side by side, with the task's tick in the middle.
        places = [column + (number - (len(accuracies) - 1) / 2) * width for column in range(len(tasks))]
        means, lows, highs = ([_percent(by_task[task][k]) for task in tasks] for k in range(3))
        bars = [
            [m - low for m, low in zip(means, lows, strict=True)],
            [h - m for h, m in zip(highs, means, strict=True)],
        ]
        marker = "os^D"[number // 10 % 4]  # colours repeat after ten
        axes.errorbar(places, means, bars, fmt=marker, markersize=5, capsize=3, label=name)
    for column, task in enumerate(tasks):
        label = "chance" if column == 0 else None
        axes.plot([column - 0.45, column + 0.45], [100 * chance[task]] * 2, "--", color=GREY, linewidth=1, label=label)
    axes.set_xticks(range(len(tasks)), list(map(_name, tasks)), fontsize=10)
    axes.set(ylabel="accuracy, %", ylim=(0, 104))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _percent(share: float) -> float:
    """As far as an accuracy can go; NaN, as of the interval of one seed, stays."""
    return share if share != share else min(100.0, max(0.0, 100 * share))


def learning_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """Validation accuracy of each task over gradient steps, in percent; dotted lines where a stage ends.

    Args:
        history: what metrics.jsonl holds: the `step`, `stage` and `accuracy/<task>` of every validation.
    """
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in history:
        for key in row:
            if key.startswith("accuracy/"):
                steps, values = curves.setdefault(key.removeprefix("accuracy/"), ([], []))
                steps.append(row["step"])
                values.append(100 * row[key])
    names, has_legend = [_name(task) for task in curves], 0 < len(curves) <= MOST_NAMED
    num_columns = max(1, min(4, len(names), 60 // (5 + max(map(len, names), default=0))))
    height = 3.2 + 0.2 * -(-len(names) // num_columns) * has_legend  # which takes a line for every row
    figure, axes = plt.subplots(figsize=(6.4, height), layout="constrained")
    for name, (steps, values) in zip(names, curves.values(), strict=True):
        axes.plot(steps, values, marker="o", markersize=4, label=name)
    for row, following in pairwise(history):
        if row["stage"] != following["stage"]:
            axes.axvline(row["step"], color=GREY, linestyle=":", linewidth=1)
    axes.set(xlabel="gradient steps", ylabel="validation accuracy, %", ylim=(0, 104))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if has_legend:
        axes.legend(frameon=False, ncols=num_columns, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def png(figure: Figure) -> bytes:
    """The figure as PNG, and frees it."""
    image = io.BytesIO()
    with warnings.catch_warnings():
        # Of letters that no font has, or of too little room: there is nothing that a user of this program could change.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(image, dpi=DPI, format="png", facecolor="white")  # solid: the ink is dark on a dark page too
    plt.close(figure)
    return image.getvalue()


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a PNG and frees the figure."""
    write_atomically(path, png(figure))
    return path
