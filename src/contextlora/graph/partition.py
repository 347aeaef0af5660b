"""Rank partition: which ranks of one LoRA belong to whom.

A LoRA of rank R has A (R, d_in) and B (d_out, R). Rank i is row i of A with column i of B. A slice is a run of ranks:

    ranks     0 1 2 3 | 4 5 6 7 | 8 9 10 11          RankPartition({"hazard": 4, "grip": 4, "route": 4})
    slice     hazard  | grip    | route              I_grip = indices("grip") = range(4, 8), R = 12

Paper: arXiv 2507.21199, Eq. (5)-(6).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from contextlora.errors import listed
from contextlora.graph.task_graph import GraphError


@dataclass(frozen=True)
class RankPartition:
    """Slice name -> number of ranks, in the order in which the slices lie in the LoRA.

    Raises:
        GraphError: without a slice, or for a rank that is no whole number >= 1.
    """

    ranks: Mapping[str, int]

    def __post_init__(self):
        if not self.ranks:
            raise GraphError("a rank partition must have at least one slice")
        for name, rank in self.ranks.items():
            # True would pass for 1.
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise GraphError(f"a slice's rank is a whole number >= 1, got {rank!r} for {name!r}: set method.rank")
        # A copy: the starts are cached, and the caller's mapping may change.
        object.__setattr__(self, "ranks", dict(self.ranks))

    @property
    def total_rank(self) -> int:
        """R, the sum over the slices."""
        return sum(self.ranks.values())

    def indices(self, name: str) -> range:
        """I_v: the rank indices of slice `name`, consecutive."""
        if name not in self._starts:
            raise GraphError(f"unknown slice {name!r}: the slices are {listed(self.ranks)}; name one of them")
        start = self._starts[name]
        return range(start, start + self.ranks[name])

    @cached_property
    def _starts(self) -> dict[str, int]:
        starts, start = {}, 0
        for name, rank in self.ranks.items():
            starts[name] = start
            start += rank
        return starts


def num_frozen(rank: int, delta: float) -> int:
    """How many of a prerequisite's `rank` ranks stay frozen at frozen ratio delta: delta * rank, halves rounded up.

    delta is the FROZEN share here and everywhere in this package, although Eq. (6) is also quoted with delta as the
    trainable one. Python's `round` sends halves to the even number, so half of 1 rank and half of 3 would go different
    ways: 0 and 2.

    Raises:
        GraphError: for a delta outside [0, 1].
    """
    if not 0 <= delta <= 1:
        raise GraphError(
            f"delta is the frozen share of a prerequisite's ranks, in [0, 1], got {delta!r}: set method.delta"
        )
    return math.floor(delta * rank + 0.5)
