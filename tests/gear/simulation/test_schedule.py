"""Actions and grids as text, and back."""

import pytest

from contextlora.gear.simulation.schedule import Action, Schedule, ScheduleError, grid, parse_grid

TEXTS = ["2F0", "2B0", "0P3/1", "0R12/0", "1SEND_F0>2", "2SEND_B0>1", "0SEND_P3/1>4", "0SEND_A3/1>0", "0ALLREDUCE7"]


@pytest.mark.parametrize("text", TEXTS)
def test_an_action_reads_back_as_it_was_printed(text):
    assert str(Action.parse(text)) == text


def test_the_parts_of_an_action():
    assert Action.parse("2F0") == Action(stage=2, kind="F", micro_batch=0)
    assert Action.parse("1SEND_P13/4>6") == Action(1, "SEND_P", 13, chain_pass=4, to=6)


@pytest.mark.parametrize("text", ["F0", "2X0", "2F", "2F0 ", "2F0/1", "0P3", "0SEND_F0", "0F0>1", "0SEND_A0>1", ""])
def test_what_is_no_action_is_refused(text):
    with pytest.raises(ScheduleError, match=r"got '"):
        Action.parse(text)


def test_a_grid_reads_back():
    slots = [[Action.parse("0P0/0"), None], [Action.parse("0P12/1"), Action.parse("0F0")]]
    text = grid(slots, ["a", "long-name"])
    assert text.splitlines()[1:] == ["0  0P0/0   .", "1  0P12/1  0F0"]
    assert parse_grid(text) == (slots, ["a", "long-name"])


def test_a_schedule_reads_back_from_json():
    rows = ((Action.parse("0P0/0"), Action.parse("0SEND_A0/0>1")), (Action.parse("0F0"), Action.parse("0B0")))
    schedule = Schedule("x", ("a", "b"), rows, ((0, 1),), ((0, 1),), 2, 1, 2)
    assert Schedule.from_json(schedule.to_json()) == schedule
