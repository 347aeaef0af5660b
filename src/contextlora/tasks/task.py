"""What a task set is made of: tasks and their multi-choice items, each able to explain what is wrong with it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from contextlora.tasks.faults import TaskSetError, label, shown

SPLITS = ("train", "validation", "test")
_EMPTY: Mapping[str, str] = MappingProxyType({})  # shared by all items, so nobody may write to it


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
        parents: ancestor -> id of its item that this one builds on, of the same scene; a loaded item names them all.
        fields: named inputs behind question and image, read by the data check only, never shown to a model.
        metadata: whatever is the user's own; nothing reads it.
    """

    id: str
    scene: str
    question: str
    options: tuple[str, ...]
    answer: int
    image: str | None = None
    image_text: str | None = None
    prerequisites: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    parents: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    fields: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    metadata: Any = None

    @property
    def answer_word(self) -> str:
        """The right option."""
        return self.options[self.answer]

    def __post_init__(self) -> None:
        # As scripts pass them; what is none of these is for `item_faults` to name.
        for key in ("prerequisites", "parents", "fields"):
            if getattr(self, key) is None:
                object.__setattr__(self, key, _EMPTY)
        if isinstance(self.options, list):
            object.__setattr__(self, "options", tuple(self.options))

    @classmethod
    def from_record(cls, record: Any) -> "Item":
        """Builds an item from one decoded JSON line, in which null stands for what is left out.

        Raises:
            TaskSetError: with all its faults; they lack file and line, which the caller knows.
        """
        faults = list(item_faults(record))
        if faults:
            raise TaskSetError(faults[0], faults)
        given = {key: value for key, value in record.items() if value is not None}
        for key in {"prerequisites", "parents", "fields"} & set(given):
            given[key] = {name: value for name, value in given[key].items() if value is not None}
        if "parents" in given:
            given["parents"] = {name: str(parent) for name, parent in given["parents"].items()}
        # Scenes join the items of tasks by equality: 7 in one file and "7" in another are one scene.
        named = {"id": str(record["id"]), "scene": str(record["scene"]), "options": tuple(record["options"])}
        return cls(**{**given, **named})


def item_key(task: str, item: Item) -> tuple[str, str, str]:
    """Names an item among those of all tasks and splits: ids are unique in a split, scenes tell splits apart."""
    return task, item.scene, item.id


_REQUIRED = ("id", "scene", "question", "options", "answer")


def item_faults(record: Any) -> Iterator[str]:
    """Every rule that a record breaks by itself."""
    if not isinstance(record, Mapping):
        yield f"each line must be a JSON object, got {shown(record)}"
        return
    name, known = f"item {label(record.get('id', '?'))}", Item.__dataclass_fields__
    missing = [key for key in _REQUIRED if key not in record]
    # A misspelt key would leave its field empty without a word.
    unknown = [label(key) for key in record if key not in known]
    if missing or unknown:
        own = f"has unknown keys {', '.join(unknown[:3])}; put what is your own into metadata."
        problem = f"lacks {', '.join(missing)}; add it." if missing else own
        yield f"{name} {problem} Known: {', '.join(known)}"
    for key in ("id", "scene"):
        value = record.get(key, "?")
        if not (isinstance(value, str) and value.strip()) and type(value) is not int:
            yield f"{name}: {key} must be text or a whole number, got {shown(value)}"
        elif isinstance(value, str) and value != value.strip():
            # Another task's, or another split's, would not be the same one.
            yield f"{name}: {key} must not begin or end with a space, got {shown(value)}"
    question = record.get("question", "?")
    if not isinstance(question, str) or not question.strip():
        yield f"{name}: question must be text that asks something, got {shown(question)}"
    for key in ("image", "image_text"):
        if not isinstance(record.get(key), str | None) or (key == "image" and record.get(key) == ""):
            yield f"{name}: {key} must be text or left out, got {shown(record[key])}"
    yield from (f"{name}: {fault}" for fault in _mapping_faults(record))
    yield from (f"{name}: {fault}" for fault in _option_faults(record.get("options"), record.get("answer"), missing))


def _mapping_faults(record: Mapping[str, Any]) -> Iterator[str]:
    for key, kinds, what in (
        ("prerequisites", str | None, "tasks to their right answers, as words"),
        ("parents", str | int | None, "tasks to the ids of their items"),
        ("fields", str | int | float | None, "names to text or numbers"),
    ):
        value = record.get(key, {})
        if value is None and key != "prerequisites":
            continue
        if not isinstance(value, Mapping):
            # A null of prerequisites may be an answer that an export lost, and context would be another without it.
            yield f"{key} must map {what}, got {shown(value)}; leave the key out where there are none"
            continue
        wrong = next((part for part in value.items() if not isinstance(part[1], kinds)), None)
        if wrong:
            yield f"{key} must map {what}, got {shown(wrong[1])} for {label(wrong[0])}"


def _option_faults(options: Any, answer: Any, missing: Sequence[str]) -> Iterator[str]:
    if "options" in missing:
        return
    if not isinstance(options, list | tuple) or not all(isinstance(word, str) and word.strip() for word in options):
        yield f"options must be a list of words, got {shown(options)}"
        return
    if len(options) < 2 or len({" ".join(word.split()).casefold() for word in options}) < len(options):
        yield f"options must be two or more different words, by more than case and spaces, got {shown(options)}"
    # JSON's `true` would pass for option 1.
    if "answer" not in missing and (type(answer) is not int or not 0 <= answer < len(options)):
        yield f"answer must be the index of an option, 0 to {len(options) - 1}, got {shown(answer)}"


@dataclass(frozen=True)
class Task:
    """One question type.

    Attributes:
        name: how graph, configuration and tables call it.
        prerequisites: tasks whose answers it needs, in the order in which `rule` names them.
        num_options: the most options an item of it has.
        description: what is asked, in one sentence.
        rule: right answer for each tuple of the prerequisites' answers, where the task is such a rule; else None.
        context: prerequisites whose answers its prompts may show; None shows all.
        template: of its prompts, see `contextlora.tasks.prompts`; None for the task set's.
        as_context: how its answer is worded in prompts of tasks that need it, likewise.
        metadata: whatever is the user's own; nothing reads it.
    """

    name: str
    prerequisites: tuple[str, ...]
    num_options: int
    description: str = ""
    rule: Mapping[tuple[str, ...], str] | None = None
    context: tuple[str, ...] | None = None
    template: str | None = None
    as_context: str | None = None
    metadata: Any = None

    @classmethod
    def from_config(cls, name: str, config: Any) -> "Task":
        """Builds a task from its entry in `taskset.yaml`.

        Raises:
            TaskSetError: with all faults of the entry.
        """
        faults = [f"task {label(name)}: {fault}" for fault in _task_faults(config)]
        if faults:
            raise TaskSetError(faults[0], faults)
        prerequisites, rows = _listed(config, "prerequisites"), _listed(config, "rule")
        rule = {tuple(row[:-1]): row[-1] for row in rows} if rows else None
        own = {
            key: config[key] for key in ("template", "as_context", "metadata") if config.get(key) not in (None, "None")
        }
        if config.get("context") not in (None, "None"):
            own["context"] = tuple(config["context"])
        description = str(config.get("description") or "")
        return cls(name, tuple(prerequisites), config["num_options"], description, rule, **own)

    def to_config(self) -> dict[str, Any]:
        """The inverse of `from_config`, without the name."""
        config: dict[str, Any] = {"prerequisites": list(self.prerequisites), "num_options": self.num_options}
        if self.description:
            config["description"] = self.description
        if self.context is not None:
            config["context"] = list(self.context)
        if self.rule:
            config["rule"] = [[*answers, answer] for answers, answer in self.rule.items()]
        own = {key: getattr(self, key) for key in ("template", "as_context", "metadata")}
        return config | {key: value for key, value in own.items() if value is not None}


_MOST_OPTIONS = 10_000
TASK_KEYS = ("prerequisites", "num_options", "description", "context", "rule", "template", "as_context", "metadata")


def _listed(config: Mapping[str, Any], key: str) -> Any:
    """A list of the entry that may be left out; `None` is how Python writes null."""
    value = config.get(key)
    return [] if value in (None, "None") else value


def _task_faults(config: Any) -> Iterator[str]:
    if not isinstance(config, dict) or set(config) - set(TASK_KEYS):
        yield f"must be a mapping with the keys {', '.join(TASK_KEYS)} (for what is your own), got {shown(config)}"
    if not isinstance(config, dict):
        return
    num_options = config.get("num_options")
    if type(num_options) is not int or not 2 <= num_options <= _MOST_OPTIONS:
        yield f"num_options must be a whole number of at least 2, at most {_MOST_OPTIONS}, got {shown(num_options)}"
    if isinstance(config.get("description"), list | dict):
        yield f"description must be text, got {shown(config['description'])}"
    prerequisites = _listed(config, "prerequisites")
    if not isinstance(prerequisites, list) or not all(isinstance(name, str) for name in prerequisites):
        yield f"prerequisites must be a list of task names (numbers in quotes), got {shown(prerequisites)}"
        return
    context = _listed(config, "context")
    if not isinstance(context, list) or not all(isinstance(name, str) for name in context):
        yield f"context must be a list of prerequisites, got {shown(context)}"
    yield from _rule_faults(prerequisites, _listed(config, "rule"))


def _rule_faults(prerequisites: Sequence[str], rows: Any) -> Iterator[str]:
    width = len(prerequisites) + 1
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == width for row in rows):
        yield (
            f"each row of its rule must list {width} words: the answers of "
            f"{shown(prerequisites) if prerequisites else 'no prerequisite'}, then the task's own"
        )
        return
    wrong = next((word for row in rows for word in row if not isinstance(word, str)), "")
    if wrong != "":
        yield f"its rule must hold words only, got {shown(wrong)}; put numbers and null in quotes"
        return
    given = [tuple(row[:-1]) for row in rows]
    if len(set(given)) < len(given):
        twice = next(answers for answers in given if given.count(answers) > 1)
        yield f"its rule must have one row for each case, got two for {shown(list(twice))}"
