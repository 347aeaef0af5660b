"""Looks at every prompt of a run before its first step, so that no item ends it after hours."""

import json
from collections.abc import Mapping

import torch

from contextlora.backbones.errors import errors_of
from contextlora.backbones.scoring import option_scores
from contextlora.errors import UserError
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.task import SPLITS, Item


def check_prompts(data: TaskSetDataModule, max_items: int | None = None) -> None:
    """Encodes the items of all splits, in batches as evaluation makes them.

    Args:
        data: of the run.
        max_items: how many of each task and split are evaluated; None for all. Those of the train split all count.

    Raises:
        UserError: names file and line of the item that does not fit.
    """
    for task in data.taskset.graph.tasks:
        for split in SPLITS:
            items = data.taskset.items(task, split)[: None if split == "train" else max_items]
            contexts = [_longest_context(data, task, split, item) for item in items]
            for start in range(0, len(items), data.eval_batch_size):
                part = slice(start, start + data.eval_batch_size)
                try:
                    data.encode_items(task, items[part], contexts[part])
                except UserError:
                    for item, context in zip(items[part], contexts[part], strict=True):
                        _check_one(data, task, split, item, context)
                    raise  # only the batch as a whole, its longest prompt with its longest option, is too long


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


def _longest_context(data: TaskSetDataModule, task: str, split: str, item: Item) -> Mapping[str, str]:
    """The longest answers that a model can give to the prerequisites."""
    right = data.right_context(task, item)
    found = {name: data.taskset.item(name, split, item.scene) for name in right}
    return {name: max(found[name].options, key=len) if found[name] else word for name, word in right.items()}


def _check_one(data: TaskSetDataModule, task: str, split: str, item: Item, context: Mapping[str, str]) -> None:
    try:
        data.encode_items(task, [item], [context])
    except UserError as error:
        raise type(error)(f"{_place(data, task, split, item)}: {error}") from error


def _place(data: TaskSetDataModule, task: str, split: str, item: Item) -> str:
    """File and line of an item, as far as there is a file."""
    place = f"{split}/{task}.jsonl"
    try:
        lines = (data.taskset.folder / place).read_text(encoding="utf-8-sig").split("\n")
        number = next(n for n, line in enumerate(lines, 1) if line.strip() and str(json.loads(line)["id"]) == item.id)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):  # a set made in memory
        return f"{place}, item {item.id}"
    return f"{place}:{number}"
