from dataclasses import replace

import pytest

from contextlora.evaluation.plots import save_figure
from contextlora.gear.planning.candidates import is_reassigned
from contextlora.gear.planning.devices import Device, Fleet, Link
from contextlora.gear.planning.plan import plan_stage
from contextlora.gear.planning.workload import TaskWork, Workload
from contextlora.gear.reports.tables import (
    MOST_BATCHES,
    NUM_BATCHES,
    batches_for_step,
    seconds,
    size,
    stage_tables,
    step_s,
)
from contextlora.gear.reports.timeline import timeline_figure
from contextlora.gear.simulation.replay import schedule_and_costs
from contextlora.gear.simulation.simulate import simulate


def planned():
    """Two equal devices with n f = t = 8 s and .256 s for the answers: the first batch is reassigned."""
    fleet = Fleet("pair", tuple(Device(name, 1e9, 0.0, 1.0) for name in "ab"), Link(1e3))
    task = TaskWork("v", 10, 40, 2, 1.0, 1.0, 0.0, 0.0, 8.0, 1e9, 0.0, 0.0)
    workload = Workload("stage 1", (task,), 4, (0.5, 0.5), (0.0, 0.0), 0.0, 0.0, 2.0)
    stage = plan_stage(fleet, workload)
    return stage, simulate(*schedule_and_costs(fleet, workload, stage.best, task, num_batches=6))


def test_the_time_line_names_devices_steps_and_actions(tmp_path):
    stage, simulation = planned()
    figure = timeline_figure([(stage, simulation)])
    (axes,) = figure.axes
    assert "contextgear, a step every 8.13 s" in axes.get_title(loc="left")
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == ["a", "b"]
    assert {text.get_text() for text in axes.texts} >= {"F0", "B0", "R0", "P1", "F5", "B5"}
    assert save_figure(figure, tmp_path / "new" / "line.png").stat().st_size > 1000


def test_stages_that_are_not_drawn_are_named():
    stage, simulation = planned()
    roots = replace(stage, stage="stage 0", tasks=tuple(replace(plan, num_prerequisites=0) for plan in stage.tasks))
    (axes,) = timeline_figure([(stage, simulation)], left_out=[roots, stage, stage, stage]).axes
    note = axes.get_xlabel().splitlines()[1]
    assert note.startswith("not drawn: stage 0 (no prerequisites to answer, contextgear, ")
    assert note.count("stage 1 (contextgear, ") == 2 and note.endswith(", 1 more")


def test_tables_say_what_the_bound_is_of():
    table, _ = stage_tables(*planned())  # ten steps of n f + t = 16 s, shared by two devices
    assert "lower bound 80 s: every device busy all the time, nothing to send" in table.title


def test_the_step_is_that_of_the_filled_pipeline():
    assert step_s(planned()[1]) == 8


@pytest.mark.parametrize("share", [0.5, 0.4, 0.25, 0.1, 0.08])
def test_six_reassigned_batches_are_simulated(share):
    assert sum(is_reassigned(share, batch) for batch in range(batches_for_step(share))) == 6


@pytest.mark.parametrize("share, num_batches", [(0.0, NUM_BATCHES), (1.0, NUM_BATCHES), (0.001, MOST_BATCHES)])
def test_no_fewer_and_no_more_batches_are_simulated(share, num_batches):
    assert batches_for_step(share) == num_batches


def test_units():
    assert [seconds(value) for value in (12.345, 1.0, 0.01234)] == ["12.3 s", "1 s", "12.3 ms"]
    assert [size(value) for value in (0, 999, 1500, 2.5e6, 3e9)] == ["0 B", "999 B", "1.5 kB", "2.5 MB", "3 GB"]
