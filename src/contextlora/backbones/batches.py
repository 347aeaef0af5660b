"""Packs generic documents into training and test batches of fixed shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from contextlora.backbones import scene_skills, text_skills, wordings
from contextlora.backbones.documents import Document
from contextlora.backbones.vocabulary import IMAGE, PAD, UNKNOWN, WORDS
from contextlora.tasks.renderers import GRID, IMAGE_SIZE, MAX_SHIFT, OBJECTS, PATTERNS

NUM_PATCHES = GRID * GRID
_IDS = {word: index for index, word in enumerate(WORDS)}
_IGNORE = -100
_FORMS = ("open", "words", "words", "letters")
_PLAIN_FORMS = ("open", "open", "open", "words")
_PATCH_WORDS = (".", *OBJECTS, *PATTERNS)
PATCH_WORD_IDS = [_IDS[word] for word in _PATCH_WORDS]


@dataclass
class Batch:
    """Rows of words, those with an image first.

    Attributes:
        input_ids: (rows, length) int64; an image row begins with `NUM_PATCHES` image tokens.
        labels: (rows, length) int64, the word to predict after each position, -100 where nothing is asked.
        patch_labels: (image rows, 16) int64, what each patch shows, as an index into `PATCH_WORD_IDS`.
        pixels: (image rows, 3, 64, 64) uint8.
        asked: (row, position, skill, form) per question.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    patch_labels: torch.Tensor
    pixels: torch.Tensor
    asked: list[tuple[int, int, str, str]]


def make_batch(
    seed: int,
    *,
    num_image_rows: int,
    num_text_rows: int,
    length: int,
    copying: float = 0.0,
    easy: float = 0.0,
    held_out: bool = False,
) -> Batch:
    """Writes one batch; a pure function of its arguments.

    Args:
        seed: fixes every draw.
        num_image_rows: rows that begin with an image.
        num_text_rows: rows of text alone.
        length: words a row, image tokens included.
        copying: share of the text rows that only repeat or look up (a warm-up for the copying circuits).
        easy: share of the rows that ask in one plain wording about objects on the grid.
        held_out: ask in the held-out wordings.
    """
    rng, drawing = Random(seed), np.random.default_rng(seed)
    words = wordings.HELD_OUT if held_out else wordings.TRAIN

    def ease() -> tuple[Mapping[str, tuple[str, ...]], int]:
        return (wordings.PLAIN, 0) if rng.random() < easy else (words, MAX_SHIFT)

    documents, scenes = [], []
    for _ in range(num_image_rows):
        scene, document = _image_row(rng, drawing, *ease(), length)
        scenes.append(scene)
        documents.append(document)
    documents += [_text_row(rng, ease()[0], length, copying) for _ in range(num_text_rows)]
    input_ids = np.full((len(documents), length), _IDS[PAD])
    labels = np.full((len(documents), length), _IGNORE)
    asked = []
    for row, document in enumerate(documents):
        input_ids[row, : len(document.words)] = [_IDS.get(word, _IDS[UNKNOWN]) for word in document.words]
        for position, word in document.labels.items():
            labels[row, position] = _IDS[word]
        asked += [(row, *question) for question in document.asked]
    pixels = np.zeros((len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    patch_labels = np.zeros((len(scenes), NUM_PATCHES), np.int64)
    for row, scene in enumerate(scenes):
        pixels[row] = scene.image
        patch_labels[row] = [_PATCH_WORDS.index(word) for word in scene.patches]
    arrays = (input_ids, labels, patch_labels, pixels.transpose(0, 3, 1, 2).copy())
    return Batch(*(torch.from_numpy(array) for array in arrays), asked)


def _image_row(
    rng: Random, drawing: np.random.Generator, words: Mapping[str, tuple[str, ...]], max_shift: int, length: int
) -> tuple[scene_skills.Scene, Document]:
    if rng.random() < 0.2:
        scene = scene_skills.spectrogram_scene(rng, drawing, words)
    else:
        scene = scene_skills.camera_scene(rng, drawing, words, max_shift)
    document = Document(length, [IMAGE] * NUM_PATCHES)
    document.say(scene.preamble)
    _ask_until_full(document, scene.askers, rng, _PLAIN_FORMS if words is wordings.PLAIN else _FORMS)
    return scene, document


def _text_row(rng: Random, words: Mapping[str, tuple[str, ...]], length: int, copying: float) -> Document:
    document = Document(length)
    if rng.random() < max(copying * 0.5, 0.03):
        said = text_skills.repeats(rng)
        document.say("repeat : " + " ".join(said) + " .")
        start = len(document.words)
        document.say(" ".join(said)[: 6 * length])
        document.words = document.words[:length]
        document.labels = {p: document.words[p + 1] for p in range(start + 1, len(document.words) - 1)}
        return document
    kinds = (text_skills.lookups, text_skills.lookups, text_skills.readings, text_skills.readings, text_skills.rules)
    make_text = text_skills.lookups if rng.random() < copying else rng.choice(kinds)
    text = make_text(rng, words)
    document.say(text.preamble)
    _ask_until_full(document, text.askers, rng, _PLAIN_FORMS if words is wordings.PLAIN else _FORMS)
    return document


def _ask_until_full(document: Document, askers: tuple, rng: Random, forms: tuple[str, ...]) -> None:
    failures = 0
    while failures < 4:
        question = rng.choice(askers)()
        failures += question is None or not document.ask(question, rng.choice(forms), rng)
