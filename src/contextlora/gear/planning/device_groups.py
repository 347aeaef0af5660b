"""Groups of devices that work as one, and how they share items."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class DeviceGroup:
    """Devices that work as one.

    Attributes:
        devices: names, in the order of the stages where `layout` is a pipeline.
        layout: `data` (every device holds the whole model and takes a share of the items), `1f1b` or `gpipe` (layer
            pipelines).
        cuts: Q, the first layer of every stage but the first; empty for `data`.
    """

    devices: tuple[str, ...]
    layout: str = "data"
    cuts: tuple[int, ...] = ()

    def layers(self, num_layers: int) -> list[range]:
        """The layers of each stage."""
        edges = (0, *self.cuts, num_layers)
        return [range(start, stop) for start, stop in pairwise(edges)]


@dataclass(frozen=True)
class Share:
    """How a group does its part of a step.

    Attributes:
        seconds: of one step.
        items: for each device, items of a step (data) or all of them (pipeline).
        micro_batches: k of each device.
    """

    seconds: float
    items: tuple[int, ...]
    micro_batches: tuple[int, ...]


@dataclass(frozen=True)
class Misfit:
    """Why a group cannot do its work: this device would need more memory than it has."""

    device: str
    needed_bytes: float
    has_bytes: float


def micro_batch_sizes(batch_size: int) -> tuple[int, ...]:
    """Candidates for k, from large to small: the batch's divisors and the powers of two below it."""
    divisors = {size for size in range(1, batch_size + 1) if batch_size % size == 0}
    return tuple(sorted(divisors | {2**e for e in range(batch_size.bit_length()) if 2**e <= batch_size}, reverse=True))


def split_items(num_items: int, num_devices: int, finish_s: Callable[[int, int], float]) -> list[int]:
    """Shares of identical items that end soonest: item after item to the device that would finish it first.

    Exact, since a device never finishes sooner with one item more: the largest of the B smallest finishing times is the
    least possible maximum.

    Args:
        num_items: to be shared.
        num_devices: that share them.
        finish_s: (device, items) -> seconds until it has done so many.
    """
    if num_devices == 1:
        return [num_items]
    shares = [0] * num_devices
    # Ties go to the first device: every process plans for itself, and all must share alike.
    heap = [(finish_s(device, 1), device) for device in range(num_devices)]
    heapq.heapify(heap)
    for _ in range(num_items):
        device = heap[0][1]
        shares[device] += 1
        heapq.heapreplace(heap, (finish_s(device, shares[device] + 1), device))
    return shares


def share_items(num_items: int, sizes: tuple[int, ...], finish_s: Callable[[int, int], float]) -> Share:
    """Identical items shared among devices; `sizes` are their micro-batches, the rest as in `split_items`."""
    shares = split_items(num_items, len(sizes), finish_s)
    return Share(max(finish_s(device, items) for device, items in enumerate(shares)), tuple(shares), sizes)
