"""What a task set holds, and what a model's tokenizer makes of it: figures to look at before a training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from contextlora.backbones.faults import errors_of
from contextlora.evaluation.references import rule_accuracy
from contextlora.tasks.probes import lookup
from contextlora.tasks.prompts import Prompt
from contextlora.tasks.task import SPLITS
from contextlora.tasks.taskset import TaskSet


@dataclass(frozen=True)
class TaskStatistics:
    """Of one task; accuracies are shares of the test items.

    Attributes:
        num_items: by split.
        fewest_options, most_options: of an item.
        chance: of guessing.
        majority: of the offered option that is the answer most often in train.
        popularity: of the option that is right most often in train where it is offered.
    """

    num_items: Mapping[str, int]
    fewest_options: int
    most_options: int
    chance: float
    majority: float
    popularity: float


def task_statistics(taskset: TaskSet, task: str) -> TaskStatistics:
    """Counts, and the accuracies of guesses that read no question."""
    train, test = taskset.items(task, "train"), taskset.items(task, "test")
    options = [len(item.options) for split in SPLITS for item in taskset.items(task, split)]
    return TaskStatistics(
        num_items={split: len(taskset.items(task, split)) for split in SPLITS},
        fewest_options=min(options),
        most_options=max(options),
        chance=sum(1 / len(item.options) for item in test) / len(test),
        majority=rule_accuracy(taskset, task, (), test),
        popularity=lookup(train, test, lambda item: None),
    )


def shared_scenes(taskset: TaskSet, parent: str, child: str) -> dict[str, int]:
    """By split, how many of the child's items build on an item of the parent, whose answer can be shown."""
    return {
        split: sum(taskset.parent(parent, split, item) is not None for item in taskset.items(child, split))
        for split in SPLITS
    }


@dataclass(frozen=True)
class Spread:
    """Of some numbers: the median, the one that 95 % of them do not exceed, and the largest."""

    median: int
    most_of: int
    largest: int

    @classmethod
    def of(cls, numbers: Sequence[int]) -> "Spread":
        """Each is one of the numbers."""
        ranked = sorted(numbers)
        return cls(*(ranked[-(-share * len(ranked) // 100) - 1] for share in (50, 95, 100)))


def token_lengths(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, name: str, chat_template: bool, takes_images: bool
) -> tuple[Spread, Spread]:
    """Tokens of prompts, without those of images, and of their options.

    Args:
        prompts: at least one.
        tokenizer: of the model.
        name: of the model, for messages.
        chat_template: whether the tokenizer's is used where it has one.
        takes_images: whether its templates want a list of contents.

    Raises:
        BackboneError: the tokenizer or its template fails.
    """
    texts, templated = [prompt.text for prompt in prompts], chat_template and bool(tokenizer.chat_template)
    if templated:
        contents = [[{"type": "text", "text": text}] if takes_images else text for text in texts]
        turns = [[{"role": "user", "content": content}] for content in contents]
        with errors_of(name, "chat template"):
            texts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    # As they stand in a prompt, behind a space.
    options = list({f" {word}" for prompt in prompts for word in prompt.continuations})
    with errors_of(name, "tokenizer"):
        # A template writes the special tokens itself.
        rows = tokenizer(texts, add_special_tokens=not templated, verbose=False)["input_ids"]
        option_rows = tokenizer(options, add_special_tokens=False, verbose=False)["input_ids"]
    return Spread.of([len(row) for row in rows]), Spread.of([len(row) for row in option_rows])
