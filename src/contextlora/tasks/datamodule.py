"""Feeds a task set to a trainer, stage by stage.

A stage trains some tasks together: its gradient step number s takes a batch of task number s mod (number of tasks), and
each task walks through its items in a new random order every time it has seen them all. What a step reads is therefore
a pure function of (seed, stage, step): a run that resumes anywhere reads what the uninterrupted one would have read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning
import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from contextlora.tasks.prompts import Prompt, context_of, render
from contextlora.tasks.task import Item, TaskSetError
from contextlora.tasks.taskset import TaskSet

Batch = Any  # whatever `encode` makes: backbones.encoding.OptionBatch, which tasks/ must not import


class TaskSetDataModule(lightning.LightningDataModule):
    """Batches of the stage in force; each batch holds one task.

    Loaders look at the interval when their iteration begins, so they need no reloading between stages. Lightning begins
    the first iteration before `on_train_epoch_start`: set the first interval by `on_fit_start`.

    Args:
        taskset: tasks and items.
        encode: prompts -> batch, such as `partial(encode, backbone)`.
        stages: the tasks of each stage.
        batch_size: items in a gradient step, over all devices together.
        eval_batch_size: items in a validation batch.
        seed: of the order of items.
        context: none, gold or predicted: which prerequisites' answers the prompts hold.
        scope: direct or ancestors: whose answers these are.
        image: image or text, see `prompts.resolve_image_view`.
        answer_format: word or letter.
    """

    def __init__(
        self,
        taskset: TaskSet,
        encode: Callable[[list[Prompt]], Batch],
        stages: Sequence[Sequence[str]],
        *,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        context: str = "none",
        scope: str = "direct",
        image: str = "image",
        answer_format: str = "word",
    ) -> None:
        super().__init__()
        if min(batch_size, eval_batch_size) < 1:
            raise TaskSetError(f"batch sizes must be at least 1, got {batch_size} and {eval_batch_size}")
        self.taskset, self.encode, self.stages = taskset, encode, stages
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.context, self.scope, self.image, self.answer_format = context, scope, image, answer_format
        self.predicted: Mapping[tuple[str, str], str] = {}
        self.set_interval(0, 0, 0)

    def set_interval(self, stage: int, first_step: int, num_steps: int) -> None:
        """Says what the next iterations yield: steps first_step .. first_step + num_steps - 1 of a stage."""
        self.stage, self.first_step, self.num_steps = stage, first_step, num_steps

    def set_predicted(self, answers: Mapping[tuple[str, str], str]) -> None:
        """Gives the answer words for each (task, scene) that prompts hold in context mode `predicted`."""
        self.predicted = answers

    def encode_items(self, task: str, items: Sequence[Item], contexts: Sequence[Mapping[str, str]] | None) -> Batch:
        """One batch of a task's items, with the prerequisites' answers in `contexts` written into their prompts."""
        prompts = [
            render(
                item,
                self.taskset.tasks[task],
                contexts[index] if contexts else None,
                template=self.taskset.template,
                image=self.image,
                answer_format=self.answer_format,
                folder=self.taskset.folder,
            )
            for index, item in enumerate(items)
        ]
        return self.encode(prompts)

    def train_dataloader(self) -> DataLoader:
        """The interval's steps, one batch each."""
        return DataLoader(_Batches(self._train_batches), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Every validation item of the stage's tasks, task by task."""
        return DataLoader(_Batches(self._validation_batches), batch_size=None)

    def _train_batches(self) -> Iterator[Batch]:
        rank, num_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if num_ranks > self.batch_size:
            raise TaskSetError(f"batch size {self.batch_size} gives nothing to some of {num_ranks} devices; raise it")
        tasks = self.stages[self.stage]
        for step in range(self.first_step, self.first_step + self.num_steps):
            turn, number = divmod(step, len(tasks))
            items = self._train_items(tasks[number], number, turn)
            yield self._with_context(tasks[number], items[rank::num_ranks])

    def _train_items(self, task: str, number: int, turn: int) -> list[Item]:
        """The task's items number turn * batch_size onwards, of an endless row of shuffled rounds."""
        items = self.taskset.items(task, "train")
        places = range(turn * self.batch_size, (turn + 1) * self.batch_size)
        orders = {
            round_: np.random.default_rng((self.seed, self.stage, number, round_)).permutation(len(items))
            for round_ in {place // len(items) for place in places}
        }
        return [items[orders[place // len(items)][place % len(items)]] for place in places]

    def _validation_batches(self) -> Iterator[Batch]:
        for task in self.stages[self.stage]:
            items = self.taskset.items(task, "validation")
            for start in range(0, len(items), self.eval_batch_size):
                yield self._with_context(task, items[start : start + self.eval_batch_size])

    def _with_context(self, task: str, items: Sequence[Item]) -> Batch:
        prerequisites = self.taskset.graph.prerequisites(task, scope=self.scope)
        contexts = [context_of(item, prerequisites, self.context, self.predicted) for item in items]
        return self.encode_items(task, items, contexts)


class _Batches(IterableDataset):
    """Whole batches, made anew by each iteration."""

    def __init__(self, make: Callable[[], Iterator[Batch]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Batch]:
        return self.make()
