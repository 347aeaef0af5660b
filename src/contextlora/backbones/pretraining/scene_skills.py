"""Generic questions about an image: naming, locating, counting, comparing what is drawn (scene or spectrogram)."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np

from contextlora.backbones.pretraining.documents import Question
from contextlora.backbones.pretraining.vocabulary import FREE_WORDS
from contextlora.tasks.renderers import (
    COLOURS,
    COLUMNS,
    GRID,
    OBJECTS,
    PATTERNS,
    ROWS,
    WEATHERS,
    Sprite,
    draw_scene,
    draw_spectrogram,
    scatter,
)

_COUNTS = tuple(str(number) for number in range(9))
_YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Thing:
    """One drawn object, where it is (0..3) and what a classes line calls its kind, if anything."""

    kind: str
    colour: str
    column: int
    row: int
    label: str = ""


@dataclass(frozen=True)
class Scene:
    """What an image shows, the words said about it before the questions, and the questions' generators.

    `pointer` is a word that stands for a column (0..3), if there is one. `patches` names what the centre of each cell
    belongs to, row by row ("." where there is nothing). `hints` says which word the model must predict at a patch.
    """

    image: np.ndarray
    patches: tuple[str, ...]
    preamble: str
    askers: tuple[Callable[[], Question | None], ...]
    pointer: tuple[str, int] | None = None
    hints: Mapping[int, str] = field(default_factory=dict)


def camera_scene(
    rng: Random, drawing: np.random.Generator, wordings: Mapping[str, tuple[str, ...]], max_shift: int
) -> Scene:
    """Draws a camera image and offers its questions; two fifths of the images hold one object per column."""
    lanes = rng.random() < 0.4
    cells = [(column, rng.randrange(GRID)) for column in range(GRID)]
    if not lanes:
        flat = rng.sample(range(GRID * GRID), rng.choice((1, 2, 3, 4, 4, 5, 6, 7)))
        cells = [(cell % GRID, cell // GRID) for cell in flat]
    # Few kinds make things alike, for counting; many make things that occur once, for locating and relations.
    kinds = rng.sample(OBJECTS, rng.choice((2, 3, 6, 12)))
    labels, preamble = {}, []
    if rng.random() < 0.3:
        classes = rng.sample(FREE_WORDS, rng.choice((2, 3, 4)))
        kinds = kinds[:4]
        labels = {kind: rng.choice(classes) for kind in kinds}
        preamble.append("classes : " + " , ".join(f"{kind} {label}" for kind, label in labels.items()) + " .")
    if lanes and len(kinds) >= GRID and rng.random() < 0.7:
        drawn = rng.sample(kinds, GRID)
    else:
        drawn = [rng.choice(kinds) for _ in cells]
    things = [
        Thing(kind, rng.choice(tuple(COLOURS)), column, row, labels.get(kind, ""))
        for kind, (column, row) in zip(drawn, cells, strict=True)
    ]
    weather = rng.choice(WEATHERS)
    centres = scatter(drawing, cells, max_shift)
    sprites = [Sprite(thing.kind, thing.colour, x, y) for thing, (x, y) in zip(things, centres, strict=True)]
    pointer = None
    if rng.random() < 0.4:
        pointer = (rng.choice(("lane", "lane", *FREE_WORDS)), rng.randrange(GRID))
        preamble.append(f"{pointer[0]} {COLUMNS[pointer[1]]} .")
    rng.shuffle(preamble)
    asker = _CameraAsker(things, weather, pointer, rng, wordings)
    seen = {(thing.row, thing.column): thing.kind for thing in things}
    patches = tuple(seen.get((row, column), ".") for row in range(GRID) for column in range(GRID))
    # Which thing of its kind each is: counting begins with finding what is alike, and few questions ask for it.
    hints = {cell: str(patches[: cell + 1].count(kind)) for cell, kind in enumerate(patches) if kind != "."}
    image = draw_scene(sprites, weather, drawing)
    return Scene(image, patches, " ".join(preamble), asker.askers(), pointer, hints)


@dataclass(frozen=True)
class _CameraAsker:
    things: list[Thing]
    weather: str
    pointer: tuple[str, int] | None
    rng: Random
    wordings: Mapping[str, tuple[str, ...]]

    def askers(self) -> tuple[Callable[[], Question | None], ...]:
        # What stands here twice is asked twice as often.
        common = [
            self.name_cell,
            self.name_column,
            self.name_column,
            self.name_extreme,
            self.colour,
            self.locate,
            self.locate,
        ]
        common += [self.count_all, self.count_all, self.count_kind, self.count_kind, self.count_kind]
        common += [self.relation, self.relation, self.relation, self.relation, self.exist, self.say_weather]
        if self.pointer:
            common += [self.name_pointer] * 6
        if self.things[0].label:
            common += [self.name_class] * 6
        return tuple(common)

    def _text(self, wording: str, **slots: str) -> str:
        return self.rng.choice(self.wordings[wording]).format(**slots)

    def _unique(self) -> list[Thing]:
        kinds = Counter(thing.kind for thing in self.things)
        return [thing for thing in self.things if kinds[thing.kind] == 1]

    def _alone(self, column: int) -> Thing | None:
        found = [thing for thing in self.things if thing.column == column]
        return found[0] if len(found) == 1 else None

    def name_cell(self) -> Question:
        thing = self.rng.choice(self.things)
        text = self._text("name_cell", c=COLUMNS[thing.column], r=ROWS[thing.row])
        return Question("name", text, thing.kind, OBJECTS)

    def name_column(self) -> Question | None:
        thing = self._alone(self.rng.randrange(GRID))
        return thing and Question("name", self._text("name_column", c=COLUMNS[thing.column]), thing.kind, OBJECTS)

    def name_pointer(self) -> Question | None:
        word, column = self.pointer
        thing, hints = self._alone(column), {word: COLUMNS[column]}
        return thing and Question("name_two_hop", self._text("name_pointer", p=word), thing.kind, OBJECTS, hints)

    def name_extreme(self) -> Question | None:
        word = self.rng.choice(("leftmost", "rightmost", "highest", "lowest"))
        axis, sign = ("column" if "most" in word else "row"), (1 if word in ("leftmost", "highest") else -1)
        ordered = sorted(self.things, key=lambda thing: sign * getattr(thing, axis))
        # Two things equally far out: no single answer.
        if len(ordered) > 1 and getattr(ordered[0], axis) == getattr(ordered[1], axis):
            return None
        return Question("name", self._text("name_extreme", e=word), ordered[0].kind, OBJECTS)

    def colour(self) -> Question:
        unique = self._unique()
        if unique and self.rng.random() < 0.5:
            thing = self.rng.choice(unique)
            return Question("colour", self._text("colour_kind", k=thing.kind), thing.colour, tuple(COLOURS))
        thing = self.rng.choice(self.things)
        text = self._text("colour_cell", c=COLUMNS[thing.column], r=ROWS[thing.row])
        return Question("colour", text, thing.colour, tuple(COLOURS))

    def locate(self) -> Question | None:
        unique = self._unique()
        if not unique:
            return None
        thing = self.rng.choice(unique)
        if self.rng.random() < 0.5:
            return Question("locate", self._text("locate_column", k=thing.kind), COLUMNS[thing.column], COLUMNS)
        return Question("locate", self._text("locate_row", k=thing.kind), ROWS[thing.row], ROWS)

    def count_all(self) -> Question:
        return Question("count", self._text("count_all"), str(len(self.things)), _COUNTS)

    def count_kind(self) -> Question:
        numbers = Counter(thing.kind for thing in self.things)
        kind = self.rng.choice(OBJECTS)
        if self.rng.random() < 0.75:  # each number that occurs as often as the others: most kinds occur once
            number = self.rng.choice(sorted(set(numbers.values())))
            kind = self.rng.choice([kind for kind, found in numbers.items() if found == number])
        return Question("count", self._text("count_kind", k=kind), str(numbers[kind]), _COUNTS)

    def exist(self) -> Question:
        # Most kinds are absent: drawn from all alone, `no` would nearly always be right.
        kind = self.rng.choice((self.rng.choice(self.things).kind, self.rng.choice(OBJECTS)))
        answer = _YES_NO[not any(thing.kind == kind for thing in self.things)]
        return Question("exist", self._text("exist", k=kind), answer, _YES_NO)

    def relation(self) -> Question | None:
        unique = self._unique()
        if len(unique) < 2:
            return None
        a, b = self.rng.sample(unique, 2)
        relation = self.rng.choice(("left", "right", "above", "below"))
        axis = "column" if relation in ("left", "right") else "row"
        difference = getattr(a, axis) - getattr(b, axis)
        if difference == 0:
            return None
        true = (difference < 0) == (relation in ("left", "above"))
        text = self._text("relation", a=a.kind, b=b.kind, rel=relation)
        places = COLUMNS if axis == "column" else ROWS
        hints = {thing.kind: places[getattr(thing, axis)] for thing in (a, b)}
        return Question("relation", text, _YES_NO[not true], _YES_NO, hints)

    def say_weather(self) -> Question:
        return Question("weather", self._text("weather"), self.weather, WEATHERS)

    def name_class(self) -> Question | None:
        # No set: its order changes from process to process.
        classes = tuple(dict.fromkeys(thing.label for thing in self.things)) + tuple(self.rng.sample(FREE_WORDS, 2))
        thing = self._alone(self.rng.randrange(GRID))
        if thing and self.rng.random() < 0.5:
            text = self._text("class_column", c=COLUMNS[thing.column])
        else:
            thing = self.rng.choice(self.things)
            text = self._text("class_cell", c=COLUMNS[thing.column], r=ROWS[thing.row])
        last_word = text.split()[-1]  # of the cell's name, which is known from there on
        return Question("class", text, thing.label, classes, {last_word: thing.kind})


def spectrogram_scene(rng: Random, drawing: np.random.Generator, wordings: Mapping[str, tuple[str, ...]]) -> Scene:
    """Draws a spectrogram with up to four tones and offers its questions."""
    rows = sorted(rng.sample(range(GRID), rng.randint(1, GRID)))
    tones = dict(zip(rows, (rng.choice(PATTERNS) for _ in rows), strict=True))
    counts = Counter(tones.values())

    def text(wording: str, **slots: str) -> str:
        return rng.choice(wordings[wording]).format(**slots)

    def tone_row() -> Question:
        row = rng.choice(rows)
        return Question("tone", text("tone_row", r=ROWS[row]), tones[row], PATTERNS)

    def row_tone() -> Question | None:
        row = rng.choice(rows)
        if counts[tones[row]] > 1:
            return None
        return Question("tone_locate", text("row_tone", k=tones[row]), ROWS[row], ROWS)

    def count() -> Question:
        return Question("tone_count", text("count_tone"), str(len(tones)), _COUNTS)

    def exist() -> Question:
        pattern = rng.choice(PATTERNS)
        return Question("tone_exist", text("exist", k=pattern), _YES_NO[pattern not in counts], _YES_NO)

    # Also where a pulse or burst is silent: the patches of the tower see each other.
    patches = tuple(tones.get(row, ".") for row in range(GRID) for _ in range(GRID))
    image = draw_spectrogram(tuple(tones.items()), drawing)
    return Scene(image, patches, "", (tone_row, tone_row, row_tone, row_tone, count, exist))
