"""Groups of devices that work as one, and how they share items."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Group:
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


def split_items(num_items: int, item_s: Sequence[float], call_s: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Shares of identical items that end soonest: item after item to the device that would finish it first.

    Exact, since a device's time never falls with one item more: the last of the B smallest finishing times is the least
    possible maximum.

    Args:
        num_items: to be shared.
        item_s, call_s, sizes: seconds per item and per call, and items per call, of each device.
    """
    if len(item_s) == 1:
        return [num_items]
    shares = [0] * len(item_s)
    heap = [(item_s[i] + call_s[i], i) for i in range(len(item_s))]
    heapq.heapify(heap)
    for _ in range(num_items):
        _, i = heap[0]
        shares[i] += 1
        heapq.heapreplace(heap, (_finish_s(shares[i] + 1, item_s[i], call_s[i], sizes[i]), i))
    return shares


def _finish_s(items: int, item_s: float, call_s: float, size: int) -> float:
    return items * item_s + math.ceil(items / size) * call_s


def share_items(num_items: int, item_s: list[float], call_s: list[float], sizes: tuple[int, ...]) -> Share:
    """Identical items shared among devices, each with calls of its own size."""
    shares = split_items(num_items, item_s, call_s, sizes)
    return Share(max(map(_finish_s, shares, item_s, call_s, sizes)), tuple(shares), sizes)
