"""Draws the synthetic images of the task sets: camera scenes and sensor spectrograms.

Every image is 64 x 64 pixels, RGB, uint8, and is divided into a 4 x 4 grid whose cells are named `c1`..`c4` (left to
right) and `r1`..`r4` (top to bottom); a vision tower with 16-pixel patches sees one cell a patch. Objects are bitmaps
of 14 x 14 pixels in one colour with dark details, placed at any pixel: most of them straddle two to four patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contextlora.tasks.bitmaps import BITMAPS

IMAGE_SIZE = 64  # pixels
GRID = 4  # cells a side
CELL = IMAGE_SIZE // GRID  # pixels
COLUMNS = tuple(f"c{i + 1}" for i in range(GRID))
ROWS = tuple(f"r{i + 1}" for i in range(GRID))
OBJECTS = tuple(BITMAPS)
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 85, 220),
    "yellow": (240, 205, 40),
    "white": (245, 245, 245),
    "purple": (150, 50, 170),
}
WEATHERS = ("clear", "rain", "fog", "night", "snow")
PATTERNS = ("steady", "pulsing", "rising", "falling", "burst")
_DARK = np.array((25, 25, 30), dtype=np.float32)
MAX_SHIFT = 4  # pixels between an object's centre and its cell's centre: stays clearly inside the 16-pixel cell
_MARGIN = 7  # pixels: half a bitmap, so that none is cut at the border
_MIN_DISTANCE = 11  # pixels between two centres in x or in y: neighbours overlap by 3 pixels at most


@dataclass(frozen=True)
class Sprite:
    """One drawn object: its kind, colour name and centre (x to the right, y down), in pixels."""

    kind: str
    colour: str
    x: int
    y: int


def scatter(
    rng: np.random.Generator, cells: Sequence[tuple[int, int]], max_shift: int = MAX_SHIFT
) -> list[tuple[int, int]]:
    """Draws one centre (x, y), in pixels, for each of the distinct cells (column, row), 0..3.

    Centres lie off the grid (by up to `max_shift` pixels each way) but clearly inside their cell, and far enough apart
    that no object hides another.
    """
    while True:
        shifts = rng.integers(-max_shift, max_shift + 1, size=(len(cells), 2))
        centres = np.asarray(cells).reshape(-1, 2) * CELL + CELL // 2 + shifts
        centres = centres.clip(_MARGIN, IMAGE_SIZE - _MARGIN)
        # (n, n), the larger of both axes' distances; the diagonal is lifted, or each would be too near to itself.
        distance = np.abs(centres[:, None] - centres[None]).max(-1) + IMAGE_SIZE * np.eye(len(cells), dtype=int)
        if not len(cells) or distance.min() >= _MIN_DISTANCE:
            return [(int(x), int(y)) for x, y in centres]


def draw_scene(sprites: Sequence[Sprite], weather: str, rng: np.random.Generator) -> np.ndarray:
    """Draws a camera image.

    Args:
        sprites: objects, drawn in this order (later ones on top).
        weather: one of `WEATHERS`; changes ground, light and particles of the whole image.
        rng: source of ground texture, particles and sensor noise.

    Returns:
        uint8 array (64, 64, 3).
    """
    image = _ground(rng)
    for sprite in sprites:
        _paste(image, sprite)
    image = _weather(image, weather, rng)
    image += rng.normal(0.0, 4.0, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def draw_spectrogram(tones: Sequence[tuple[int, str]], rng: np.random.Generator) -> np.ndarray:
    """Draws a sensor spectrogram (time to the right, frequency upwards) on a dark ground.

    Args:
        tones: pairs (row 0..3, pattern of `PATTERNS`), at most one a row.
        rng: source of the exact frequency, phase, strength and noise.

    Returns:
        uint8 array (64, 64, 3).
    """
    power = rng.gamma(2.0, 0.05, (IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    time = np.arange(IMAGE_SIZE)
    for row, pattern in tones:
        offset, gate = _tone(pattern, time, rng)
        centre = row * CELL + CELL / 2 + rng.uniform(-2.0, 2.0) + offset
        line = np.exp(-0.5 * ((np.arange(IMAGE_SIZE)[:, None] - centre[None, :]) / 1.3) ** 2)
        power += rng.uniform(0.8, 1.0) * line.astype(np.float32) * gate
    power = np.clip(power, 0.0, 1.0)[..., None]
    cold, warm = np.array((20.0, 10.0, 70.0)), np.array((255.0, 230.0, 90.0))
    return (cold + power * (warm - cold)).astype(np.uint8)


def _tone(pattern: str, time: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frequency offset in pixels and on/off gate over time for one tone pattern."""
    offset, gate = np.zeros(IMAGE_SIZE), np.ones(IMAGE_SIZE, dtype=np.float32)
    if pattern in ("rising", "falling"):
        slope = np.linspace(4.5, -4.5, IMAGE_SIZE)  # image rows count downwards: rising frequency means falling row
        offset = slope if pattern == "rising" else -slope
    elif pattern == "pulsing":
        gate = ((time + rng.integers(8)) // 4 % 2).astype(np.float32)
    elif pattern == "burst":
        start = rng.integers(6, IMAGE_SIZE - 26)
        gate = ((time >= start) & (time < start + 20)).astype(np.float32)
    elif pattern != "steady":
        raise ValueError(f"unknown tone pattern {pattern!r}; known: {', '.join(PATTERNS)}")
    return offset, gate


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Grey road surface with a brightness gradient and faint lane lines between the columns."""
    shade = rng.uniform(95.0, 135.0) + np.linspace(-1, 1, IMAGE_SIZE) * rng.uniform(-18.0, 18.0)
    image = np.repeat(np.repeat(shade[:, None, None], IMAGE_SIZE, 1), 3, 2).astype(np.float32)
    phase = int(rng.integers(8))
    dashes = (np.arange(IMAGE_SIZE) + phase) % 8 < 4
    for column in range(1, GRID):
        image[dashes, column * CELL] += 35.0
    return image


def _paste(image: np.ndarray, sprite: Sprite) -> None:
    bitmap = BITMAPS[sprite.kind]
    height, width = bitmap.shape
    top, left = sprite.y - height // 2, sprite.x - width // 2
    region = image[top : top + height, left : left + width]
    region[bitmap == 1] = COLOURS[sprite.colour]
    region[bitmap == 2] = _DARK


def _weather(image: np.ndarray, weather: str, rng: np.random.Generator) -> np.ndarray:
    if weather == "clear":
        return image
    if weather == "fog":
        return image * 0.55 + 205.0 * 0.45
    if weather == "night":
        return image * np.array((0.42, 0.42, 0.58), dtype=np.float32)
    if weather in ("rain", "snow"):
        drops = rng.integers(0, IMAGE_SIZE - 4, size=(45, 2))
        length = 4 if weather == "rain" else 1
        colour = np.array((150, 170, 225) if weather == "rain" else (255, 255, 255), dtype=np.float32)
        image = image * (0.8 if weather == "rain" else 1.0) + (0.0 if weather == "rain" else 18.0)
        for step in range(length):
            image[drops[:, 0] + step, drops[:, 1]] = colour
        return image
    raise ValueError(f"unknown weather {weather!r}; known: {', '.join(WEATHERS)}")
