"""Planned stages, simulated: the predictions of the planner hold, as far as its closed forms go."""

import random

import pytest

from contextlora.gear.planning.candidates import plan_task
from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.devices import Link
from contextlora.gear.planning.plan import plan_stage
from contextlora.gear.simulation.replay import schedule_and_costs
from contextlora.gear.simulation.simulate import simulate

NUM_BATCHES, MANY_BATCHES = 8, 100


def predicted_and_simulated(fleet, workload, candidate, task):
    """The plan, its simulation, seconds of a step, and what these may be over C where batches are reassigned."""
    plan = plan_task(StageCost(fleet, workload), candidate, task)
    if plan.reassigned_share:
        # Every batch is one of two kinds, so the mean over any number of steps differs from C by part of a batch.
        simulation = simulate(*schedule_and_costs(fleet, workload, candidate, task, MANY_BATCHES))
        step_s = simulation.batch_ends_s[-1] / MANY_BATCHES
        return plan, simulation, step_s, (plan.own_chains.seconds + plan.chains.seconds) / MANY_BATCHES
    simulation = simulate(*schedule_and_costs(fleet, workload, candidate, task, NUM_BATCHES))
    ends = simulation.batch_ends_s
    return plan, simulation, (ends[-1] - ends[2]) / (NUM_BATCHES - 3), 1e-9 * plan.step_s


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_contextgear_on_free_links_takes_max_c_t_c_f_exactly(make_fleet, make_task, make_workload, n):
    task = make_task(n=n)
    fleet, workload = make_fleet(1.0, 0.7), make_workload(task, batch_size=8)
    for candidate in plan_stage(fleet, workload, cache_answers=False).candidates:
        plan, _, step_s, slack_s = predicted_and_simulated(fleet, workload, candidate, task)
        if candidate.train.layout == "data" and len(candidate.train.devices) == 1:
            assert step_s == pytest.approx(plan.step_s, abs=slack_s)


@pytest.mark.parametrize("seed", range(25))
def test_no_candidate_is_predicted_faster_than_it_runs(random_case, seed):
    rng = random.Random(seed)
    fleet, workload = random_case(rng)
    try:
        found = plan_stage(fleet, workload)
    except ValueError:
        return
    for candidate in found.candidates:
        if candidate.seconds is None:
            continue
        for task in workload.tasks:
            plan, simulation, step_s, slack_s = predicted_and_simulated(fleet, workload, candidate, task)
            assert step_s <= plan.step_s + slack_s, (candidate, task)
            for name, peak in zip(simulation.schedule.devices, simulation.peak_bytes, strict=True):
                assert peak <= candidate.memory_bytes[name] * (1 + 1e-9)


def test_the_first_epoch_makes_the_answers_and_the_others_use_them(make_fleet, make_task, make_workload):
    task = make_task(n=2, epoch_items=12)
    fleet, workload = make_fleet(1.0, 1.0), make_workload(task)
    found = plan_stage(fleet, workload).candidates
    best = next(c for c in found if c.strategy == "contextgear" and c.later is not None)
    # three steps of max(2 f, t) = 2 s an item, their fill, and seven of 2 s an item over two devices
    assert best.later.devices == (*best.train.devices, *best.forward.devices)
    assert best.seconds == 3 * 8 + 8 + 7 * 4
    simulation = simulate(*schedule_and_costs(fleet, workload, best, task, num_batches=3, num_later=7))
    assert simulation.makespan_s == pytest.approx(best.seconds)


def test_messages_are_counted_by_link(make_fleet, make_task, make_workload):
    task = make_task(n=2, answer_bytes=16.0)
    fleet, workload = make_fleet(1.0, 1.1, link=Link(1e9)), make_workload(task)
    found = plan_stage(fleet, workload, cache_answers=False)
    best = next(c for c in found.candidates if c.strategy == "contextgear" and c.train.devices == ("a",))
    simulation = simulate(*schedule_and_costs(fleet, workload, best, task, NUM_BATCHES))
    # 2 f on b are done before 2 f on a: all chains on b, 4 items of 16 bytes a batch
    assert simulation.link_bytes == {(1, 0): NUM_BATCHES * 4 * 16.0}
    # the planner counts the same for the 10 steps of the stage
    assert best.link_bytes == 10 * 4 * 16.0
