"""What a task set is made of: tasks and their multi-choice items, each able to explain what is wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from contextlora.errors import UserError

SPLITS = ("train", "validation", "test")
_EMPTY: Mapping[str, str] = MappingProxyType({})  # shared by all items, so nobody may write to it


class TaskSetError(UserError):
    """A task set's folder or one of its items breaks a rule of the format."""


@dataclass(frozen=True)
class Item:
    """One multi-choice question.

    Attributes:
        id: unique within its task and split.
        scene: what the item is about; the items of different tasks with the same scene belong together.
        question: everything the prompt says besides image, context and options.
        options: the answer words to choose from, in the order shown.
        answer: index of the right option.
        image: path of the image file, relative to the task set's folder.
        image_text: what the image shows, for models that cannot see.
        prerequisites: right answers (words) of the task's ancestors for this scene.
        fields: named inputs behind question and image, read by the data check only, never shown to a model.
    """

    id: str
    scene: str
    question: str
    options: tuple[str, ...]
    answer: int
    image: str | None = None
    image_text: str | None = None
    prerequisites: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    fields: Mapping[str, str] = field(default_factory=lambda: _EMPTY)

    @property
    def answer_word(self) -> str:
        """The right option."""
        return self.options[self.answer]

    @classmethod
    def from_record(cls, record: Any) -> "Item":
        """Builds an item from one decoded JSON line; a `TaskSetError` lacks file and line, which the caller knows."""
        if not isinstance(record, dict):
            raise TaskSetError("each line must be a JSON object")
        known = cls.__dataclass_fields__
        missing = [key for key in ("id", "scene", "question", "options", "answer") if key not in record]
        # A misspelt key would leave its field empty without a word.
        unknown = [key for key in record if key not in known]
        if missing or unknown:
            problem = f"lacks {', '.join(missing)}" if missing else f"has unknown keys {', '.join(unknown)}"
            raise TaskSetError(f"item {record.get('id', '?')} {problem}; keys of an item: {', '.join(known)}")
        # Scenes join the items of tasks by equality: 7 in one file and "7" in another are one scene.
        return cls(**{**record, "id": str(record["id"]), "scene": str(record["scene"]), "options": _options(record)})


def _options(record: dict[str, Any]) -> tuple[str, ...]:
    options, answer = record["options"], record["answer"]
    if not isinstance(options, list) or not all(isinstance(word, str) and word.strip() for word in options):
        raise TaskSetError(f"item {record['id']}: options must be a list of words, got {options!r}")
    if len(set(options)) != len(options) or len(options) < 2:
        raise TaskSetError(f"item {record['id']}: options must be two or more different words, got {options!r}")
    # JSON's `true` would pass for option 1.
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
        raise TaskSetError(
            f"item {record['id']}: answer must be the index of an option, 0 to {len(options) - 1}, got {answer!r}"
        )
    return tuple(options)


@dataclass(frozen=True)
class Task:
    """One question type.

    Attributes:
        name: how graph, configuration and tables call it.
        prerequisites: tasks whose answers it needs, in the order in which `rule` names them.
        num_options: the most options an item of it has.
        description: what is asked, in one sentence.
        rule: right answer for each tuple of the prerequisites' answers, where the task is such a rule; else None.
    """

    name: str
    prerequisites: tuple[str, ...]
    num_options: int
    description: str = ""
    rule: Mapping[tuple[str, ...], str] | None = None

    @classmethod
    def from_config(cls, name: str, config: Any) -> "Task":
        """Builds a task from its entry in `taskset.yaml`."""
        keys = ("prerequisites", "num_options", "description", "rule")
        if not isinstance(config, dict) or set(config) - set(keys):
            raise TaskSetError(f"task {name} must be a mapping with the keys {', '.join(keys)}, got {config!r}")
        num_options = config.get("num_options")
        if not isinstance(num_options, int) or num_options < 2:
            raise TaskSetError(f"task {name}: num_options must be a whole number of at least 2, got {num_options!r}")
        prerequisites = config.get("prerequisites") or []
        if not isinstance(prerequisites, list):
            raise TaskSetError(f"task {name}: prerequisites must be a list of task names, got {prerequisites!r}")
        rule = _rule(name, prerequisites, config["rule"]) if config.get("rule") else None
        return cls(name, tuple(prerequisites), num_options, str(config.get("description", "")), rule)

    def to_config(self) -> dict[str, Any]:
        """The inverse of `from_config`, without the name."""
        config: dict[str, Any] = {"prerequisites": list(self.prerequisites), "num_options": self.num_options}
        if self.description:
            config["description"] = self.description
        if self.rule:
            config["rule"] = [[*answers, answer] for answers, answer in self.rule.items()]
        return config


def _rule(name: str, prerequisites: Sequence[str], rows: Any) -> dict[tuple[str, ...], str]:
    width = len(prerequisites) + 1
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == width for row in rows):
        raise TaskSetError(
            f"task {name}: each row of its rule must list {width} words: the answers of "
            f"{', '.join(prerequisites) or 'no prerequisite'}, then the task's own"
        )
    return {tuple(row[:-1]): row[-1] for row in rows}
