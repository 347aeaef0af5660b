"""Costs of groups against the equations of the design, worked out by hand."""

import itertools
import random

import pytest

from contextlora.gear.planning.candidates import Candidate, plan_task
from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.device_groups import DeviceGroup, Misfit, micro_batch_sizes, split_items
from contextlora.gear.planning.devices import Link


def test_micro_batches_divide_the_batch_or_are_powers_of_two():
    assert micro_batch_sizes(12) == (12, 8, 6, 4, 3, 2, 1)
    assert micro_batch_sizes(1) == (1,)


def test_shares_balance_speeds_and_are_the_best_possible():
    # a device twice as fast takes twice as many
    assert split_items(6, 2, lambda device, items: items * (1.0, 2.0)[device]) == [4, 2]
    rng = random.Random(0)
    for _ in range(200):
        count, total = rng.randint(2, 3), rng.randint(1, 6)
        item_s = [rng.uniform(0.1, 3) for _ in range(count)]
        call_s = [rng.uniform(0, 2) for _ in range(count)]
        sizes = [rng.randint(1, 4) for _ in range(count)]

        def finish_s(i, items, item_s=item_s, call_s=call_s, sizes=sizes):
            return items * item_s[i] + -(-items // sizes[i]) * call_s[i]

        every = (shares for shares in itertools.product(range(total + 1), repeat=count) if sum(shares) == total)
        least = min(max(itertools.starmap(finish_s, enumerate(shares))) for shares in every)
        assert max(itertools.starmap(finish_s, enumerate(split_items(total, count, finish_s)))) == pytest.approx(least)


def test_c_t_and_c_f_are_those_of_the_design(make_fleet, make_task, make_workload):
    task = make_task(n=3, answer_bytes=5.0)
    fleet = make_fleet(1.0, 1 / 4, link=Link(80.0, 0.5))
    cost = StageCost(fleet, make_workload(task))
    train, forward = DeviceGroup(("a",)), DeviceGroup(("b",))
    # B = 4 items, t = 2 s on a, f = 1 s; with its own chains n B f more
    assert cost.train(train, task, False).seconds == 8
    assert cost.train(train, task, True).seconds == 8 + 12
    # n B f with f = 4 s on b; the link: 0.5 s + 4 * 5 bytes at 10 byte/s
    assert cost.forward(forward, task).seconds == 3 * 4 * 4
    assert cost.answers_s(forward, train, task) == 0.5 + 2
    # with q = x n B passes moved, C_T = 8 + q f_T = C_F = (12 - q) f_F + (1 - x) link: 8 + 12 x = (1 - x) 50.5
    plan = plan_task(cost, Candidate("contextgear", train, forward), task)
    assert plan.reassigned_share == pytest.approx((50.5 - 8) / (50.5 + 12))
    assert plan.train_s == pytest.approx(plan.forward_s)
    assert plan.step_s == pytest.approx(8 + 12 * 42.5 / 62.5)
    # max((3 * 1 + 2) * 4 / (1 + 1/4), 4 * 2 / 1)
    assert cost.lower_bound_s(("a",), ("b",), task) == 16
    assert cost.lower_bound_s(("b",), ("a",), task) == 32


def test_several_devices_that_run_their_own_chains_exchange_the_answers(make_fleet, make_task, make_workload):
    task = make_task(n=2, answer_bytes=5.0)
    cost = StageCost(make_fleet(1.0, 1.0, link=Link(80.0, 0.5)), make_workload(task))
    ((train, own),) = cost.reassignable(DeviceGroup(("a", "b")), task)
    assert (train.items, own.items) == ((2, 2), (2, 2))
    assert own.seconds == 2 * 2 + 0.5 + 2  # two passes of two items, 4 * 5 bytes at 10 byte/s


def test_every_call_costs_its_overhead(make_fleet, make_task, make_workload):
    # k = 2 of 4 items fits: 2 calls of forward and backward, and of n = 3 passes where chains run too
    task = make_task(n=3, train_activation_bytes=1.0)
    cost = StageCost(make_fleet(1.0, overhead_s=0.1, memory=8.0), make_workload(task))
    share = cost.train(DeviceGroup(("a",)), task, False)
    assert (share.micro_batches, share.seconds) == ((2,), pytest.approx(8 + 2 * 2 * 0.1))
    assert cost.train(DeviceGroup(("a",)), task, True).seconds == pytest.approx(8 + 12 + 2 * (2 + 3) * 0.1)


def test_data_parallel_pays_for_the_ring(make_fleet, make_task, make_workload):
    task = make_task(gradient_bytes=30.0)
    cost = StageCost(make_fleet(1.0, 1.0, 2.0, link=Link(8.0, 0.5)), make_workload(task))
    group = DeviceGroup(("a", "b", "c"))
    # shares 1, 1, 2; then 2 (3 - 1) messages of 10 bytes at 1 byte/s and 0.5 s
    assert cost.train(group, task, False).items == (1, 1, 2)
    assert cost.train(group, task, False).seconds == pytest.approx(2 + 4 * (10 + 0.5))


def test_the_ring_waits_for_its_slowest_link(make_fleet, make_task, make_workload):
    task = make_task(gradient_bytes=2.0)
    fleet = make_fleet(1.0, 1.0, 1.0, link=Link(8.0))
    object.__setattr__(fleet, "links", {("a", "c"): Link(0.8)})
    cost = StageCost(fleet, make_workload(task))
    assert cost.all_reduce_s(("a", "b"), task) == pytest.approx(2 * 1.0)
    assert cost.all_reduce_s(("a", "b", "c"), task) == pytest.approx(4 * 2 / 3 * 10)


def test_memory_counts_weights_adapters_optimizer_and_activations(make_fleet, make_task, make_workload):
    task = make_task(train_activation_bytes=3.0, forward_activation_bytes=7.0)
    work = make_workload(task, layer_bytes=(10.0, 1.0, 1.0, 2.0), adapter_bytes=8.0, optimizer_bytes=4.0)
    cost = StageCost(make_fleet(1.0, 1.0), work)
    whole = DeviceGroup(("a",))
    # base 14, adapters 8, optimizer 4; micro-batches of 2 items: 2 items * 4 layers * 3 bytes, or 2 * 7 to run forward
    assert cost.memory_bytes(whole, 0, task, 2, trains=True) == 14 + 8 + 4 + 24
    assert cost.memory_bytes(whole, 0, task, 2, trains=False) == 14 + 8 + 14
    # layers 0 and 1 of 4 are half of everything but the weights; m = 4 micro-batches of 1 item
    for layout, alive in (("1f1b", 2), ("gpipe", 4)):
        pipeline = DeviceGroup(("a", "b"), layout, (2,))
        assert cost.memory_bytes(pipeline, 0, task, 1, trains=True) == 11 + 4 + 2 + alive * 1 * 2 * 3
    assert cost.memory_bytes(DeviceGroup(("a", "b"), "1f1b", (2,)), 1, task, 1, trains=True) == 3 + 4 + 2 + 1 * 2 * 3


def test_what_does_not_fit_says_what_is_needed(make_fleet, make_task, make_workload):
    task = make_task(train_activation_bytes=3.0)
    cost = StageCost(make_fleet(1.0, 1.0, memory=(100.0, 5.0)), make_workload(task))
    # one item through 4 layers of 3 bytes
    assert cost.train(DeviceGroup(("a", "b")), task, False) == Misfit("b", 12.0, 5.0)
    # as a pipeline, b may hold a single layer
    assert cost.cuts(("a", "b"), "1f1b", task) == [(3,)]


def test_a_pipeline_without_links_is_the_closed_form(make_fleet, make_task, make_workload):
    task = make_task(n=2)
    cost = StageCost(make_fleet(1.0, 1.0), make_workload(task))
    for layout in ("1f1b", "gpipe"):
        group = DeviceGroup(("a", "b"), layout, (2,))
        # k = 1: f = b = 1/2, (m + p - 1)(f + b) = (4 + 1) * 1; larger k: (2 + 1) * 2, (1 + 1) * 4
        share = cost.train(group, task, False)
        assert (share.micro_batches, share.seconds) == ((1, 1), 5.0)
        # two passes of 4 micro-batches of 1/2 s go ahead of them, each to its end
        assert cost.train(group, task, True).seconds == 2 * (4 + 1) / 2 + 5.0


def test_a_pipeline_pays_for_what_it_sends(make_fleet, make_task, make_workload):
    task = make_task(boundary_bytes=1.0)
    cost = StageCost(make_fleet(1.0, 1.0, link=Link(8.0)), make_workload(task, batch_size=1))
    # forward 1/2 + 1/2, backward the same, and 1 byte at 1 byte/s each way
    assert cost.train(DeviceGroup(("a", "b"), "1f1b", (2,)), task, False).seconds == 2 + 2
