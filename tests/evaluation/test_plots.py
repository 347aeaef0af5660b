"""Pictures: what stands in them, read from the figure's own objects."""

import math

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.text import Text
from PIL import Image

from contextlora.evaluation.plots import (
    STATUS_COLOURS,
    accuracy_figure,
    delta_figure,
    learning_figure,
    matrix_figure,
    plan_figure,
    png,
    save_figure,
)
from contextlora.graph import TaskGraph
from contextlora.methods.contextlora import ContextLora, ContextLoraSettings

GRAPH = TaskGraph({"a": [], "b": [], "c": ["a", "b"], "d": ["a", "c"]})


def texts(axes):
    return {text.get_text() for text in axes.texts}


def test_the_plan_shows_every_task_edge_and_rank():
    plan = ContextLora(ContextLoraSettings(rank=2, delta=0.5)).plan(GRAPH)
    left, right = plan_figure(GRAPH, plan).axes
    assert {"a", "b", "c", "d"} < texts(left)
    assert sum(isinstance(patch, FancyBboxPatch) for patch in left.patches) == 4
    assert sum(isinstance(patch, FancyArrowPatch) for patch in left.patches) == len(GRAPH.edges)
    cells = [patch for patch in right.patches if isinstance(patch, Rectangle)]
    assert len(cells) == 3 * 8  # three stages of eight ranks
    counts = {
        name: sum(to_hex(cell.get_facecolor()) == colour for cell in cells) for name, colour in STATUS_COLOURS.items()
    }
    # train: 4 | 1 + 1 + 2 | 1 + 1 + 2; freeze: 0 | 2 | 2; mask: 4 | 2 | 2
    assert counts == {"train": 12, "freeze": 4, "mask": 8}


def test_the_matrix_leaves_out_what_is_not_trained_yet():
    (axes,) = matrix_figure({"a": [0.9, 0.85], "b": [None, 0.5]}, [("a",), ("b",)]).axes
    assert texts(axes) == {"90.0", "85.0", "50.0"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_delta_curves_are_in_percent_and_in_order(tmp_path):
    figure = delta_figure({"gated": {1.0: (0.9, 0.8, 1.0), 0.0: (0.5, 0.4, 0.6)}}, "accuracy")
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [0.0, 1.0]
    assert list(line.get_ydata()) == pytest.approx([50.0, 90.0])
    path = save_figure(figure, tmp_path / "figures" / "delta.png")
    assert Image.open(path).convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)  # no page shows through


def test_methods_stand_side_by_side_with_their_intervals_and_chance():
    ours = {"u": (0.9, 0.8, 1.0), "v": (0.5, math.nan, math.nan)}  # v has one seed
    (axes,) = accuracy_figure({"ours": ours, "joint": ours}, {"u": 0.25, "v": 0.5}).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["u", "v"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["chance", "ours", "joint"]
    first, second = (container.lines[0] for container in axes.containers)
    assert list(first.get_ydata()) == pytest.approx([90.0, 50.0])
    assert all(a < b for a, b in zip(first.get_xdata(), second.get_xdata(), strict=True))
    interval = axes.containers[0].lines[2][0].get_segments()[0]
    assert [y for _, y in interval] == pytest.approx([80.0, 100.0])
    chance = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in chance] == [25.0, 50.0]


def test_no_interval_is_drawn_beyond_0_and_100_percent():
    wide = {"v": (0.95, 0.8, 1.1), "u": (0.05, -0.1, 0.2)}
    (axes,) = accuracy_figure({"ours": wide}, {"v": 0.25, "u": 0.25}).axes
    drawn = [y for segment in axes.containers[0].lines[2][0].get_segments() for _, y in segment]
    assert drawn == pytest.approx([80.0, 100.0, 0.0, 20.0])
    (axes,) = delta_figure({"ours": {0.0: wide["v"], 1.0: wide["u"]}}, "accuracy").axes
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.0, 100.0)


def test_learning_curves_are_by_task_with_a_line_where_a_stage_ends():
    history = [
        {"stage": 0, "step": 10, "accuracy": 0.7, "accuracy/a": 0.8, "accuracy/b": 0.6},
        {"stage": 0, "step": 20, "accuracy": 0.8, "accuracy/a": 0.9, "accuracy/b": 0.7},
        {"stage": 1, "step": 25, "accuracy": 0.5, "accuracy/c": 0.5},
    ]
    (axes,) = learning_figure(history).axes
    a, b, c, end = axes.lines
    assert [line.get_label() for line in (a, b, c)] == ["a", "b", "c"]
    assert (list(a.get_xdata()), list(a.get_ydata())) == ([10, 20], pytest.approx([80.0, 90.0]))
    assert list(c.get_xdata()) == [25]
    assert list(end.get_xdata()) == [20, 20]


def test_long_names_leave_room_for_the_picture(recwarn):
    """Unlike ends tell two names apart of which the middle is left out."""
    names = [f"{number}{'n' * 200}{number}" for number in range(9)]
    graph = TaskGraph({name: names[:number][-1:] for number, name in enumerate(names)})
    plan = ContextLora(ContextLoraSettings(rank=2, delta=0.5)).plan(graph)
    stages = [(name,) for name in names]
    history = [{"step": 1, "stage": 0} | {f"accuracy/{name}": 0.5 for name in names}]
    accuracies = dict.fromkeys(names, (0.5, 0.4, 0.6))
    figures = (
        plan_figure(graph, plan),
        matrix_figure({name: [0.5] * 9 for name in names}, stages),
        matrix_figure({names[0]: [0.5]}, stages[:1]),
        learning_figure(history),
        accuracy_figure({"ours": accuracies}, dict.fromkeys(names, 0.3)),
    )
    for figure in figures:
        figure.draw_without_rendering()
        assert all(axes.get_position().height > 0.2 and axes.get_position().width > 0.05 for axes in figure.axes)
        assert f"0{'n' * 9}...{'n' * 9}0" in " ".join(text.get_text() for text in figure.findobj(Text))
        plt.close(figure)
    assert not recwarn.list


def test_letters_that_no_font_has_are_drawn_without_a_word(recwarn):
    png(matrix_figure({"\U00012000": [0.5]}, [("\U00012000",)]))
    assert not recwarn.list


def test_pictures_of_many_tasks_are_drawn_at_once():
    """As pixels: names and arrows of hundreds of tasks would overlap, and take minutes."""
    names = [f"t{number}" for number in range(300)]
    graph = TaskGraph({name: names[number - 1 : number] if number else [] for number, name in enumerate(names)})
    plan = ContextLora(ContextLoraSettings(rank=2, delta=0.5)).plan(graph)
    (axes,) = plan_figure(graph, plan).axes
    pixels = axes.images[0].get_array()
    assert pixels.shape == (300, 300, 3)
    assert to_hex(pixels[5, 5]) == STATUS_COLOURS["train"]
    assert to_hex(pixels[5, 9]) == STATUS_COLOURS["mask"]
    half = [(a + b) / 2 for a, b in zip(*(to_rgb(STATUS_COLOURS[one]) for one in ("train", "freeze")), strict=True)]
    assert np.allclose(pixels[5, 4], half)
    matrix = {name: [None] * number + [0.5] * (300 - number) for number, name in enumerate(names)}
    values = matrix_figure(matrix, plan.stages).axes[0].images[0].get_array()
    assert values.shape == (300, 300) and values[0, 299] == 50.0 and values.mask[299, 0]
    history = [{"step": n, "stage": n, f"accuracy/{name}": 0.5} for n, name in enumerate(names)]
    figure = learning_figure(history)
    assert len(figure.axes[0].lines) == 300 + 299 and figure.axes[0].get_legend() is None
    assert png(figure)[:4] == b"\x89PNG"
