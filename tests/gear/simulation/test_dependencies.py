"""Schedules that cannot run are refused, each for its reason."""

import pytest

from contextlora.gear.simulation.dependencies import Dependencies
from contextlora.gear.simulation.schedule import Action, Schedule, ScheduleError

GOOD = ("0P0/0 0SEND_A0/0>1", "0F0 1F0 1B0 0B0")


def schedule(*rows, train=((0, 1),), chains=((0, 1),), num_passes=1):
    actions = tuple(tuple(map(Action.parse, row.split())) for row in rows)
    names = tuple(chr(97 + i) for i in range(len(rows)))
    return Schedule("x", names, actions, train, chains, batch_size=2, num_passes=num_passes, queue_batches=1)


def test_a_valid_schedule_passes():
    Dependencies(schedule(*GOOD)).check()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("0P0/0", "0F0 0B0"), "0F0 on process 1 needs 0P0/0, which nobody makes or sends there"),
        (("0SEND_A0/0>1", "0F0 0B0"), "needs 0P0/0"),
        (("0P0/0 0SEND_A0/0>1", "0F0"), "0B0 must be there once; it is missing"),
        (("0P0/0 0SEND_A0/0>1", "0F0 0F0 0B0"), "0F0 is there twice"),
        (("0P0/0", "0R0/0 0F0 0B0"), "pass 0P0/0 must be there once, as P or R"),
        (("0P0/0 0SEND_A0/0>1", "0B0 0F0"), "wait for each other"),
        # the all-reduce of the batch stands before the backward that it needs
        (("0P0/0 0SEND_A0/0>1", "0F0 0ALLREDUCE0 0B0"), "wait for each other"),
        # stage 1 needs the activations of stage 0
        (("0P0/0 0SEND_A0/0>1", "0F0 0B0", "1F0 1B0"), "needs"),
    ],
)
def test_a_schedule_that_cannot_run_says_why(rows, said):
    with pytest.raises(ScheduleError, match=said):
        Dependencies(schedule(*rows)).check()


def test_every_item_is_trained_once():
    with pytest.raises(ScheduleError, match="every item of 1 batches must be trained once"):
        Dependencies(schedule("0P0/0 0F0 0B0", train=((1,),), chains=((1,),))).check()


def test_every_pass_of_a_chain_runs():
    with pytest.raises(ScheduleError, match="needs 0P0/1"):
        Dependencies(schedule(*GOOD, num_passes=2)).check()
