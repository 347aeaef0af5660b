"""Shares of a plan made out for processes; expected rows are written out by hand."""

from dataclasses import replace

import pytest

from contextlora.errors import UserError
from contextlora.gear.planning.candidates import Candidate, TaskPlan
from contextlora.gear.planning.device_groups import DeviceGroup, Share
from contextlora.gear.planning.plan import StagePlan
from contextlora.gear.planning.roles import Pipeline, stage_roles


def share(*items):
    return Share(1.0, items, items)


# D_t = a, b with 4 and 2 rows, D_f = c, every other batch reassigned to D_t; then all three train.
BEST = Candidate("contextgear", DeviceGroup(("b", "a")), DeviceGroup(("c",)), DeviceGroup(("a", "b", "c")), seconds=1.0)
TASK = TaskPlan("v", 2, share(2, 4), share(6), share(3, 2, 1), 0.5, share(3, 3))
PLAN = StagePlan("stage 1", 6, (BEST,), (TASK,), 1.0)


def test_rows_follow_the_plan():
    roles = stage_roles(PLAN, ("a", "b", "c"), keeps_answers=True).tasks["v"]
    assert [list(roles.rows(process, False, 6)) for process in range(3)] == [[0, 1, 2, 3], [4, 5], []]
    assert [list(roles.rows(process, True, 6)) for process in range(3)] == [[0, 1, 2], [3, 4], [5]]
    assert [roles.owner(row, 6, 0) for row in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [roles.owner(row, 6, 1) for row in range(6)] == [2] * 6
    assert [roles.owner(row, 6, 2) for row in range(6)] == [0, 0, 0, 1, 1, 1]
    assert roles.all_owners == {0, 1, 2}


def test_every_row_of_a_smaller_batch_is_trained_once():
    roles = stage_roles(PLAN, ("a", "b", "c"), keeps_answers=True).tasks["v"]
    for num_items in range(1, 6):
        rows = [row for process in range(3) for row in roles.rows(process, False, num_items)]
        assert rows == list(range(num_items))
        assert {roles.owner(row, num_items, 0) for row in rows} <= {0, 1}
        assert {roles.owner(row, num_items, 1) for row in rows} == {2}


def test_without_forward_only_devices_each_process_runs_its_own_chains():
    best, task = (
        Candidate("data parallel", DeviceGroup(("a", "b"))),
        replace(TASK, chains=None, later=None, own_chains=None, reassigned_share=0.0),
    )
    roles = stage_roles(replace(PLAN, candidates=(best,), tasks=(task,)), ("a", "b"), keeps_answers=False)
    assert roles.tasks["v"].chain_owners == (0, 0, 1, 1, 1, 1)
    assert roles.summary == "stage 1: data parallel, a + b train"


def test_a_pipeline_stands_as_its_last_process_and_keeps_the_order_of_its_stages():
    groups = {
        "train": DeviceGroup(("c", "a"), "1f1b", (3,)),
        "forward": DeviceGroup(("b", "d"), "gpipe", (1,)),
        "later": None,
    }
    shares = {"train": Share(1.0, (6, 6), (2, 2)), "chains": Share(1.0, (6, 6), (3, 3))}
    task = replace(TASK, **shares, own_chains=shares["train"], later=None)
    plan = replace(PLAN, candidates=(replace(BEST, **groups),), tasks=(task,))
    roles = stage_roles(plan, ("a", "b", "c", "d"), keeps_answers=True)
    assert roles.train == roles.later == Pipeline((2, 0), "1f1b", (3,))
    assert roles.forward == Pipeline((1, 3), "gpipe", (1,))
    assert [roles.train.layers(stage) for stage in (0, 1)] == [slice(0, 3), slice(3, None)]
    shares = roles.tasks["v"]
    assert shares.edges == shares.later_edges == (0, 6, 6, 6, 6)
    assert (shares.chain_owners, shares.own_owners) == ((3,) * 6, (0,) * 6)
    assert (shares.sizes, shares.later_sizes) == ((2, 3, 2, 3), (2, 0, 2, 0))
    assert [roles.runs_chains_in(process) for process in range(4)] == [roles.train, roles.forward] * 2
    assert "c > a (1f1b, cut before layer 3) train, b > d (gpipe, cut before layer 1) run the chains" in roles.summary


def test_what_the_executor_cannot_run_is_refused():
    with pytest.raises(UserError, match="the plan uses c, but the processes are a, b"):
        stage_roles(PLAN, ("a", "b"), True)
