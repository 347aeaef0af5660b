"""Process groups, and whole trees of tensors sent through them."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from contextlora.trees import from_bytes, to_bytes

FIRST_TAG = 1 << 16  # of answers; far from the tags of others who use the same group
# Of each group of all processes, since trainings that follow each other in one must not take each other's messages.
_TAGS: WeakKeyDictionary[Any, Iterator[int]] = WeakKeyDictionary()


class ProcessGroups:
    """Process groups by their processes, each made once, when all processes of the run first ask for it."""

    def __init__(self) -> None:
        self.process, self.size = dist.get_rank(), dist.get_world_size()
        # NCCL would hold a forward-only device's GPU until its peer joins in.
        self.cpu = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        self._made: dict[tuple[int, ...], Any] = {tuple(range(self.size)): dist.group.WORLD}
        self._tags = _TAGS.setdefault(self.cpu, count(FIRST_TAG))

    def of(self, processes: Sequence[int]) -> Any:
        """The group of these processes on the default backend; None for one process.

        All processes of the run must ask, members or not, in the same order. Members alone could not agree on the
        group's name, which torch makes from the number of groups that a process already has.
        """
        key = tuple(sorted(processes))
        if len(key) > 1 and key not in self._made:
            self._made[key] = dist.new_group(list(key))
        return self._made.get(key)

    def next_tag(self) -> int:
        """A tag for messages that no earlier stage's open receives may take."""
        return next(self._tags)


def broadcast_tree(tree: Any, source: int, groups: ProcessGroups) -> Any:
    """Gives every process a tree of tensors (on the CPU when they arrive) and plain values that `source` has."""
    return _broadcast(tree, source, groups.cpu)


def gather_trees(tree: Any) -> list[Any]:
    """The trees of all processes, in their order, on every process; messages are of the CPU, whatever the backend."""
    return [_broadcast(tree, source, None) for source in range(dist.get_world_size())]


def _broadcast(tree: Any, source: int, group: Any) -> Any:
    content = torch.empty(0, dtype=torch.uint8)
    if dist.get_rank() == source:
        content = torch.frombuffer(bytearray(to_bytes(tree)), dtype=torch.uint8)
    size = torch.tensor([len(content)])
    dist.broadcast(size, source, group=group)
    if dist.get_rank() != source:
        content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, source, group=group)
    return from_bytes(content.numpy().tobytes())
