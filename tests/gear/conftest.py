"""Fleets and workloads of round numbers, so that expected values can be worked out by hand."""

import random
from dataclasses import replace

import pytest

from contextlora.gear.planning.devices import Device, Fleet, Link
from contextlora.gear.planning.workload import TaskWork, Workload

FREE = Link(1e30)
PLENTY = 1e18


@pytest.fixture
def make_fleet():
    """(FLOP/s of each device) -> fleet of devices a, b, c ... with plenty of memory, joined by one kind of link."""

    def make(*speeds, link=FREE, overhead_s=0.0, memory=PLENTY):
        memories = memory if isinstance(memory, tuple) else (memory,) * len(speeds)
        devices = [Device(chr(97 + i), memories[i], overhead_s, flops) for i, flops in enumerate(speeds)]
        return Fleet("test", tuple(devices), link)

    return make


@pytest.fixture
def make_task():
    """A task whose forward takes 1 FLOP an item, and nothing else costs anything."""

    def make(n=0, **changes):
        task = TaskWork("v", 10, 40, n, 1.0, 1.0, *(0.0,) * 6)
        return replace(task, **changes)

    return make


@pytest.fixture
def make_workload():
    """A stage with t = 2 f, batches of 4 and 4 equal layers."""

    def make(*tasks, batch_size=4, num_layers=4, train_ratio=2.0, **changes):
        shares = (1 / num_layers,) * num_layers
        workload = Workload("stage", tasks, batch_size, shares, (0.0,) * num_layers, 0.0, 0.0, train_ratio)
        return replace(workload, **changes)

    return make


@pytest.fixture
def random_case():
    """random.Random -> (fleet, workload): 1 to 3 unequal devices, some short of memory, 1 or 2 tasks."""

    def make(rng: random.Random, num_devices=None):
        names = "abcd"[: num_devices or rng.randint(1, 3)]
        devices = [
            Device(name, rng.choice((60.0, 200.0, 1e6)), rng.choice((0.0, 0.3)), rng.uniform(0.5, 4.0))
            for name in names
        ]
        slow = Link(rng.choice((30.0, 300.0, 1e9)), rng.choice((0.0, 0.5)))
        fleet = Fleet("random", tuple(devices), slow, {("a", "b"): Link(1e4, 0.1)} if rng.random() < 0.5 else {})
        steps = rng.randint(1, 20)
        # The tasks differ in their chains only, as the cuts are chosen for one of them.
        one = TaskWork("", steps, rng.randint(4, 60), 0, 1.0, 1.0, 2.0, 2.0, 1.0, 20.0, 3.0, 4.0)
        tasks = [replace(one, task=f"t{i}", num_prerequisites=rng.randint(0, 4)) for i in range(rng.randint(1, 2))]
        batch_size = rng.choice((1, 3, 4, 6))
        workload = Workload("random", tuple(tasks), batch_size, (0.5, 0.25, 0.25), (30.0, 10.0, 10.0), 3.0, 6.0, 2.2)
        return fleet, workload

    return make
