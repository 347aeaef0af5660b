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
from contextlora.tasks.tasksets import TaskSet


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

    def items(self, task: str, split: str) -> list[Item]:
        items = self.taskset.items(task, split)
        return items if self.max_items is None else items[: self.max_items]

    def predict(
        self,
        task: str,
        items: Sequence[Item],
        context: str,
        use: SliceUse | None | str = PLANNED,
    ) -> Prediction:
        """Answers items of one task.

        Args:
            task: the task of all items.
            items: items of one split.
            context: "none", "gold" (right prerequisite answers in the prompt) or "predicted" (each prerequisite is
                answered first, on the item of the same scene, itself with predicted prerequisites).
            use: slices in force for this task; None for the base model alone. Prerequisites in the chain always use
                the slices of the plan.
        """
        slices = self.plan.uses[task] if use == PLANNED else use
        # Rows must not depend on what is remembered, so a list of items is answered whole or not at all: another
        # batch composition may change the last bits, and a resumed run would differ.
        key = (task, context, slices, tuple((item.scene, item.id) for item in items))
        state = self._weights_behind(task, slices, context)
        held = self._remembered.get(key)
        if held is None or held[0] != state:
            held = state, self._answer(task, items, self._contexts(task, items, context), slices)
            self._remembered[key] = held
        return held[1]

    def chain_answers(self, tasks: Sequence[str], split: str) -> dict[tuple[str, str], str]:
        """Predicted answers of the direct prerequisites of every item of these tasks: (task, scene) -> word."""
        answers: dict[tuple[str, str], str] = {}
        for task in tasks:
            items = self.taskset.items(task, split)
            for prerequisite in self.taskset.graph.prerequisites(task):
                prediction = self._prerequisite(prerequisite, items, "predicted")
                answers |= {(prerequisite, scene): word for scene, word in zip(prediction.scenes, prediction.words)}
        return answers

    def _prerequisite(self, prerequisite: str, items: Sequence[Item], context: str) -> Prediction:
        return self.predict(prerequisite, [self.taskset.scene_item(prerequisite, i.scene) for i in items], context)

    def _contexts(self, task: str, items: Sequence[Item], context: str) -> list[dict[str, str]] | None:
        if context == "none":
            return None
        prerequisites = self.taskset.graph.prerequisites(task)
        if context == "gold":
            return [{name: item.prerequisites[name] for name in prerequisites} for item in items]
        words = {name: self._prerequisite(name, items, "predicted").words for name in prerequisites}
        return [{name: words[name][i] for name in prerequisites} for i in range(len(items))]

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
