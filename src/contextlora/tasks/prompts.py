"""Turns an item into the text a model reads and the continuations it chooses from.

A task set, or one of its tasks, may bring a template; parts that are empty for an item drop out together with the space
behind them. Where it brings none, it depends on the model. One that knows single words only, such as the bundled one,
gets words and punctuation separated by spaces:

    <image> lane c2 . grip c1 34 , c2 81 . route ? given : hazard heavy . options : main , bridge . answer :
    {image} {question}                             {context}              options : {options} . answer :

One that reads sentences gets, with `{option_lines}` in the place of `{options}`:

    <image> The hazard is heavy. Which route is free?
    Options:
    - main
    - bridge
    Answer:

Letter format writes `a main , b bridge`, or lines as `A. main`; the continuations are these letters. `as_context` is
how a task's answer is worded in the prompts of those that need it: "The {task} is {answer}.". What may end an answer:
`contextlora.backbones.endings`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from types import MappingProxyType
from typing import Any

from contextlora.errors import squeezed
from contextlora.tasks.faults import TaskSetError, label, shown
from contextlora.tasks.task import Item, Task

DEFAULT_TEMPLATE = "{image} {question} {context} options : {options} . answer :"
NATURAL_TEMPLATE = "{image} {context} {question}\nOptions:\n{option_lines}\nAnswer:"
NATURAL_CONTEXT = "The {task} is {answer}."
IMAGE_PLACEHOLDER = "<image>"  # encoding replaces it by the model's own
END_OF_ANSWER = " ."  # as it stands behind each part of a prompt; for tokenizers without an end token
TEMPLATE_FIELDS = ("image", "question", "context", "options", "option_lines")
CONTEXT_FIELDS = ("task", "answer")
CONTEXT_MODES = ("none", "gold", "predicted")
ANSWER_FORMATS = ("word", "letter")
_FIELD = re.compile(r"\{(\w*)\} ?")


@dataclass(frozen=True)
class Prompt:
    """One question as a model gets it.

    Attributes:
        task: name of the task.
        text: everything before the answer, with at most one `IMAGE_PLACEHOLDER`, without a space at the end.
        image_path: the image for the placeholder, or None.
        continuations: what may follow, one for each option.
        answer: index of the right continuation.
        length_normalised: whether a continuation's score is divided by its characters.
    """

    task: str
    text: str
    image_path: Path | None
    continuations: tuple[str, ...]
    answer: int
    length_normalised: bool = False


def check_template(template: str, where: str) -> None:
    """Raises `TaskSetError` unless the template holds `{question}`, options and nothing unknown, each once."""
    if fault := _template_fault(template, TEMPLATE_FIELDS, ("question", "options")):
        raise TaskSetError(f"{where}: the prompt template has {fault}; mend it")


def wording_faults(template: Any, as_context: Any) -> Iterator[str]:
    """What is wrong with a task set's or a task's own words; None is none of its own."""
    for key, text, fields, needed in (
        ("template", template, TEMPLATE_FIELDS, ("question", "options")),
        ("as_context", as_context, CONTEXT_FIELDS, ("answer",)),
    ):
        if text is not None and not isinstance(text, str):
            yield f"{key} must be text, got {shown(text)}"
        elif text is not None and (fault := _template_fault(text, fields, needed)):
            yield f"the {'prompt ' * (key == 'template')}{key} has {fault}; mend it"


def _template_fault(template: str, fields: Sequence[str], needed: Sequence[str]) -> str:
    used = _FIELD.findall(template)
    unknown = [name for name in used if name not in fields]
    kinds = ["options" if name == "option_lines" else name for name in used]
    twice = [name for name in kinds if kinds.count(name) > 1]
    missing = [name for name in needed if name not in kinds]
    # A field that is not written as one would stand in every prompt as it is.
    brace = re.search(r"\{[^{}]*\}|[{}]", _FIELD.sub("", template))
    if unknown:
        return f"unknown field {{{squeezed(unknown[0])}}} beside {', '.join(fields)}"
    if brace:
        return f"{shown(brace[0])}, but braces may hold nothing but one of {', '.join(fields)}"
    return f"{{{twice[0]}}} twice" if twice else f"no {{{missing[0]}}}" if missing else ""


def resolve_image_view(setting: str, sees_images: bool) -> str:
    """Settles `auto`: the image itself for a model that sees, else its text view. Returns `image` or `text`."""
    if setting not in ("auto", "image", "text"):
        raise TaskSetError(f"image must be auto, image or text, got {shown(setting)}")
    if setting == "image" and not sees_images:
        raise TaskSetError("image must be text or auto for a model that cannot see, got 'image'")
    return ("image" if sees_images else "text") if setting == "auto" else setting


def context_of(item: Item, prerequisites: Sequence[str], mode: str, predicted: Mapping[str, str]) -> dict[str, str]:
    """Answers of the prerequisites to be written into the prompt.

    Args:
        item: whose prompt it is.
        prerequisites: tasks to take, in the order in which the prompt names them; those without an answer for this item
            (no entry in `item.prerequisites`) are left out.
        mode: one of `CONTEXT_MODES`.
        predicted: a model's answers to this item's prerequisites, read in mode `predicted`.

    Raises:
        TaskSetError: unknown mode, or a predicted answer is missing.
    """
    if mode not in CONTEXT_MODES:
        raise TaskSetError(f"context must be one of {', '.join(CONTEXT_MODES)}, got {shown(mode)}")
    if mode == "none":
        return {}
    known = [task for task in prerequisites if task in item.prerequisites]
    if mode == "gold":
        return {task: item.prerequisites[task] for task in known}
    try:
        return {task: predicted[task] for task in known}
    except KeyError as error:
        which = f"task {label(error.args[0])} for item {label(item.id)}"
        raise TaskSetError(f"context predicted needs an answer of {which}; predict that first") from None


def render(
    item: Item,
    task: Task,
    context: Mapping[str, str] | None = None,
    *,
    template: str = DEFAULT_TEMPLATE,
    as_context: Mapping[str, str | None] = MappingProxyType({}),
    image: str = "image",
    answer_format: str = "word",
    length_normalised: bool = False,
    folder: Path = Path(),
) -> Prompt:
    """Writes an item's prompt.

    Args:
        item: the question.
        task: its task.
        context: answers of prerequisites, see `context_of`.
        template: see the module's head.
        as_context: task -> how its answer in `context` is worded; for others the bundled model's words.
        image: `image` or `text` (the item's text view in place of the image).
        answer_format: `word` or `letter`.
        length_normalised: see `Prompt`.
        folder: the task set's, which `item.image` is relative to.

    Raises:
        TaskSetError: the item has no text view where one is needed, or more options than letters.
    """
    if answer_format not in ANSWER_FORMATS:
        raise TaskSetError(f"answer_format must be one of {', '.join(ANSWER_FORMATS)}, got {shown(answer_format)}")
    if image == "text" and item.image and item.image_text is None:
        raise TaskSetError(
            f"item {label(item.id)} of task {label(task.name)} has no image_text, which a model that cannot see needs; "
            "add it"
        )
    shows_image = image == "image" and item.image is not None
    listed, continuations = _listed(item, answer_format, in_lines="{option_lines}" in template)
    fields = {
        "image": IMAGE_PLACEHOLDER if shows_image else item.image_text or "",
        "question": item.question,
        "context": _given(context or {}, as_context),
        "options": " , ".join(listed),
        "option_lines": "\n".join(listed),
    }
    # One pass over the template alone, so braces in a question are no fields. No space at the end: most tokenisers
    # make one token of a space and the word behind it, so the space belongs to the option.
    text = _filled(template, fields).rstrip()
    image_path = folder / item.image if shows_image else None
    return Prompt(task.name, text, image_path, continuations, item.answer, length_normalised)


def _listed(item: Item, answer_format: str, in_lines: bool) -> tuple[list[str], tuple[str, ...]]:
    """The options as the prompt lists them, and what answers it: themselves, or their letters."""
    if answer_format == "word":
        return [f"- {word}" if in_lines else word for word in item.options], item.options
    if len(item.options) > len(ascii_lowercase):
        raise TaskSetError(f"item {label(item.id)} has more options than letters; set taskset.answer_format=word")
    letters = tuple((ascii_uppercase if in_lines else ascii_lowercase)[: len(item.options)])
    dot = "." if in_lines else ""
    return [f"{letter}{dot} {word}" for letter, word in zip(letters, item.options, strict=True)], letters


def _given(context: Mapping[str, str], as_context: Mapping[str, str | None]) -> str:
    bare = [f"{task} {word}" for task, word in context.items() if not as_context.get(task)]
    sentences = [
        _filled(as_context[task], {"task": task.replace("_", " "), "answer": word})
        for task, word in context.items()
        if as_context.get(task)
    ]
    return " ".join([*([f"given : {' , '.join(bare)} ."] if bare else []), *sentences])


def _filled(template: str, fields: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: _part(match, fields), template)


def _part(match: re.Match[str], fields: Mapping[str, str]) -> str:
    """The field's value with the space that stood behind it, or nothing at all."""
    value = fields[match[1]]
    return value + match[0][len(match[1]) + 2 :] if value else ""
