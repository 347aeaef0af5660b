"""Wordings of the generic skills: each question has parts, each part several phrasings; some combinations are held out.

A held-out combination never occurs in pretraining (every single phrase does), so the skill test asks in words that the
model has not seen together.
"""

from itertools import product

_ASK = ("what is", "tell what is", "say what is", "name what is", "which is")
_ASK_THING = ("what is", "what thing is", "name the thing", "tell what is", "say which thing is")
_HOW_MANY = ("how many", "count the", "total number of", "tell how many", "number of")
_SEEN = ("are there", "are shown", "are seen", "in the image", "are here")
_IS_THERE = ("is there any", "is any", "see any", "tell if any", "say if any")
_SINGLE_SEEN = ("shown", "here", "seen", "in the image", "on the image")
_CELL = ("at {c} {r}", "in column {c} and row {r}", "in cell {c} {r}", "at {r} {c}", "in row {r} and column {c}")
_COLUMN = ("in {c}", "in column {c}", "in lane {c}", "on lane {c}", "at column {c}")
_OF_KEY = ("{k}", "value of {k}", "{k} value", "reading of {k}", "{k} reading")

_PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "name_cell": (_ASK_THING, _CELL),
    "name_column": (_ASK_THING, _COLUMN),
    "name_pointer": (_ASK_THING, ("in {p}", "on {p}", "at {p}", "in the {p}", "on the {p}")),
    "name_extreme": (_ASK, ("{e}", "the {e}", "the {e} thing", "{e} thing", "{e} here")),
    "colour_cell": (_ASK, tuple(f"the colour {cell}" for cell in _CELL)),
    "colour_kind": (
        _ASK,
        ("colour of {k}", "the colour of {k}", "{k} colour", "the {k} colour", "the colour of the {k}"),
    ),
    "locate_column": (
        _ASK,
        ("the column of {k}", "column of {k}", "{k} column", "the {k} column", "the column of the {k}"),
    ),
    "locate_row": (_ASK, ("the row of {k}", "row of {k}", "{k} row", "the {k} row", "the row of the {k}")),
    "count_all": (_HOW_MANY, tuple(f"things {seen}" for seen in _SEEN)),
    "count_kind": (_HOW_MANY, tuple(f"{{k}} {seen}" for seen in _SEEN)),
    "exist": (_IS_THERE, tuple(f"{{k}} {seen}" for seen in _SINGLE_SEEN)),
    "relation": (
        ("is {a}", "is the {a}", "tell if {a} is", "say if {a} is", "does it show {a}"),
        ("{rel} {b}", "{rel} the {b}", "{rel} this {b}", "{rel} of {b}", "{rel} of the {b}"),
    ),
    "weather": (_ASK, ("the weather", "weather", "weather here", "the weather in the image", "the sky")),
    "class_cell": (("what class is", "class of thing", "which class is", "tell the class", "the kind of thing"), _CELL),
    "class_column": (
        ("what class is", "class of thing", "which class is", "tell the class", "the kind of thing"),
        _COLUMN,
    ),
    "tone_row": (_ASK, ("the pattern in {r}", "pattern at {r}", "the tone at {r}", "tone in row {r}", "{r} pattern")),
    "row_tone": (_ASK, ("the row of {k}", "row of {k}", "{k} row", "the {k} row", "the row of the {k}")),
    "count_tone": (_HOW_MANY, tuple(f"tones {seen}" for seen in _SEEN)),
    "lookup": (_ASK, _OF_KEY),
    "pointer": (
        _ASK,
        ("{t} of {p}", "{t} at {p}", "the {t} of {p}", "{t} of the {p}", "the {t} at {p}"),
    ),
    "choose": (
        ("choose", "say", "name", "tell", "the answer is"),
        ("{k}", "the {k}", "word {k}", "the word {k}", "this {k}"),
    ),
    "over": (
        ("is {k}", "is the {k}", "tell if {k} is", "say if {k} is", "is value of {k}"),
        ("{cmp} {n}", "{cmp} than {n}", "{cmp} value {n}", "{cmp} level {n}", "{cmp} the number {n}"),
    ),
    "compare": (
        ("which is {cmp}", "what is {cmp}", "tell the {cmp}", "say which is {cmp}", "name the {cmp}"),
        ("{a} or {b}", ": {a} or {b}", "of {a} and {b}", "between {a} and {b}", "from {a} and {b}"),
    ),
    "most": (
        _ASK,
        ("the {cmp}", "{cmp}", "the {cmp} one", "the {cmp} of all", "{cmp} of all"),
    ),
    "level": (("what level is", "level of", "which level has", "tell the level of", "the level for"), _OF_KEY),
    "rule": (
        ("given", "when", "with", "if", "for"),
        ("{a} and {b}", "{a} , {b}", "{a} with {b}", "{a} {b}", "the {a} and {b}"),
    ),
}


def _held_out(indices: tuple[int, ...]) -> bool:
    # With five phrases a part: each is held out with exactly one phrase of the other part, and trained with four.
    return (indices[0] + 2 * indices[1]) % 5 == 0


def _combine(parts: tuple[tuple[str, ...], ...], held_out: bool) -> tuple[str, ...]:
    combos = product(*(range(len(part)) for part in parts))
    chosen = (combo for combo in combos if _held_out(combo) == held_out)
    phrases = (" ".join(part[index] for part, index in zip(parts, combo, strict=True)) for combo in chosen)
    return tuple(dict.fromkeys(" ".join(phrase.split()) for phrase in phrases))


TRAIN: dict[str, tuple[str, ...]] = {name: _combine(parts, held_out=False) for name, parts in _PARTS.items()}
HELD_OUT: dict[str, tuple[str, ...]] = {name: _combine(parts, held_out=True) for name, parts in _PARTS.items()}
PLAIN: dict[str, tuple[str, ...]] = {name: phrases[:1] for name, phrases in TRAIN.items()}
GLUE: tuple[str, ...] = tuple(
    sorted(
        {
            word
            for phrases in (*TRAIN.values(), *HELD_OUT.values())
            for p in phrases
            for word in p.split()
            if "{" not in word
        }
    )
)
