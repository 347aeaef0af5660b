"""Measures what a device catalogue says: seconds of a forward and a training step, and the links between processes."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
import torch.distributed as dist

from contextlora.gear.planning.devices import Device, Link, Measured

REPEATS = 7
SMALL_BYTES, LARGE_BYTES = 8, 4_000_000  # an answer; the gradients of a small LoRA


def measure_device(
    name: str,
    calls: Mapping[str, Callable[[int], None]],
    sizes: tuple[int, int],
    workload: str,
    forward_flops: float,
    memory_bytes: float,
) -> Device:
    """Times calls of two sizes in turn; seconds = overhead + items x seconds of an item through the shortest of each.

    The shortest is the one that other programs disturbed least.

    Args:
        name: of the device.
        calls: "forward" and "train" -> runs so many items and returns when they are done.
        sizes: items of a call, the smaller first.
        workload: what is run, for people.
        forward_flops: FLOPs of one forward of one item of it.
        memory_bytes: what training may use.
    """
    seconds: dict[tuple[str, int], list[float]] = {(kind, size): [] for kind in calls for size in sizes}
    for repeat in range(REPEATS + 1):
        for kind, size in seconds:
            began = time.perf_counter()
            calls[kind](size)
            if repeat:  # the first ones warm up
                seconds[kind, size].append(time.perf_counter() - began)
    small, large = sizes
    shortest = {key: min(values) for key, values in seconds.items()}
    item_s = {}
    for kind in calls:
        slope = (shortest[kind, large] - shortest[kind, small]) / (large - small)
        # On a busy machine the line may fall; the larger call alone then says most.
        item_s[kind] = slope if slope > 0 else shortest[kind, large] / large
    item_s["train"] = max(item_s["train"], item_s["forward"])  # it contains one
    overhead_s = max(0.0, shortest["forward", small] - small * item_s["forward"])
    measured = Measured(workload, forward_flops, item_s["forward"], item_s["train"])
    return Device(name, memory_bytes, overhead_s, measured=measured)


def measure_links(process: int, size: int, large_bytes: int = LARGE_BYTES) -> dict[tuple[int, int], Link]:
    """Times messages there and back between every pair of processes, one pair after the other; all processes call it.

    Args:
        process, size: of this process, and how many there are.
        large_bytes: of the message that the bandwidth is measured with.

    Returns:
        (lower process, higher process) -> link, on the lower process of each pair only.
    """
    links = {}
    for first in range(size):
        for second in range(first + 1, size):
            if process in (first, second):
                peer = first + second - process
                one_way_s = {n: _one_way_s(process < peer, peer, n) for n in (SMALL_BYTES, large_bytes)}
                # On a fast link noise may make the large message the faster one.
                sent_s = max(one_way_s[large_bytes] - one_way_s[SMALL_BYTES], 1e-9)
                if process == first:
                    links[first, second] = Link(8 * (large_bytes - SMALL_BYTES) / sent_s, one_way_s[SMALL_BYTES])
            dist.barrier()
    return links


def _one_way_s(goes_first: bool, peer: int, num_bytes: int) -> float:
    message, seconds = torch.zeros(num_bytes, dtype=torch.uint8), []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        for sends in (goes_first, not goes_first):
            if sends:
                dist.send(message, peer)
            else:
                dist.recv(message, peer)
        seconds.append((time.perf_counter() - began) / 2)
    return median(seconds[1:])
