"""Small classifiers for the data check: what can be guessed from parts of an item? numpy only.

All learn on `train`, choose among the options each `test` item offers, and return the accuracy on `test`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from contextlora.tasks.task import Item

_RIDGE = 1.0  # one-hot columns of a field add up to the constant one: without it the equations are singular


def answer_position(train: Sequence[Item], test: Sequence[Item]) -> float:
    """Always chooses the position that is right most often in train."""
    position = Counter(item.answer for item in train).most_common(1)[0][0]
    return sum(item.answer == position for item in test) / len(test)


def lookup(train: Sequence[Item], test: Sequence[Item], key: Callable[[Item], Hashable]) -> float:
    """Chooses the option that, when offered to an item with the same key, was right most often.

    Rates are smoothed towards the option's rate over all keys, so that a key seen once or never is no handicap.
    """
    offered, right = defaultdict(Counter), defaultdict(Counter)
    for item in train:
        for group in (("all",), ("key", key(item))):
            offered[group].update(item.options)
            right[group][item.answer_word] += 1

    def rate(item: Item, word: str) -> float:
        overall = (right["all",][word] + 1) / (offered["all",][word] + len(item.options))
        group = ("key", key(item))
        return (right[group][word] + overall) / (offered[group][word] + 1)

    chosen = [max(item.options, key=lambda word, item=item: rate(item, word)) for item in test]
    return sum(word == item.answer_word for word, item in zip(chosen, test, strict=True)) / len(test)


def linear(train: Sequence[Item], test: Sequence[Item], prerequisites: Sequence[str] = ()) -> float:
    """Ridge regression from the one-hot fields and, as one more field, the tuple of the prerequisites' answers."""
    inputs_train, inputs_test = _one_hot(train, test, prerequisites)
    words, targets = _targets(train)
    gram = inputs_train.T @ inputs_train + _RIDGE * np.eye(inputs_train.shape[1])
    return _accuracy(inputs_test @ np.linalg.solve(gram, inputs_train.T @ targets), words, test)


def pairs(train: Sequence[Item], test: Sequence[Item]) -> float:
    """Ridge regression from the one-hot fields and all products of two of them (a quadratic kernel)."""
    inputs_train, inputs_test = _one_hot(train, test, ())
    words, targets = _targets(train)
    # (items, items), the dual form: there are far more products of two values than items.
    gram = (inputs_train @ inputs_train.T) ** 2 + _RIDGE * np.eye(len(train))
    return _accuracy((inputs_test @ inputs_train.T) ** 2 @ np.linalg.solve(gram, targets), words, test)


def _one_hot(
    train: Sequence[Item], test: Sequence[Item], prerequisites: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(items, values) matrices of 0 and 1; the values are those of train, a constant among them."""

    def values(item: Item) -> list[Hashable]:
        # One value for the whole tuple, so that a linear probe can hold any rule over the prerequisites.
        joint = tuple(item.prerequisites.get(name) for name in prerequisites)
        return [("constant",), ("joint", joint), *item.fields.items()]

    column = {}
    for item in train:
        for value in values(item):
            column.setdefault(value, len(column))
    matrices = []
    for items in (train, test):
        matrix = np.zeros((len(items), len(column)))
        for row, item in enumerate(items):
            matrix[row, [column[value] for value in values(item) if value in column]] = 1.0
        matrices.append(matrix)
    return matrices[0], matrices[1]


def _targets(train: Sequence[Item]) -> tuple[list[str], np.ndarray]:
    """Answer words and the (items, words) matrix that says which is right, less its mean."""
    words = sorted({item.answer_word for item in train})
    targets = np.array([[word == item.answer_word for word in words] for item in train], dtype=float)
    return words, targets - targets.mean(0)


def _accuracy(scores: np.ndarray, words: Sequence[str], test: Sequence[Item]) -> float:
    """Accuracy of choosing, among the options offered, the word with the highest of the (items, words) scores."""
    index = {word: position for position, word in enumerate(words)}
    right = 0
    for item, row in zip(test, scores, strict=True):
        # -inf: never right in train, so nothing speaks for it.
        offered = [row[index[word]] if word in index else -np.inf for word in item.options]
        right += int(np.argmax(offered)) == item.answer
    return right / len(test)
