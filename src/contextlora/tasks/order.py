"""Which items are read together.

A batch is as wide as its longest prompt. Where a task's questions differ much in length, batches of like lengths hold
a third fewer columns; where they hardly differ, items keep the order that they would have anyway.
"""

from collections.abc import Sequence

import numpy as np

from contextlora.tasks.task import Item

# Batches out of this many are sorted together: few columns more than of all items sorted, and still a random mixture.
_WINDOW = 16
_LEAST_SAVING = 1.1  # columns of mixed batches over those of grouped ones


def lengths_of(items: Sequence[Item]) -> np.ndarray:
    """(N,) about how long each item's prompt is, in characters; the tokenizer need not be asked."""
    return np.array([len(item.question) + len(item.image_text or "") + sum(map(len, item.options)) for item in items])


def by_length(items: Sequence[Item], batch_size: int) -> list[int]:
    """The order in which to read all items: shortest first if batches become narrower by it, else as they are."""
    lengths = lengths_of(items)
    order = lengths.argsort(kind="stable")
    return order.tolist() if _saves(lengths, lengths[order], batch_size) else list(range(len(items)))


def some_of(items: Sequence[Item], most: int | None) -> Sequence[Item]:
    """At most so many items, evenly taken: files often come sorted, and their first lines would be all of one kind."""
    if most is None or len(items) <= most:
        return items
    return [items[number * len(items) // most] for number in range(most)]


def _saves(mixed: np.ndarray, grouped: np.ndarray, batch_size: int) -> bool:
    return _columns(mixed, batch_size) > _LEAST_SAVING * _columns(grouped, batch_size)


def _columns(lengths: np.ndarray, batch_size: int) -> int:
    """Characters with padding."""
    starts = range(0, len(lengths), batch_size)
    return sum(int(part.max()) * len(part) for part in (lengths[start : start + batch_size] for start in starts))


class TrainingOrder:
    """The endless row of a task's training batches: round after round of all its items, each newly shuffled.

    Batches of like lengths, where these pay, leave out the few items that fill no whole batch, others in each round.

    Args:
        items: of the task.
        batch_size: items of a batch.
    """

    def __init__(self, items: Sequence[Item], batch_size: int) -> None:
        self.lengths, self.batch_size = lengths_of(items), batch_size
        mixed = self._shuffled((0,))
        self.groups = len(items) >= batch_size and _saves(
            self.lengths[mixed[: len(mixed) // batch_size * batch_size]],
            self.lengths[self._grouped(mixed).ravel()],
            batch_size,
        )

    def batch(self, key: tuple[int, ...], turn: int) -> list[int]:
        """Places of the items of batch number `turn` of the row that `key`, a seed, makes."""
        if self.groups:
            round_, number = divmod(turn, len(self.lengths) // self.batch_size)
            batches = self._grouped(self._shuffled((*key, round_)))
            # Else the short ones would come first in each window.
            return batches[np.random.default_rng((*key, round_, 1)).permutation(len(batches))[number]].tolist()
        size = len(self.lengths)
        places = range(turn * self.batch_size, (turn + 1) * self.batch_size)
        # A batch may reach into the next round, which has an order of its own.
        rounds = {round_: self._shuffled((*key, round_)) for round_ in {place // size for place in places}}
        return [int(rounds[place // size][place % size]) for place in places]

    def _shuffled(self, key: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(key).permutation(len(self.lengths))

    def _grouped(self, order: np.ndarray) -> np.ndarray:
        """(batches, batch size) places, of like lengths in a batch."""
        num_batches = len(order) // self.batch_size
        batches = order[: num_batches * self.batch_size].reshape(num_batches, self.batch_size)
        for start in range(0, num_batches, _WINDOW):
            window = batches[start : start + _WINDOW]
            flat = window.ravel()
            batches[start : start + _WINDOW] = flat[self.lengths[flat].argsort(kind="stable")].reshape(window.shape)
        return batches
