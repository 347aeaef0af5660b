"""Schedules written out: GPipe, 1F1B, data parallel and ContextGear on small batches."""

import random

import pytest

from contextlora.gear.planning.candidates import Candidate, TaskPlan
from contextlora.gear.planning.device_groups import DeviceGroup, Share
from contextlora.gear.simulation.builders import build_schedule, then
from contextlora.gear.simulation.dependencies import Dependencies


def rows(schedule, sends=True):
    return [" ".join(str(a) for a in row if sends or "SEND" not in a.kind) for row in schedule.actions]


def task_plan(train, chains=None, n=0, reassigned=0.0):
    """Shares given as (items, micro-batches); D_t shares its own chains as it shares the training."""
    own = Share(0.0, *train)
    return TaskPlan("v", n, own, chains and Share(0.0, *chains), None, reassigned, chains and own)


def test_gpipe_runs_all_forwards_first():
    schedule = build_schedule(Candidate("", DeviceGroup(("a", "b"), "gpipe", (1,))), task_plan(((3, 3), (1, 1))), 3, 1)
    assert rows(schedule, sends=False) == ["0F0 0F1 0F2 0B0 0B1 0B2", "1F0 1F1 1F2 1B0 1B1 1B2"]
    assert rows(schedule)[1].startswith("1F0 1F1 1F2 1B0 1SEND_B0>0")


def test_1f1b_keeps_as_many_micro_batches_as_stages_are_left():
    group = DeviceGroup(("a", "b", "c"), "1f1b", (1, 2))
    schedule = build_schedule(Candidate("", group), task_plan(((4,) * 3, (1,) * 3)), 4, 1)
    # the order of Narayanan et al. 2021 (arXiv 2104.04473), figure 3
    assert rows(schedule, sends=False) == [
        "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3",
        "1F0 1F1 1B0 1F2 1B1 1F3 1B2 1B3",
        "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3",
    ]


def test_data_parallel_processes_share_the_items_and_reduce_after_each_batch():
    schedule = build_schedule(Candidate("", DeviceGroup(("a", "b"))), task_plan(((3, 1), (2, 4)), n=1), 4, 2)
    assert rows(schedule)[0] == "0P0/0 0P1/0 0F0 0B0 0F1 0B1 0ALLREDUCE0 0P3/0 0P4/0 0F3 0B3 0F4 0B4 0ALLREDUCE1"
    assert rows(schedule)[1] == "0P2/0 0F2 0B2 0ALLREDUCE0 0P5/0 0F5 0B5 0ALLREDUCE1"
    assert schedule.train_items == ((0, 1), (2,), (3,), (4, 5), (6,), (7,))


def test_contextgear_sends_answers_ahead_and_reassigns_chains():
    candidate = Candidate("", DeviceGroup(("a",)), DeviceGroup(("b",)))
    # 3 items, 2 passes each; D_t runs the chains of every other batch, D_f the others' in calls of 2
    schedule = build_schedule(candidate, task_plan(((3,), (3,)), ((3,), (2,)), n=2, reassigned=0.5), 3, 3)
    assert rows(schedule) == [
        "0R0/0 0R0/1 0F0 0B0 0F1 0B1 0R3/0 0R3/1 0F2 0B2",
        "0P1/0 0P1/1 0SEND_A1/1>0 0P2/0 0P2/1 0SEND_A2/1>0",
    ]
    assert schedule.chain_items == ((0, 1, 2), (3, 4), (5,), (6, 7, 8))


def test_a_pipeline_of_forward_only_devices_returns_its_answers_for_the_next_pass():
    candidate = Candidate("", DeviceGroup(("a",)), DeviceGroup(("b", "c"), "1f1b", (1,)))
    schedule = build_schedule(candidate, task_plan(((2,), (2,)), ((2, 2), (1, 1)), n=2), 2, 1)
    assert rows(schedule)[1] == ("0P0/0 0SEND_P0/0>2 0P1/0 0SEND_P1/0>2 0P0/1 0SEND_P0/1>2 0P1/1 0SEND_P1/1>2")
    assert rows(schedule)[2] == ("1P0/0 1P1/0 1SEND_A0/0>1 1SEND_A1/0>1 1P0/1 1P1/1 1SEND_A0/1>0 1SEND_A1/1>0")


def test_with_kept_answers_the_forward_device_joins_in_later():
    first = build_schedule(
        Candidate("", DeviceGroup(("a",)), DeviceGroup(("b",))), task_plan(((2,), (2,)), ((2,), (2,)), n=1), 2, 1
    )
    both = then(first, build_schedule(Candidate("", DeviceGroup(("b", "a"))), task_plan(((1, 1), (1, 1))), 2, 1))
    assert rows(both) == ["0F0 0B0 0F2 0B2 0ALLREDUCE1", "0P0/0 0SEND_A0/0>0 0F1 0B1 0ALLREDUCE1"]
    assert both.train_items == ((0, 1), (2,), (3,))
    Dependencies(both).check()


def random_shares(rng, group, total):
    """Every device of a data-parallel group gets an item, as far as they go."""
    count = len(group.devices)
    if group.layout != "data":
        return (total,) * count, (rng.randint(1, 4),) * count
    shares = [1] * min(total, count) + [0] * (count - total)
    for _ in range(total - count):
        shares[rng.randrange(count)] += 1
    return tuple(shares), tuple(rng.randint(1, 4) for _ in range(count))


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_built_can_run(seed):
    rng = random.Random(seed)

    def group(names):
        layout = rng.choice(("data", "1f1b", "gpipe")) if len(names) > 1 else "data"
        return DeviceGroup(names, layout, () if layout == "data" else tuple(range(1, len(names))))

    names = tuple("abcdef"[: rng.randint(2, 6)])
    count = rng.randint(1, len(names))
    train, forward = group(names[:count]), group(names[count:]) if count < len(names) else None
    batch_size, n = rng.randint(count, 7), rng.randint(0, 3)
    chains = random_shares(rng, forward, batch_size) if forward and n else None
    plan = task_plan(random_shares(rng, train, batch_size), chains, n, rng.random() if chains else 0.0)
    schedule = build_schedule(Candidate("", train, forward), plan, batch_size, rng.randint(1, 5))
    Dependencies(schedule).check()
