"""Packs generic documents into training and test batches of fixed shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from contextlora.backbones.pretraining import scene_skills, text_skills, wordings
from contextlora.backbones.pretraining.documents import Document
from contextlora.backbones.pretraining.vocabulary import IMAGE, PAD, UNKNOWN, WORDS
from contextlora.tasks.renderers import GRID, IMAGE_SIZE, MAX_SHIFT, OBJECTS, PATTERNS

NUM_PATCHES = GRID * GRID
_IDS = {word: index for index, word in enumerate(WORDS)}
_IGNORE = -100
# Drawn uniformly: what stands here twice comes twice as often.
_FORMS = ("open", "words", "words", "letters")
_KINDS = (
    *(text_skills.lookups, text_skills.lookups, text_skills.lookups),
    *(text_skills.readings, text_skills.readings, text_skills.readings, text_skills.readings),
    *(text_skills.rules, text_skills.numbers, text_skills.choices),
)
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
    focus: float = 0.0,
    plain: float = 0.0,
    held_out: bool = False,
) -> Batch:
    """Writes one batch; a pure function of its arguments.

    Args:
        seed: fixes every draw.
        num_image_rows: rows that begin with an image.
        num_text_rows: rows of text alone.
        length: words a row, image tokens included.
        focus: share of the rows that only look things up (in a text, or in an image of aligned objects), in one plain
            wording without options: the circuit that all other skills build on.
        plain: share of the other rows that ask in one wording, mostly without options.
        held_out: ask in the held-out wordings.
    """
    rng, drawing = Random(seed), np.random.default_rng(seed)

    def style() -> _Style:
        if rng.random() < focus:
            return _Style(wordings.PLAIN, ("open",), focused=True)
        if rng.random() < plain:
            return _Style(wordings.PLAIN, ("open",))
        return _Style(wordings.HELD_OUT if held_out else wordings.TRAIN, _FORMS)

    documents, scenes = [], []
    for _ in range(num_image_rows):
        scene, document = _image_row(rng, drawing, style(), length)
        scenes.append(scene)
        documents.append(document)
    documents += [_text_row(rng, style(), length) for _ in range(num_text_rows)]
    return _stack(documents, scenes, length)


def _stack(documents: Sequence[Document], scenes: Sequence[scene_skills.Scene], length: int) -> Batch:
    """Documents, those with an image first, as tensors."""
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
    # Channels first, as vision towers want them.
    arrays = (input_ids, labels, patch_labels, pixels.transpose(0, 3, 1, 2).copy())
    return Batch(*(torch.from_numpy(array) for array in arrays), asked)


@dataclass(frozen=True)
class _Style:
    """How the questions of a row are asked; a focused row asks for its scene's or text's first skill alone."""

    words: Mapping[str, tuple[str, ...]]
    forms: tuple[str, ...]
    focused: bool = False


def _image_row(
    rng: Random, drawing: np.random.Generator, style: _Style, length: int
) -> tuple[scene_skills.Scene, Document]:
    if rng.random() < 0.2:
        scene = scene_skills.spectrogram_scene(rng, drawing, style.words)
    else:
        scene = scene_skills.camera_scene(rng, drawing, style.words, max_shift=0 if style.focused else MAX_SHIFT)
    preamble, askers = scene.preamble, scene.askers[:1] if style.focused else scene.askers
    if not style.focused and rng.random() < 0.5:  # an image and readings together, as the task sets have them
        if rng.random() < 0.6:
            text = text_skills.column_readings(rng, style.words, scene.pointer)
        else:
            text = text_skills.readings(rng, style.words, most_names=4)
        preamble = f"{preamble} {text.preamble}"
        # However many questions the image offers, more than a third are about the readings.
        askers += text.askers * (1 + len(askers) // (2 * len(text.askers)))
    document = Document(length, [IMAGE] * NUM_PATCHES, {} if style.focused else dict(scene.hints))
    document.say(preamble)
    _ask_until_full(document, askers, rng, style.forms)
    return scene, document


def _text_row(rng: Random, style: _Style, length: int) -> Document:
    if rng.random() < 0.03:
        return _repetition(rng, length)
    text = (text_skills.lookups if style.focused else rng.choice(_KINDS))(rng, style.words)
    document = Document(length)
    document.say(text.preamble)
    _ask_until_full(document, text.askers[:1] if style.focused else text.askers, rng, text.forms or style.forms)
    return document


def _repetition(rng: Random, length: int) -> Document:
    document = Document(length)
    said = text_skills.repeats(rng)
    document.say("repeat : " + " ".join(said) + " .")
    start = len(document.words)
    document.say(" ".join(said))
    document.words = document.words[:length]
    document.labels = {p: document.words[p + 1] for p in range(start, len(document.words) - 1)}
    return document


def _ask_until_full(document: Document, askers: tuple, rng: Random, forms: tuple[str, ...]) -> None:
    failures = 0
    while failures < 4:  # where one does not fit, a shorter one may
        question = rng.choice(askers)()
        failures += question is None or not document.ask(question, rng.choice(forms), rng)
