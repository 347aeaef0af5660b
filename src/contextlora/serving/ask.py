"""Answers questions that are in no task set, along the chain of their prerequisites, from any number of threads.

A question is a mapping with the keys of an item: `question`, `options`, `image` (a path), `image_text` and
`prerequisites`. Where a run's prompts hold context, each prerequisite needs an answer: a word where it is known, or a
question of its own, which the model answers first. All that the chain may need stands side by side:

    run.ask("route", "lane c4 . what route ?", ["main", "bridge"], prerequisites={
        "hazard": {"question": "lane c4 . what hazard ?", "options": ["agile", "fixed"], "image": "camera.png"},
        "grip": "dry",                                                                  hazard ----+----> route
        "manoeuvre": {"question": "what manoeuvre ?", "options": ["pass", "brake"]},    grip ---> manoeuvre
    })
"""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from contextlora.backbones.load import Encodings
from contextlora.errors import UserError, known, listed
from contextlora.evaluation.evaluate import Evaluator
from contextlora.evaluation.suite import deployed_context
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.faults import label, shown
from contextlora.tasks.task import Item

_KEYS = ("question", "options", "image", "image_text")
# task -> its question or its known answer, for the task that is asked and all that it needs an answer of
_Chain = Mapping[str, Item | str]


@dataclass(frozen=True)
class Answer:
    """One task's answer.

    Attributes:
        option: the likeliest one, or the word that was given.
        probabilities: of each option, in their order; empty where the answer was given.
        prerequisites: the answers that it depends on, as far as its chain goes back; each stands here by itself.
    """

    option: str
    probabilities: Mapping[str, float] = field(default_factory=dict)
    prerequisites: Mapping[str, "Answer"] = field(default_factory=dict)


class Predictor:
    """Answers questions with a trained model; threads may share it, and are served one after the other.

    Args:
        data: the backbone, the task graph and how prompts are written.
        evaluator: of the model.
    """

    def __init__(self, data: TaskSetDataModule, evaluator: Evaluator) -> None:
        self.data, self.evaluator = data, evaluator
        # A model has one set of slices in force, whichever thread asks.
        self._lock = threading.Lock()

    def ask(
        self,
        task: str,
        question: str,
        options: Sequence[str],
        image: str | os.PathLike | None = None,
        image_text: str | None = None,
        prerequisites: Mapping[str, str | Mapping[str, Any]] | None = None,
    ) -> Answer:
        """Answers one question.

        Args:
            task: whose question it is.
            question: as the items of the task set ask it.
            options: what to choose from.
            image: path of the picture, from the current folder.
            image_text: what the picture shows, for models that cannot see.
            prerequisites: task -> its answer or its question, see the module's head.

        Raises:
            UserError: a rule for items is broken, the model cannot read the question, or an answer is missing.
        """
        given = {"question": question, "options": options, "image": image, "image_text": image_text}
        return self.ask_many(task, [given | {"prerequisites": prerequisites}])[0]

    def ask_many(self, task: str, questions: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Answers questions of one task in batches: as `ask` answers each, within float tolerance.

        Args:
            task: whose questions they are.
            questions: mappings of the arguments of `ask`.
        """
        chains = [self._chain(task, question) for question in questions]
        with self._lock:
            try:
                return self._answer(task, chains)
            finally:
                # A server meets no end of prompts, and an image of another content under the same path.
                self.data.backbone.encodings = Encodings()

    def _chain(self, task: str, question: Mapping[str, Any]) -> _Chain:
        ancestors = self.data.taskset.graph.prerequisites(task, "ancestors")
        if not isinstance(question, Mapping):
            raise UserError(f"a question must be a mapping with question and options, got {shown(question)}")
        prerequisites = question.get("prerequisites") or {}
        if not isinstance(prerequisites, Mapping):
            raise UserError(f"prerequisites must map tasks to answers or questions, got {shown(prerequisites)}")
        for name in prerequisites:
            if name not in ancestors:
                raise UserError(f"{label(name)} is no prerequisite of {task}: leave it out{known(name, ancestors)}")
            if not self._needed(task):
                raise UserError(
                    "prompts of this run hold no answers of prerequisites, as it was trained with "
                    f"taskset.context=none: leave out prerequisites, got {listed(map(label, prerequisites))}"
                )
        chain: dict[str, Item | str] = {task: _item(task, {k: question[k] for k in question if k != "prerequisites"})}
        for name in (task, *reversed(ancestors)):  # whoever needs an answer comes before the task that gives it
            for needed in self._needed(name) if _asks(chain, name) else ():
                if needed not in prerequisites:
                    raise UserError(
                        f"the prompt of task {name} holds the answer to {needed}, which is missing: put {needed}, a "
                        "word or a question with its options, into prerequisites"
                    )
                chain[needed] = _given(needed, prerequisites[needed])
        return chain

    def _needed(self, task: str) -> Sequence[str]:
        """The tasks whose answers the task's prompts hold."""
        if deployed_context(self.data.context) == "none":
            return ()
        return self.data.taskset.graph.prerequisites(task, self.data.scope)

    def _answer(self, task: str, chains: Sequence[_Chain]) -> list[Answer]:
        answers: list[dict[str, Answer]] = [{} for _ in chains]
        for name in self.data.taskset.graph.tasks:
            for found, chain in zip(answers, chains, strict=True):
                if isinstance(word := chain.get(name), str):
                    found[name] = Answer(word)
            asked = [(found, chain[name]) for found, chain in zip(answers, chains, strict=True) if _asks(chain, name)]
            if not asked:
                continue
            contexts = [{needed: found[needed].option for needed in self._needed(name)} for found, _ in asked]
            prediction = self.evaluator.answer(name, [item for _, item in asked], contexts)
            rows = zip(asked, prediction.words, prediction.scores.softmax(dim=-1).tolist(), strict=True)
            for (found, item), word, row in rows:
                found[name] = Answer(word, dict(zip(item.options, row, strict=False)))  # other items may have more
        return [replace(found.pop(task), prerequisites=found) for found in answers]


def _asks(chain: _Chain, task: str) -> bool:
    return isinstance(chain.get(task), Item)


def _given(task: str, given: Any) -> Item | str:
    if isinstance(given, Mapping):
        return _item(task, given)
    if not isinstance(given, str) or not given.strip():
        raise UserError(
            f"the answer to {task} must be a word, or a mapping with question and options, got {shown(given)}"
        )
    return given


def _item(task: str, given: Mapping[str, Any]) -> Item:
    """A question as an item, which only its answer is not known of."""
    for key in given:
        if key not in _KEYS:
            raise UserError(f"the question of {task} has the unknown key {label(key)}{known(key, _KEYS)}")
    image = given.get("image")
    if isinstance(image, str | os.PathLike) and image != "":
        # Those of items are read from the task set's folder.
        given = {**given, "image": str(Path(image).absolute())}
    return Item.from_record({**given, "id": task, "scene": task, "answer": 0})
