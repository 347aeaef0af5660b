"""Packs generic documents into training and test batches of fixed shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from contextlora.backbones import scene_skills, text_skills, wordings
from contextlora.backbones.documents import Document
from contextlora.backbones.vocabulary import IMAGE, PAD, UNKNOWN, WORDS
from contextlora.tasks.renderers import GRID

NUM_PATCHES = GRID * GRID
_IDS = {word: index for index, word in enumerate(WORDS)}
_IGNORE = -100


@dataclass
class Batch:
    """Rows of words, those with an image first.

    Attributes:
        input_ids: (rows, length) int64; an image row begins with `NUM_PATCHES` image tokens.
        labels: (rows, length) int64, the word to predict after each position, -100 where nothing is asked.
        pixels: (image rows, 3, 64, 64) uint8.
        asked: (row, position, skill, form) per question.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    pixels: torch.Tensor
    asked: list[tuple[int, int, str, str]]


def make_batch(
    seed: int,
    *,
    num_image_rows: int,
    num_text_rows: int,
    length: int,
    copying: float = 0.0,
    held_out: bool = False,
) -> Batch:
    """Writes one batch; a pure function of its arguments.

    Args:
        seed: fixes every draw.
        num_image_rows: rows that begin with an image.
        num_text_rows: rows of text alone.
        length: words a row, image tokens included.
        copying: share of the text rows that only repeat or look up (a warm-up for the copying circuits).
        held_out: ask in the held-out wordings.
    """
    rng, drawing = Random(seed), np.random.default_rng(seed)
    words = wordings.HELD_OUT if held_out else wordings.TRAIN
    documents, images = [], []
    for _ in range(num_image_rows):
        image, document = _image_row(rng, drawing, words, length)
        images.append(image)
        documents.append(document)
    documents += [_text_row(rng, words, length, copying) for _ in range(num_text_rows)]
    input_ids = np.full((len(documents), length), _IDS[PAD])
    labels = np.full((len(documents), length), _IGNORE)
    asked = []
    for row, document in enumerate(documents):
        input_ids[row, : len(document.words)] = [_IDS.get(word, _IDS[UNKNOWN]) for word in document.words]
        for position, word in document.labels.items():
            labels[row, position] = _IDS[word]
        asked += [(row, *question) for question in document.asked]
    pixels = np.stack(images).transpose(0, 3, 1, 2) if images else np.zeros((0, 3, 1, 1), np.uint8)
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(labels), torch.from_numpy(pixels.copy()), asked)


def _image_row(
    rng: Random, drawing: np.random.Generator, words: Mapping[str, tuple[str, ...]], length: int
) -> tuple[np.ndarray, Document]:
    make_scene = scene_skills.spectrogram_scene if rng.random() < 0.2 else scene_skills.camera_scene
    scene = make_scene(rng, drawing, words)
    document = Document(length, [IMAGE] * NUM_PATCHES)
    document.say(scene.preamble)
    _ask_until_full(document, scene.askers, rng)
    return scene.image, document


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
    _ask_until_full(document, text.askers, rng)
    return document


def _ask_until_full(document: Document, askers: tuple, rng: Random) -> None:
    failures = 0
    while failures < 4:
        question = rng.choice(askers)()
        form = rng.choice(("open", "words", "words", "letters"))
        failures += question is None or not document.ask(question, form, rng)
