"""Predicts a task's answers, alone or at the end of the chain of its predicted prerequisites.

Shapes: N items, K options (the widest item's; missing options score -inf).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from contextlora.adapters.model import AdaptedModel
from contextlora.backbones.scoring import OptionBatch, option_scores
from contextlora.graph.plan import SliceUse, TrainingPlan
from contextlora.tasks.task import Item
from contextlora.tasks.taskset import TaskSet


class PromptEncoder(Protocol):
    """Turns items of one task, with the prerequisites' answers written into the prompt or not, into a batch."""

    def __call__(
        self, task: str, items: Sequence[Item], contexts: Sequence[Mapping[str, str]] | None
    ) -> OptionBatch: ...


@dataclass(frozen=True)
class Prediction:
    """One task's answers on a list of items.

    Attributes:
        scenes, words: each item's scene and the option chosen for it.
        scores: (N, K) log-likelihoods.
        answers: (N,) positions of the right options.
    """

    task: str
    scenes: tuple[str, ...]
    words: tuple[str, ...]
    scores: torch.Tensor
    answers: torch.Tensor

    @property
    def chosen(self) -> torch.Tensor:
        return self.scores.argmax(dim=-1)

    @property
    def accuracy(self) -> float:
        return float((self.chosen == self.answers).double().mean()) if len(self.answers) else 0.0

    @property
    def loss(self) -> float:
        """Mean cross-entropy over the options, in nats."""
        return float(F.cross_entropy(self.scores, self.answers)) if len(self.answers) else 0.0


PLANNED = "planned"  # the slices that the plan gives the task


class Evaluator:
    """Answers a task set's items with an adapted model, and remembers answers while the weights behind them last.

    Args:
        adapted: the model; its weights may change between calls.
        plan: which slices each task uses.
        taskset: items and the task graph.
        encode: renders and encodes items.
        batch_size: items in one forward.
        max_items: only the first so many items of a split; None takes all.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        plan: TrainingPlan,
        taskset: TaskSet,
        encode: PromptEncoder,
        batch_size: int,
        max_items: int | None = None,
    ) -> None:
        self.adapted, self.plan, self.taskset, self.encode = adapted, plan, taskset, encode
        self.batch_size, self.max_items = batch_size, max_items
        self._remembered: dict[tuple, tuple[str, Prediction]] = {}

    def items(self, task: str, split: str) -> Sequence[Item]:
        items = self.taskset.items(task, split)
        return items if self.max_items is None else items[: self.max_items]

    def predict(self, task: str, split: str, context: str, use: SliceUse | None | str = PLANNED) -> Prediction:
        """Answers the items of one task and split.

        Args:
            task: the task.
            split: "train", "validation" or "test".
            context: "none", "gold" (right prerequisite answers in the prompt) or "predicted" (each prerequisite is
                answered first, on the item of the same scene, itself with predicted prerequisites).
            use: slices in force for this task; None for the base model alone. Prerequisites in the chain always use
                the slices of the plan.
        """
        return self._predict(task, split, self.items(task, split), context, use)

    def chain_answers(self, tasks: Sequence[str], split: str) -> dict[tuple[str, str], str]:
        """Predicted answers of the direct prerequisites of every item of these tasks: (task, scene) -> word."""
        answers: dict[tuple[str, str], str] = {}
        for task in tasks:
            for prerequisite in self.taskset.graph.prerequisites(task):
                words = self.predicted_words(prerequisite, split, self.taskset.items(task, split))
                answers |= {(prerequisite, scene): word for scene, word in words.items()}
        return answers

    def _predict(
        self, task: str, split: str, items: Sequence[Item], context: str, use: SliceUse | None | str
    ) -> Prediction:
        slices = self.plan.uses[task] if use == PLANNED else use
        if not self.taskset.graph.prerequisites(task):
            context = "none"  # all modes are one for a root
        # Rows must not depend on what is remembered, so a list of items is answered whole or not at all: another
        # batch composition may change the last bits, and a resumed run would differ.
        key = (task, split, context, slices and slices.active, tuple(item.id for item in items))
        state = self._weights_behind(task, slices, context)
        held = self._remembered.get(key)
        if held is None or held[0] != state:
            held = state, self._answer(task, items, self._contexts(task, split, items, context), slices)
            self._remembered[key] = held
        return held[1]

    def predicted_words(self, prerequisite: str, split: str, items: Sequence[Item]) -> dict[str, str]:
        """Predicted answer of a prerequisite for the scene of each item, where the prerequisite has an item on it."""
        same_scene = [self.taskset.item(prerequisite, split, item.scene) for item in items]
        asked = [item for item in same_scene if item is not None]
        prediction = self._predict(prerequisite, split, asked, "predicted", PLANNED)
        return dict(zip(prediction.scenes, prediction.words, strict=True))

    def _contexts(self, task: str, split: str, items: Sequence[Item], context: str) -> list[dict[str, str]] | None:
        if context == "none":
            return None
        names = self.taskset.graph.prerequisites(task)
        if context == "gold":
            return [{name: item.prerequisites[name] for name in names if name in item.prerequisites} for item in items]
        words = {name: self.predicted_words(name, split, items) for name in names}
        return [{name: words[name][item.scene] for name in names if item.scene in words[name]} for item in items]

    @torch.inference_mode()
    def _answer(
        self, task: str, items: Sequence[Item], contexts: list[dict[str, str]] | None, use: SliceUse | None
    ) -> Prediction:
        was_training = self.adapted.training
        self.adapted.eval()
        rows: list[torch.Tensor] = []
        with self.adapted.active(use, task):
            for start in range(0, len(items), self.batch_size):
                part = slice(start, start + self.batch_size)
                batch = self.encode(task, items[part], contexts and contexts[part])
                rows.append(option_scores(self.adapted.model, batch.to(self.adapted.device)).float().cpu())
        self.adapted.train(was_training)
        width = max((len(item.options) for item in items), default=1)
        scores = [F.pad(row, (0, width - row.shape[1]), value=-torch.inf) for row in rows]
        scores = torch.cat(scores) if scores else torch.empty(0, width)
        words = tuple(item.options[index] for item, index in zip(items, scores.argmax(dim=-1).tolist()))
        answers = torch.tensor([item.answer for item in items], dtype=torch.long)
        return Prediction(task, tuple(item.scene for item in items), words, scores, answers)

    def _weights_behind(self, task: str, use: SliceUse | None, context: str) -> str:
        """Digest of all adapter weights that an answer depends on."""
        slices = set(use.active) if use else set()
        if context == "predicted":
            for ancestor in self.taskset.graph.prerequisites(task, "ancestors"):
                slices |= set(self.plan.uses[ancestor].active)
        digest = hashlib.blake2b(digest_size=16)
        foreign = set(self.plan.partition.ranks) - slices
        for name, tensor in sorted(self.adapted.adapter_state().items()):
            if name.rsplit(".", 1)[-1] not in foreign:  # gates stay in, whatever their edge
                digest.update(name.encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()
