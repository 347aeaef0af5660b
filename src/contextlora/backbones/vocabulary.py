"""Which words of a task set a model's tokenizer does not know: it reads them all as one token, and tells none apart."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from contextlora.backbones.faults import BackboneError, errors_of
from contextlora.errors import tail
from contextlora.tasks.faults import label, shown
from contextlora.tasks.task import Item
from contextlora.tasks.taskset import TaskSet

# One word in twenty, about one in a question: more, and what questions are about is likely among them.
MOST_UNKNOWN = 0.05
# What prompts in natural language consist of, besides a task set's own words.
_SENTENCES = "The task is on. Which?\nOptions:\n- one\n- two\nAnswer:"
_MOST_ITEMS = 512  # of a task: the share is known to about one per cent, in a fraction of a second


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer makes of a task's train items, or of an even sample of them.

    Attributes:
        task: its name.
        num_tokens, num_unknown: of questions, images' text views and options.
        examples: the most frequent unknown words.
        num_items: items looked at.
        num_alike: those with different options that become the same tokens.
        alike: options of the first of these, or none.
    """

    task: str
    num_tokens: int
    num_unknown: int
    examples: tuple[str, ...]
    num_items: int
    num_alike: int
    alike: tuple[str, ...]

    @property
    def unknown_share(self) -> float:
        """Unknown tokens by all."""
        return self.num_unknown / max(self.num_tokens, 1)

    def __str__(self) -> str:
        words = f" ({', '.join(map(label, self.examples))})" if self.examples else ""
        text = f"{self.task}: {100 * self.unknown_share:.1f} % of tokens unknown{words}"
        if self.num_alike:
            text += f"; {self.num_alike} of {self.num_items} items with options that look alike ({shown(self.alike)})"
        return text


def reads_sentences(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts may be written in sentences: a tokenizer knows all of their words and punctuation."""
    return knows_sentences(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.unk_token_id)


def knows_sentences(ids_of: Callable[[str], Sequence[int]], unknown: int | None) -> bool:
    """As `reads_sentences`, of any tokenizer.

    Args:
        ids_of: the tokenizer.
        unknown: the id of what it does not know, if it has one.
    """
    try:
        ids = ids_of(_SENTENCES)
    except Exception:  # bare ones of tokenizers, which without an unknown token take no other words
        return False
    return len(ids) >= len(_SENTENCES.split()) and unknown not in ids  # some leave out what they do not know


def vocabularies(taskset: TaskSet, tokenizer: PreTrainedTokenizerBase, name: str, image: str) -> list[Vocabulary]:
    """What a tokenizer makes of every task.

    Args:
        taskset: whose train items are read.
        tokenizer: of the model.
        name: of the model, for messages.
        image: `text` where the model reads the images' text views, else `image`.
    """
    samples = {}
    for task in taskset.graph.tasks:
        items = taskset.items(task, "train")
        samples[task] = items[:: -(-len(items) // _MOST_ITEMS)]
    texts = (text for items in samples.values() for item in items for text in _texts(item, image))
    words = list(dict.fromkeys(word for text in texts for word in text.split()))
    with errors_of(name, "tokenizer"):
        rows = tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"] if words else []
    ids = dict(zip(words, map(tuple, rows), strict=True))
    return [_vocabulary(task, items, ids, tokenizer.unk_token_id, image) for task, items in samples.items()]


def check_vocabulary(found: Sequence[Vocabulary], name: str) -> None:
    """Raises `BackboneError` where a task has more unknown tokens than `MOST_UNKNOWN`."""
    worst = max(found, key=lambda one: one.unknown_share)
    if worst.unknown_share > MOST_UNKNOWN:
        raise BackboneError(
            f"at most {100 * MOST_UNKNOWN:.0f} % of a task's tokens may be unknown to model {tail(name)}, of "
            f"{label(worst.task)} {100 * worst.unknown_share:.1f} % are ({', '.join(map(label, worst.examples[:2]))}): "
            "take a model that reads any word, MODEL=smollm2-135m, or words that it knows; "
            "taskset.answer_format=letter tells options apart"
        )


def _texts(item: Item, image: str) -> tuple[str, ...]:
    seen = item.image_text if image == "text" else None
    return (item.question, seen or "", *item.options)


def _vocabulary(
    task: str, items: Sequence[Item], ids: dict[str, tuple[int, ...]], unknown: int | None, image: str
) -> Vocabulary:
    counts = Counter(word for item in items for text in _texts(item, image) for word in text.split())
    strange = {word: ids[word].count(unknown) for word in counts if unknown is not None and unknown in ids[word]}
    alike = []
    for item in items:
        rows = [tuple(chain.from_iterable(ids[word] for word in option.split())) for option in item.options]
        same = [option for option, row in zip(item.options, rows, strict=True) if rows.count(row) > 1]
        if same:
            alike.append(tuple(same))
    return Vocabulary(
        task=task,
        num_tokens=sum(len(ids[word]) * times for word, times in counts.items()),
        num_unknown=sum(strange[word] * counts[word] for word in strange),
        examples=tuple(sorted(strange, key=lambda word: (-counts[word], word))[:3]),
        num_items=len(items),
        num_alike=len(alike),
        alike=alike[0] if alike else (),
    )
