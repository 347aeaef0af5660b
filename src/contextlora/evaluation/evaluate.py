"""Predicts a task's answers, alone or at the end of the chain of its predicted prerequisites.

Shapes: N items, K options (the widest item's; missing options score -inf).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from contextlora.adapters.model import AdaptedModel
from contextlora.backbones.scoring import OptionBatch, option_scores
from contextlora.errors import NotFiniteError
from contextlora.graph.plan import SliceUse
from contextlora.tasks.datamodule import Answers, part_of
from contextlora.tasks.order import by_length, some_of
from contextlora.tasks.prompts import context_of
from contextlora.tasks.task import Item, item_key
from contextlora.tasks.taskset import TaskSet

# (task, items, contexts or None) -> batch
EncodeItems = Callable[[str, Sequence[Item], Sequence[Mapping[str, str]] | None], OptionBatch]
# Batches to be scored -> the scores of each
RunBatches = Callable[[Sequence[Callable[[], torch.Tensor]]], list[torch.Tensor]]
# (task, items, contexts) -> (N, K) scores by the slices in force
Score = Callable[[str, Sequence[Item], Sequence[Mapping[str, str]]], torch.Tensor]


@dataclass(frozen=True)
class Prediction:
    """One task's answers on a list of items.

    Attributes:
        words: the option chosen for each item.
        scores: (N, K) log-likelihoods.
        answers: (N,) positions of the right options.
    """

    task: str
    words: tuple[str, ...]
    scores: torch.Tensor
    answers: torch.Tensor

    @property
    def chosen(self) -> torch.Tensor:
        """(N,) positions of the chosen options."""
        return self.scores.argmax(dim=-1)

    @property
    def accuracy(self) -> float:
        """Share of right answers; 0 without items."""
        return float((self.chosen == self.answers).double().mean()) if len(self.answers) else 0.0

    @property
    def loss(self) -> float:
        """Mean cross-entropy over the options, in nats."""
        return float(F.cross_entropy(self.scores, self.answers)) if len(self.answers) else 0.0


PLANNED = "planned"  # the slices that the task uses now


class Evaluator:
    """Answers a task set's items with an adapted model, and remembers answers while the weights behind them last.

    Args:
        adapted: the model; its weights may change between calls.
        uses: task -> the slices that it uses; may change between calls.
        taskset: items and the task graph.
        encode: renders and encodes items of one task, such as `TaskSetDataModule.encode_items`.
        batch_size: items in one forward.
        scope: "direct" or "ancestors": whose answers the prompts hold.
        max_items: at most so many items of a split, evenly taken; None takes all.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        uses: Mapping[str, SliceUse],
        taskset: TaskSet,
        encode: EncodeItems,
        batch_size: int,
        scope: str = "direct",
        max_items: int | None = None,
    ) -> None:
        self.adapted, self.uses, self.taskset, self.encode = adapted, uses, taskset, encode
        self.batch_size, self.scope, self.max_items = batch_size, scope, max_items
        self._remembered: dict[tuple, tuple[tuple, Prediction]] = {}
        self._score: Score = self._score_here
        self._run_batches: RunBatches = lambda batches: [run() for run in batches]

    def share(self, run_batches: RunBatches) -> None:
        """From now on batches are scored by several devices together; each of them must ask for the same predictions.

        Args:
            run_batches: gives the scores of all batches to every device, whichever made them.
        """
        self._run_batches = run_batches
        self._remembered.clear()  # where one device remembers, it would leave the others to compute alone

    def items(self, task: str, split: str) -> Sequence[Item]:
        """The items that `predict` answers."""
        return some_of(self.taskset.items(task, split), self.max_items)

    def predict(self, task: str, split: str, context: str, use: SliceUse | str | None = PLANNED) -> Prediction:
        """Answers the items of one task and split.

        Args:
            task: the task.
            split: "train", "validation" or "test".
            context: "none", "gold" (right prerequisite answers in the prompt) or "predicted" (each prerequisite is
                answered first, on the item that this one builds on, itself with predicted prerequisites).
            use: slices in force for this task; None for the base model alone. Prerequisites in the chain always use
                their own.
        """
        return self._predict(task, split, self.items(task, split), context, use)

    def chain_answers(
        self,
        tasks: Sequence[str],
        split: str,
        untrained: Collection[str] = (),
        part: tuple[int, int] = (0, 1),
        most: int | None = None,
    ) -> Answers:
        """Predicted answers of the prerequisites of every item of these tasks.

        Args:
            tasks: whose items get the answers.
            split: of the items.
            untrained: prerequisites that know nothing yet; their right answers are taken.
            part: (rank, number of ranks): only the rank's part of each task's items.
            most: of each task's items before they are parted, evenly taken; None for all.
        """
        answers: Answers = {}
        for task in tasks:
            items = part_of(some_of(self.taskset.items(task, split), most), *part)
            for name in self.taskset.context_tasks(task, self.scope):
                if name in untrained:
                    words = [item.prerequisites.get(name) for item in items]
                else:
                    words = self.predicted_words(name, split, items)
                for item, word in zip(items, words, strict=True):
                    if word is not None:
                        answers.setdefault(item_key(task, item), {})[name] = word
        return answers

    def chain_choices(
        self, task: str, numbers: Sequence[int], names: Sequence[str], score: Score | None = None
    ) -> torch.Tensor:
        """Predicted answers of the prerequisites of some train items.

        Args:
            task: whose items.
            numbers: their places in the train split.
            names: prerequisites, all of them trained.
            score: makes the scores of each pass, as several devices may do together; None for this one alone. Nothing
                is remembered between calls, or a device could have an answer for which the others still compute.

        Returns:
            (items, names) positions of the chosen options; -1 where an item builds on none of a prerequisite.
        """
        answering = copy(self)
        answering._remembered, answering._score = {}, score or self._score_here
        items = [self.taskset.items(task, "train")[number] for number in numbers]
        choices = torch.full((len(items), len(names)), -1, dtype=torch.long)
        for column, name in enumerate(names):
            for row, word in enumerate(answering.predicted_words(name, "train", items)):
                if word is not None:
                    choices[row, column] = self.taskset.parent(name, "train", items[row]).options.index(word)
        return choices

    def predicted_words(self, task: str, split: str, items: Sequence[Item]) -> list[str | None]:
        """A task's predicted answers for the items of another one, None for those that build on no item of it."""
        parents = [self.taskset.parent(task, split, item) for item in items]
        asked = {parent.id: parent for parent in parents if parent is not None}  # several may build on one
        prediction = self._predict(task, split, list(asked.values()), "predicted", PLANNED)
        words = dict(zip(asked, prediction.words, strict=True))
        return [words.get(parent.id) if parent is not None else None for parent in parents]

    def _predict(
        self, task: str, split: str, items: Sequence[Item], context: str, use: SliceUse | str | None
    ) -> Prediction:
        slices = self.uses[task] if use == PLANNED else use
        if not self.taskset.context_tasks(task, self.scope):
            context = "none"  # all modes are one
        # Rows must not depend on what is remembered, so a list of items is answered whole or not at all: another
        # batch composition may change the last bits, and a resumed run would differ.
        key = (task, split, context, slices and slices.active, tuple(item.id for item in items))
        versions = self._versions_behind(task, slices, context)
        held = self._remembered.get(key)
        if held is None or held[0] != versions:
            held = versions, self.answer(task, items, self._contexts(task, split, items, context), slices)
            self._remembered[key] = held
        return held[1]

    def _contexts(self, task: str, split: str, items: Sequence[Item], context: str) -> list[dict[str, str]]:
        names = self.taskset.context_tasks(task, self.scope)
        columns = {name: self.predicted_words(name, split, items) for name in names if context == "predicted"}
        answers = [{name: words[row] for name, words in columns.items() if words[row]} for row in range(len(items))]
        return [context_of(item, names, context, given) for item, given in zip(items, answers, strict=True)]

    @torch.inference_mode()
    def answer(
        self,
        task: str,
        items: Sequence[Item],
        contexts: Sequence[Mapping[str, str]],
        use: SliceUse | str | None = PLANNED,
    ) -> Prediction:
        """Answers items of one task, wherever they come from, with what `contexts` hold written into their prompts."""
        slices = self.uses[task] if use == PLANNED else use
        was_training = self.adapted.training
        self.adapted.eval()
        with self.adapted.active(slices, task):
            scores = self._score(task, items, contexts) if items else torch.empty(0, 1)
        self.adapted.train(was_training)
        # One score an option; the others of a row are -inf.
        if int(scores.isfinite().sum()) != sum(len(item.options) for item in items):
            raise NotFiniteError(f"scores of task {task} are not")
        words = tuple(item.options[index] for item, index in zip(items, scores.argmax(dim=-1).tolist(), strict=True))
        answers = torch.tensor([item.answer for item in items], dtype=torch.long)
        return Prediction(task, words, scores, answers)

    def _score_here(self, task: str, items: Sequence[Item], contexts: Sequence[Mapping[str, str]]) -> torch.Tensor:
        order = by_length(items, self.batch_size)
        parts = [order[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        rows = self._run_batches([partial(self._score_batch, task, items, contexts, part) for part in parts])
        # Each batch is as wide as its own widest item.
        width = max(len(item.options) for item in items)
        read = torch.cat([F.pad(row, (0, width - row.shape[1]), value=-torch.inf) for row in rows])
        scores = torch.empty_like(read)
        scores[order] = read
        return scores

    def _score_batch(
        self, task: str, items: Sequence[Item], contexts: Sequence[Mapping[str, str]], numbers: Sequence[int]
    ) -> torch.Tensor:
        batch = self.encode(task, [items[n] for n in numbers], [contexts[n] for n in numbers])
        batch = batch.to(next(self.adapted.parameters()).device)
        return option_scores(self.adapted.model, batch).float().cpu()

    def _versions_behind(self, task: str, use: SliceUse | None, context: str) -> tuple:
        """Equal for equal weights of all that an answer depends on."""
        involved = {task: use} if use else {}
        if context == "predicted":
            involved |= {name: self.uses[name] for name in self.taskset.graph.prerequisites(task, "ancestors")}
        return tuple((name, one.active, self.adapted.state.version(one, name)) for name, one in involved.items())
