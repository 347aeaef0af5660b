"""Looks at every prompt of a run before its first step, so that no item ends it after hours."""

import json
from collections.abc import Mapping, Sequence

import torch

from contextlora.backbones.encoding import OptionBatch
from contextlora.backbones.faults import errors_of
from contextlora.backbones.scoring import option_scores
from contextlora.errors import UserError
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.order import some_of
from contextlora.tasks.task import SPLITS, Item

_Row = tuple[Item, Mapping[str, str]]  # an item with the answers that its prompt holds


def check_prompts(data: TaskSetDataModule, max_items: int | None = None) -> None:
    """Encodes the items that training and evaluation read, in batches.

    Args:
        data: of the run.
        max_items: how many of each task are evaluated; None for all. Those of train and validation all count.

    Raises:
        UserError: names file and line of the item, or of the two of a batch, that do not fit.
    """
    lengths = _option_lengths(data)
    for task in data.taskset.graph.tasks:
        for split in SPLITS:
            items = _read_items(data, task, split, max_items)
            contexts = [_longest_context(data, task, split, item, lengths) for item in items]
            sizes = []
            for start in range(0, len(items), data.eval_batch_size):
                part = range(len(items))[start : start + data.eval_batch_size]
                sizes += _sizes(data, task, split, [(items[n], contexts[n]) for n in part])
            # Training mixes them: the longest prompt may meet the longest option.
            longest = [max(range(len(items)), key=lambda n: sizes[n][column]) for column in (0, 1)]
            _check(data, task, split, [(items[n], contexts[n]) for n in longest])


def check_forward(data: TaskSetDataModule) -> None:
    """Lets the bare model read a first prompt, with an image if there is one, before anything is built on it.

    Raises:
        BackboneError: the model's files do not fit each other, or its weights do not fit the code.
    """
    task = data.taskset.graph.tasks[0]
    item = max(data.taskset.items(task, "train"), key=lambda item: bool(item.image))
    batch = data.encode_items(task, [item], [data.right_context(task, item)]).to(data.backbone.model.device)
    with errors_of(data.backbone.name, "forward of a first prompt"), torch.no_grad():
        option_scores(data.backbone.model, batch)


def _read_items(data: TaskSetDataModule, task: str, split: str, max_items: int | None) -> Sequence[Item]:
    """Those that training or evaluation reads: of the test split some, and what their prompts ask for."""
    items = data.taskset.items(task, split)
    if split != "test":
        return items
    scenes = {
        item.scene for name in data.taskset.graph.tasks for item in some_of(data.taskset.items(name, split), max_items)
    }
    return [item for item in items if item.scene in scenes]


def _option_lengths(data: TaskSetDataModule) -> dict[str, int]:
    """Tokens of every option that a prompt may hold as an answer to a prerequisite."""
    words = list({word for items in data.taskset.splits.values() for item in items for word in item.options})
    if data.context == "none" or not words:
        return {}
    # As they stand in a prompt, behind a space.
    given = [f" {word}" for word in words]
    rows = data.backbone.tokenizer(given, add_special_tokens=False, verbose=False)["input_ids"]
    return dict(zip(words, map(len, rows), strict=True))


def _longest_context(
    data: TaskSetDataModule, task: str, split: str, item: Item, lengths: Mapping[str, int]
) -> Mapping[str, str]:
    """The longest answers that a model can give to the prerequisites."""
    right = data.right_context(task, item)
    found = {name: data.taskset.parent(name, split, item) for name in right}
    return {name: max(one.options, key=lengths.get) if (one := found[name]) else word for name, word in right.items()}


def _sizes(data: TaskSetDataModule, task: str, split: str, rows: Sequence[_Row]) -> list[tuple[int, int]]:
    """Tokens of each prompt and of its longest option; a batch that does not fit is left to its items."""
    try:
        batch = data.encode_items(task, *zip(*rows, strict=True))
    except UserError:
        return [size for row in rows for size in _sizes_of(_check(data, task, split, [row]))]
    return _sizes_of(batch)


def _sizes_of(batch: OptionBatch) -> list[tuple[int, int]]:
    prompts, options = batch.inputs["attention_mask"].sum(-1), batch.option_mask.sum(-1).amax(-1)
    return list(zip(prompts.tolist(), options.tolist(), strict=True))


def _check(data: TaskSetDataModule, task: str, split: str, rows: Sequence[_Row]) -> OptionBatch:
    try:
        return data.encode_items(task, *zip(*rows, strict=True))
    except UserError as error:
        places = dict.fromkeys(_place(data, task, split, item) for item, _ in rows)
        raise type(error)(f"{' with '.join(places)}: {error}") from error


def _place(data: TaskSetDataModule, task: str, split: str, item: Item) -> str:
    """File and line of an item, as far as there is a file."""
    place = f"{split}/{task}.jsonl"
    try:
        lines = (data.taskset.folder / place).read_text(encoding="utf-8-sig").split("\n")
        number = next(n for n, line in enumerate(lines, 1) if line.strip() and str(json.loads(line)["id"]) == item.id)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):  # a set made in memory
        return f"{place}, item {item.id}"
    return f"{place}:{number}"
