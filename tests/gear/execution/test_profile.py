"""The profiler on calls whose seconds are known, and on links between processes of this machine."""

import time

import pytest
import torch.distributed as dist

from contextlora.gear.execution.profile import measure_device, measure_links

pytestmark = pytest.mark.processes


def test_calls_of_known_length_are_found_again():
    """Sleeps of 10 ms and 1 (forward) or 2 (train) ms an item, which a busy machine can only lengthen."""
    calls = {"forward": lambda n: time.sleep(0.010 + 0.001 * n), "train": lambda n: time.sleep(0.010 + 0.002 * n)}
    device = measure_device("here", calls, (2, 12), "sleep", 5.0, 1e9)
    assert device.measured.forward_s == pytest.approx(0.001, rel=0.3)
    assert device.measured.train_s == pytest.approx(0.002, rel=0.3)
    assert device.overhead_s == pytest.approx(0.010, rel=0.3)
    assert device.forward_s(10.0) == pytest.approx(2 * device.measured.forward_s)  # 10 FLOPs are two items


def links():
    dist.init_process_group("gloo")
    return measure_links(dist.get_rank(), dist.get_world_size())


def test_every_pair_of_processes_has_a_link(run_processes):
    found = run_processes(3, links)
    assert [sorted(row) for row in found] == [[(0, 1), (0, 2)], [(1, 2)], []]
    assert all(0 < link.latency_s < 0.5 and link.bandwidth_bits_per_s > 1e6 for row in found for link in row.values())
