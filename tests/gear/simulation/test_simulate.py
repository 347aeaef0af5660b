"""The simulator against closed forms and against time lines drawn by hand."""

import itertools
import random

import pytest

from contextlora.gear.planning.candidates import Candidate, TaskPlan
from contextlora.gear.planning.device_groups import DeviceGroup, Share
from contextlora.gear.planning.devices import Link
from contextlora.gear.simulation.builders import build_schedule
from contextlora.gear.simulation.schedule import Action, Schedule, ScheduleError
from contextlora.gear.simulation.simulate import Costs, simulate

FREE = Link(1e30)


def make(*rows, train=((0,),), chains=(), batch_size=1, num_passes=1, queue=1):
    actions = tuple(tuple(map(Action.parse, row.split())) for row in rows)
    names = tuple(chr(97 + i) for i in range(len(rows)))
    return Schedule("x", names, actions, train, chains, batch_size, num_passes, queue)


def run(schedule, seconds, link=FREE, sent=0.0, resident=0.0, kept=0.0):
    """seconds: of each kind of action."""
    costs = Costs(
        action_s=lambda process, action: seconds[action.kind],
        send_bytes=lambda action: sent,
        link=lambda a, b: link,
        resident_bytes=[resident] * len(schedule.actions),
        action_bytes=lambda process, action: kept,
    )
    return simulate(schedule, costs)


def spans(simulation):
    return {str(i.action): (i.start_s, i.stop_s) for i in simulation.intervals}


@pytest.mark.parametrize(("layout", "p", "m"), [*itertools.product(("gpipe", "1f1b"), (1, 2, 3, 5), (1, 2, 4, 9))])
def test_equal_stages_take_the_closed_form(layout, p, m):
    f, b = 1.0, 1.7
    group = DeviceGroup(tuple("abcde"[:p]), layout if p > 1 else "data", tuple(range(1, p)))
    plan = TaskPlan("v", 0, Share(0.0, (m,) * p, (1,) * p), None)
    simulation = run(build_schedule(Candidate("", group), plan, m, 1), {"F": f, "B": b})
    # (m + p - 1)(f + b): Huang et al. 2019, GPipe; Narayanan et al. 2019, PipeDream's 1F1B has the same bubble
    assert simulation.makespan_s == pytest.approx((m + p - 1) * (f + b))
    # every process works m (f + b), so the bubble is (p - 1) / (m + p - 1)
    assert simulation.idle_shares == pytest.approx([(p - 1) / (m + p - 1)] * p)


def test_1f1b_holds_fewer_activations_than_gpipe():
    peaks = {}
    for layout in ("gpipe", "1f1b"):
        plan = TaskPlan("v", 0, Share(0.0, (8, 8), (1, 1)), None)
        schedule = build_schedule(Candidate("", DeviceGroup(("a", "b"), layout, (1,))), plan, 8, 1)
        peaks[layout] = run(schedule, {"F": 1.0, "B": 1.0}, resident=100.0, kept=1.0).peak_bytes
    # all 8 micro-batches, against p - s of them
    assert peaks == {"gpipe": (108.0, 108.0), "1f1b": (102.0, 101.0)}


def test_two_stages_and_a_slow_link_by_hand():
    schedule = make(
        "0F0 0SEND_F0>1 0F1 0SEND_F1>1 0B0 0B1",
        "1F0 1F1 1B0 1SEND_B0>0 1B1 1SEND_B1>0",
        train=((0,), (1,)),
        batch_size=2,
    )
    # one byte at 1 byte/s and 1 s latency: 2 s a message; messages of one direction follow each other
    simulation = run(schedule, {"F": 1.0, "B": 1.0}, link=Link(8.0, 1.0), sent=1.0)
    assert spans(simulation) == {
        "0F0": (0, 1),
        "0F1": (1, 2),
        "0SEND_F0>1": (1, 3),
        "0SEND_F1>1": (3, 5),
        "1F0": (3, 4),
        "1F1": (5, 6),
        "1B0": (6, 7),
        "1B1": (7, 8),
        "1SEND_B0>0": (7, 9),
        "1SEND_B1>0": (9, 11),
        "0B0": (9, 10),
        "0B1": (11, 12),
    }
    assert simulation.link_bytes == {(0, 1): 2.0, (1, 0): 2.0}
    assert simulation.idle_shares == pytest.approx((8 / 12, 8 / 12))


def test_an_all_reduce_waits_for_everyone_and_holds_everyone():
    schedule = make("0F0 0B0 0ALLREDUCE0", "0F1 0B1 0F2 0B2 0ALLREDUCE0", train=((0,), (1,), (2,)), batch_size=3)
    simulation = run(schedule, {"F": 1.0, "B": 2.0, "ALLREDUCE": 4.0})
    ends = {(i.process, i.start_s, i.stop_s) for i in simulation.intervals if i.action.kind == "ALLREDUCE"}
    assert ends == {(0, 6.0, 10.0), (1, 6.0, 10.0)}
    assert simulation.batch_ends_s == [10.0]


def contextgear(n, num_batches, reassigned=0.0, queue=1, items=4):
    share = Share(0.0, (items,), (items,))
    plan = TaskPlan("v", n, share, share, None, reassigned, share)
    return build_schedule(Candidate("", DeviceGroup(("t",)), DeviceGroup(("f",))), plan, items, num_batches, queue)


def test_contextgear_by_hand():
    # chains of 2 passes of 1 s on D_f, forward 1 s and backward 2 s on D_t; answers take 1 s on the way
    simulation = run(contextgear(n=2, num_batches=2), {"P": 1.0, "F": 1.0, "B": 2.0}, link=Link(1e30, 1.0))
    assert spans(simulation) == {
        "0P0/0": (0, 1),
        "0P0/1": (1, 2),
        "0SEND_A0/1>0": (2, 3),
        "0P1/0": (2, 3),
        "0P1/1": (3, 4),
        "0SEND_A1/1>0": (4, 5),
        "0F0": (3, 4),
        "0B0": (4, 6),
        "0F1": (6, 7),
        "0B1": (7, 9),
    }


@pytest.mark.parametrize("reassigned", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_contextgear_takes_the_larger_of_c_t_and_c_f_a_step(n, reassigned):
    p_s, r_s, f_s, b_s = 0.9, 0.4, 1.0, 1.27
    schedule = contextgear(n, num_batches=13, reassigned=reassigned, queue=4)
    simulation = run(schedule, {"P": p_s, "R": r_s, "F": f_s, "B": b_s})
    c_t, c_f = f_s + b_s + reassigned * n * r_s, (1 - reassigned) * n * p_s
    ends = simulation.batch_ends_s  # every fourth or every other batch is reassigned
    assert ends[12] - ends[4] == pytest.approx(8 * max(c_t, c_f))


def test_the_queue_keeps_the_forward_device_from_running_ahead():
    seconds = {"P": 1.0, "F": 5.0, "B": 5.0}
    begins = {}
    for queue in (1, 2):
        simulation = run(contextgear(n=1, num_batches=4, queue=queue), seconds)
        begins[queue] = [i.start_s for i in simulation.intervals if i.action.kind == "P"]
    # batches end at 11, 21, 31, 41: the chains of batch i wait for the end of batch i - queue - 1
    assert begins == {1: [0, 1, 11, 21], 2: [0, 1, 2, 11]}


def test_passes_take_their_memory_only_while_they_run():
    simulation = run(contextgear(n=3, num_batches=3), {"P": 1.0, "F": 1.0, "B": 1.0}, resident=10.0, kept=2.0)
    assert simulation.peak_bytes == (12.0, 12.0)


def test_slower_actions_never_end_sooner():
    rng = random.Random(3)
    for _ in range(40):
        schedule = contextgear(rng.randint(1, 3), rng.randint(1, 4), rng.choice((0.0, 0.3, 0.7)))
        seconds = {kind: rng.uniform(0.1, 2) for kind in "PRFB"}
        slower = seconds | {rng.choice("PRFB"): 2.5}
        link = Link(1e30, rng.choice((0.0, 0.4)))
        assert run(schedule, slower, link).makespan_s >= run(schedule, seconds, link).makespan_s - 1e-9


def test_slots_hold_what_begins_in_a_window():
    simulation = run(contextgear(n=1, num_batches=2), {"P": 1.0, "F": 1.0, "B": 1.0})
    slots = [[str(action) if action else "." for action in row] for row in simulation.slots(1.0, 3.0)]
    assert slots == [["0F0", "0P1/0"], ["0B0", "."]]


def test_a_schedule_that_cannot_run_is_refused():
    with pytest.raises(ScheduleError, match="0B0"):
        run(make("0F0"), {"F": 1.0})
