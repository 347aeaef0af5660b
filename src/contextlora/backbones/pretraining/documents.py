"""Writes pretraining documents: words with the positions at which the model must predict, and what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from contextlora.backbones.pretraining.vocabulary import LETTERS


@dataclass(frozen=True)
class Question:
    """One question: the skill it exercises, its words, its one-word answer, and words that could pass for it.

    `hints` says what the model must find on the way: at a word of the question (a key), the word to be predicted there
    (its value).
    """

    skill: str
    text: str
    answer: str
    pool: Sequence[str]
    hints: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Document:
    """Words of one row and the word to predict after some of them.

    Attributes:
        words: the row's words, at most `capacity`.
        labels: position -> word that the model must predict there.
        asked: (position of the answer's prediction, skill, form) per question, for the skill test.
    """

    capacity: int
    words: list[str] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    asked: list[tuple[int, str, str]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Appends words nothing is asked about."""
        self.words += text.split()

    def ask(self, question: Question, form: str, rng: Random) -> bool:
        """Appends a question with its answer if it fits; returns whether it did.

        The question mark, and in the forms with options the colon before them, must predict the answer as well, and so
        must "answer" before a letter: the model learns to know the answer first and to find it among the options then.
        """
        start = len(self.words)
        words = [*question.text.split(), "?"]
        labels = {
            start + position: question.hints[word] for position, word in enumerate(words) if word in question.hints
        }
        answer, labels[start + len(words) - 1] = question.answer, question.answer
        if form != "open":
            options = draw_options(question, rng)
            labels[start + len(words) + 1] = question.answer  # at the colon behind `options`
            marks = LETTERS if form == "letters" else [""] * len(options)
            listed = " , ".join(f"{mark} {option}" for mark, option in zip(marks, options, strict=False))
            words += ["options", ":", *listed.split(), "."]
            answer = LETTERS[options.index(question.answer)] if form == "letters" else question.answer
        words += ["answer", ":", answer, "."]
        # Never cut: a question without its answer teaches nothing.
        if start + len(words) > self.capacity:
            return False
        position = start + len(words) - 3  # of the colon behind `answer`
        labels[position] = answer
        if form == "letters":
            labels[position - 1] = question.answer
        self.words += words
        self.labels |= labels
        self.asked.append((position, question.skill, form))
        return True


def draw_options(question: Question, rng: Random) -> list[str]:
    """The answer among one to five other words of the question's pool, shuffled."""
    # No set: its order of words differs from process to process, and a seed must fix the options.
    others = [word for word in dict.fromkeys(question.pool) if word != question.answer]
    options = [*rng.sample(others, min(len(others), rng.choice((1, 2, 3, 3, 3, 4, 5)))), question.answer]
    rng.shuffle(options)
    return options
