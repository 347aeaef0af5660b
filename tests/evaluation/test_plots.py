"""Pictures: what stands in them, read from the figure's own objects."""

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from contextlora.evaluation.plots import STATUS_COLOURS, delta_figure, matrix_figure, plan_figure, save_figure
from contextlora.graph import TaskGraph
from contextlora.methods import build_plan
from contextlora.settings import MethodConfig

GRAPH = TaskGraph({"a": [], "b": [], "c": ["a", "b"], "d": ["a", "c"]})


def texts(axes):
    return {text.get_text() for text in axes.texts}


def test_the_plan_shows_every_task_edge_and_rank():
    plan = build_plan(GRAPH, MethodConfig(rank=2, delta=0.5))
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
    assert path.read_bytes().startswith(b"\x89PNG")
