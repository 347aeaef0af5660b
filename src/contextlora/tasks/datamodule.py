"""Feeds a task set to a trainer, stage by stage.

A stage trains some tasks together: its gradient step number s takes a batch of task number s mod (number of tasks), and
each task walks through its items in a new random order every time it has seen them all (`order`). What a step reads is
therefore a pure function of (seed, stage, step): a run that resumes anywhere reads what the uninterrupted one would
have read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import lightning
from torch.utils.data import DataLoader, IterableDataset

from contextlora.tasks.faults import Faults, label, shown
from contextlora.tasks.order import TrainingOrder, by_length, some_of
from contextlora.tasks.prompts import CONTEXT_MODES, Prompt, context_of, resolve_image_view
from contextlora.tasks.task import Item, TaskSetError, item_key
from contextlora.tasks.taskset import TaskSet

Answers = dict[tuple[str, str, str], dict[str, str]]  # key of an item -> prerequisite -> word
Batch = Any  # whatever the backbone makes: backbones.encoding.OptionBatch, which tasks/ must not import


class PromptReader(Protocol):
    """What reads prompts."""

    is_multimodal: bool
    reads_sentences: bool

    def encode(self, prompts: Sequence[Prompt], rows: range | None = None) -> Batch:
        """The prompts of one task as a batch, or of this batch some rows."""


class ItemNumbers(NamedTuple):
    """A gradient step's items, not encoded yet: places among the task's training items."""

    task: str
    numbers: tuple[int, ...]


class TaskSetDataModule(lightning.LightningDataModule):
    """Batches of the stage in force; each batch holds one task.

    The module that trains says what the next interval is; loaders look at it when their iteration begins, so they need
    no reloading between stages.

    Args:
        taskset: tasks and items.
        backbone: reads the prompts, such as `contextlora.load_backbone` gives.
        batch_size: items in a gradient step, over all devices together.
        eval_batch_size: items in a validation batch.
        seed: of the order of items.
        context: whether prompts hold the prerequisites' answers, and which while training: "none", "gold" (the right
            ones) or "predicted" (the model's own).
        scope: "direct" or "ancestors": whose answers these are.
        image: "auto", "image" or "text", see `prompts.resolve_image_view`.
        answer_format: "word" or "letter".
        length_normalised: whether options' scores are divided by their characters.
        validation_items: of each task that a validation reads at most, evenly taken; None reads all.
        micro_batch_size: items of a gradient step that are computed at once; a train batch of more is a list of
            batches. None computes all at once.

    Attributes:
        by_numbers: whether train batches are `ItemNumbers`, whole on every device: where it is known only later which
            rows a device takes (`encode_rows`). Else they are encoded, and each device of the Trainer gets its rows.
    """

    def __init__(
        self,
        taskset: TaskSet,
        backbone: PromptReader,
        *,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        seed: int = 0,
        context: str = "predicted",
        scope: str = "direct",
        image: str = "auto",
        answer_format: str = "word",
        length_normalised: bool = False,
        validation_items: int | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if min(batch_size, eval_batch_size) < 1:
            raise TaskSetError(f"batch sizes must be at least 1, got {batch_size} and {eval_batch_size}")
        if context not in CONTEXT_MODES:
            raise TaskSetError(f"context must be one of {', '.join(CONTEXT_MODES)}, got {shown(context)}")
        self.taskset, self.backbone = taskset.worded(backbone.reads_sentences), backbone
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.context, self.scope, self.answer_format = context, scope, answer_format
        self.length_normalised, self.validation_items = length_normalised, validation_items
        self.micro_batch_size = micro_batch_size
        self.image = resolve_image_view(image, backbone.is_multimodal)
        self._check_prompts()
        self.answers: Answers = {}
        self.by_numbers = False
        self._orders: dict[str, TrainingOrder] = {}
        self.set_interval(0, (), 0, 0)

    def _check_prompts(self) -> None:
        """Raises `TaskSetError` for all items whose prompt cannot be written, or would lack context without a word."""
        faults = Faults(self.taskset.name)
        self._check_templates(faults)
        for (task, split), items in self.taskset.splits.items():
            needed = self.taskset.context_tasks(task, self.scope) if self.context != "none" else ()
            places = self.taskset.places.get((task, split)) or [f"{split}/{task}"] * len(items)
            for where, item in zip(places, items, strict=True):
                try:
                    self.prompt(task, item, None)
                except TaskSetError as error:
                    faults.add(where, str(error))
                for name in needed:
                    asked = self.taskset.parent(name, split, item) is not None
                    if name not in item.prerequisites or (self.context == "predicted" and not asked):
                        faults.add(
                            where,
                            f"item {label(item.id)}: context {self.context} needs an answer of task {name} for scene "
                            f"{label(item.scene)}; add an item of {name} for it (where there are several, name it in "
                            "parents), or set taskset.context=none",
                        )
        faults.raise_any()

    def _check_templates(self, faults: Faults) -> None:
        """Notes parts that no prompt would show."""
        taskset, tasks = self.taskset, {}
        for task in taskset.graph.tasks:
            tasks.setdefault(taskset.template_of(task), []).append(task)
        for template, names in tasks.items():
            which = "the prompt template" + (f" of task {label(names[0])}" if template != taskset.template else "")
            if self.context != "none" and "{context}" not in template and any(map(taskset.graph.prerequisites, names)):
                mend = "put it in, or set taskset.context=none"
                faults.add("", f"{which} has no {{context}}, which context {self.context} needs; {mend}")
            items = (item for (task, _), items in taskset.splits.items() if task in names for item in items)
            if "{image}" not in template and any(item.image or item.image_text for item in items):
                faults.add("", f"{which} has no {{image}}, but items have images; put it in, or leave them out")

    def set_interval(self, stage: int, tasks: Sequence[str], first_step: int, num_steps: int) -> None:
        """Says what the next iterations yield: steps first_step .. first_step + num_steps - 1 of a stage of tasks."""
        self.stage, self.tasks, self.first_step, self.num_steps = stage, tuple(tasks), first_step, num_steps

    def set_answers(self, answers: Answers) -> None:
        """Gives the answers that prompts hold where there is context."""
        self.answers = answers

    @property
    def part(self) -> tuple[int, int]:
        """This device among those of the Trainer, and how many they are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def own_rows(self, size: int) -> range:
        """This device's rows of a batch of so many; there may be none."""
        return part_of(range(size), *self.part)

    def encode_rows(self, batch: ItemNumbers, rows: range) -> Batch:
        """Some rows of a train batch, padded as the whole batch is."""
        items = self.taskset.items(batch.task, "train")
        return self._with_context(batch.task, [items[number] for number in batch.numbers], rows)

    def encode_items(
        self,
        task: str,
        items: Sequence[Item],
        contexts: Sequence[Mapping[str, str]] | None,
        rows: range | None = None,
    ) -> Batch:
        """One batch of a task's items, with the prerequisites' answers in `contexts` written into their prompts.

        Of a batch that several devices share, `rows` are this device's.
        """
        prompts = [self.prompt(task, item, contexts[index] if contexts else None) for index, item in enumerate(items)]
        return self.backbone.encode(prompts, rows)

    def prompt(self, task: str, item: Item, context: Mapping[str, str] | None) -> Prompt:
        """The prompt of a task's item, with the answers in `context`; None for one without a part for them."""
        settings = {"image": self.image, "answer_format": self.answer_format}
        return self.taskset.prompt(task, item, context, length_normalised=self.length_normalised, **settings)

    def right_context(self, task: str, item: Item) -> dict[str, str]:
        """The right answers of an item's prerequisites, where prompts hold context."""
        prerequisites = self.taskset.context_tasks(task, self.scope)
        return context_of(item, prerequisites, "none" if self.context == "none" else "gold", {})

    def train_dataloader(self) -> DataLoader:
        """The interval's steps, one batch each."""
        # In this process: workers would keep the interval and the answers with which they began.
        return DataLoader(_Batches(self._train_batches), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """The validation items of the stage's tasks, task by task."""
        return DataLoader(_Batches(self._validation_batches), batch_size=None)

    def _train_batches(self) -> Iterator[Batch]:
        tasks = self.tasks
        for step in range(self.first_step, self.first_step + self.num_steps):
            turn, number = divmod(step, len(tasks))
            task, numbers = tasks[number], self._train_numbers(tasks[number], number, turn)
            batch = ItemNumbers(task, tuple(numbers))
            yield batch if self.by_numbers else self._in_parts(batch)

    def _in_parts(self, batch: ItemNumbers) -> Batch | list[Batch]:
        # Lightning gives an iterable data set no sampler that would divide batches among processes. A device with no
        # row computes one for nothing: it must take part in the step, and no batch is empty.
        rows = self.own_rows(len(batch.numbers)) or range(1)
        size = self.micro_batch_size or len(rows)
        parts = [self.encode_rows(batch, rows[start : start + size]) for start in range(0, len(rows), size)]
        return parts if len(parts) > 1 else parts[0]

    def _train_numbers(self, task: str, number: int, turn: int) -> list[int]:
        """Places of the items of the task's batch number `turn` in the stage."""
        if task not in self._orders:
            self._orders[task] = TrainingOrder(self.taskset.items(task, "train"), self.batch_size)
        return self._orders[task].batch((self.seed, self.stage, number), turn)

    def _validation_batches(self) -> Iterator[Batch]:
        for task in self.tasks:
            items = part_of(some_of(self.taskset.items(task, "validation"), self.validation_items), *self.part)
            order = by_length(items, self.eval_batch_size)
            for start in range(0, len(items), self.eval_batch_size):
                part = order[start : start + self.eval_batch_size]
                yield self._with_context(task, [items[number] for number in part])

    def _with_context(self, task: str, items: Sequence[Item], rows: range | None = None) -> Batch:
        prerequisites = self.taskset.context_tasks(task, self.scope)
        # Right answers too come from the module: prompts of one batch may hold both kinds.
        mode = "none" if self.context == "none" else "predicted"
        answers = [self.answers.get(item_key(task, item), {}) for item in items]
        contexts = [context_of(item, prerequisites, mode, given) for item, given in zip(items, answers, strict=True)]
        return self.encode_items(task, items, contexts, rows)


def part_of(items: Sequence[Item], rank: int, num_ranks: int) -> Sequence[Item]:
    """The rank's part of a list that `num_ranks` ranks share evenly."""
    # Parts differ by one item at most, and none is left over.
    return items[len(items) * rank // num_ranks : len(items) * (rank + 1) // num_ranks]


class _Batches(IterableDataset):
    """Whole batches, made anew by each iteration."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Batch]:
        # Not in `__init__`: Lightning keeps a loader over epochs, while the interval changes.
        return self.make()
