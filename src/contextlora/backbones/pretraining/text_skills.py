"""Generic questions about text: repeating, choosing, look-up, two hops, comparing, thresholds, rule tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from contextlora.backbones.pretraining.documents import Question
from contextlora.backbones.pretraining.vocabulary import FREE_WORDS, NUMBERS
from contextlora.tasks.renderers import COLUMNS, OBJECTS, ROWS

_YES_NO = ("yes", "no")
_CELLS = (*COLUMNS, *ROWS)


@dataclass(frozen=True)
class Text:
    """Words said first, the generators of questions about them, and the forms these take if not all."""

    preamble: str
    askers: tuple[Callable[[], Question | None], ...]
    forms: tuple[str, ...] = ()


def readings(rng: Random, wordings: Mapping[str, tuple[str, ...]], most_names: int = 8) -> Text:
    """Named numbers: read one, compare it with a bound or another, find the largest, tell its level."""
    names = _keys(rng, rng.randint(2, most_names))
    # No number twice, so that every comparison has one answer.
    values = dict(zip(names, rng.sample(NUMBERS, len(names)), strict=True))
    preamble = _pairs(rng, values.items())
    bounds = sorted(rng.sample(range(5, 96), rng.choice((1, 2, 3, 3))))
    levels = rng.sample(FREE_WORDS, len(bounds) + 1)
    with_levels = rng.random() < 0.5
    if with_levels:
        preamble += _levels(levels, bounds)

    def read() -> Question:
        name = rng.choice(names)
        return Question("read", _word(rng, wordings, "lookup", k=name), values[name], tuple(values.values()))

    def over() -> Question:
        name = rng.choice(names)
        return _over(rng, wordings, name, values[name])

    def compare() -> Question:
        return _compare(rng, wordings, {name: values[name] for name in rng.sample(names, 2)}, names)

    def most() -> Question:
        word = rng.choice(("largest", "smallest"))
        answer = (max if word == "largest" else min)(names, key=lambda name: int(values[name]))
        return Question("most", _word(rng, wordings, "most", cmp=word), answer, names)

    def level() -> Question:
        name = rng.choice(names)
        index = sum(int(values[name]) >= bound for bound in bounds)
        text = _word(rng, wordings, "level", k=name)
        return Question("level", text, levels[index], levels, {name: values[name]})

    return Text(preamble, (read, read, over, over, compare, compare, most, *([level] * 6 if with_levels else [])))


def numbers(rng: Random, wordings: Mapping[str, tuple[str, ...]]) -> Text:
    """Bare numbers compared: the order of the number words, without anything to look up."""

    def over() -> Question:
        number = rng.choice(NUMBERS)
        return _over(rng, wordings, number, number)

    def compare() -> Question:
        first = rng.choice(NUMBERS)
        pair = (first, str(_bound_near(rng, int(first))))
        return _compare(rng, wordings, {number: number for number in pair}, NUMBERS)

    return Text("", (over, compare))


def choices(rng: Random, wordings: Mapping[str, tuple[str, ...]]) -> Text:
    """Says which word to choose: binding a word to its letter, without anything to find out."""

    def choose() -> Question:
        word = rng.choice((*FREE_WORDS, *NUMBERS))
        return Question("choose", _word(rng, wordings, "choose", k=word), word, FREE_WORDS)

    # Without options there would be no letter to bind the word to.
    return Text("", (choose,), forms=("letters", "letters", "words"))


def lookups(rng: Random, wordings: Mapping[str, tuple[str, ...]]) -> Text:
    """Key-value pairs; half of the texts also name a key by another word (two hops)."""
    keys = _keys(rng, rng.randint(2, 16))
    numeric = rng.random() < 0.3
    pool = NUMBERS if numeric else FREE_WORDS
    values = dict(zip(keys, rng.choices(pool, k=len(keys)), strict=True))
    table = rng.choice(FREE_WORDS)
    pointers = {}
    if rng.random() < 0.5:
        # A pointer that is a key as well would have two answers.
        names = rng.sample([word for word in ("lane", *FREE_WORDS) if word not in values], rng.randint(1, 2))
        pointers = {name: rng.choice(keys) for name in names}
    parts = [_pairs(rng, values.items(), table), *(f"{name} {key} ." for name, key in pointers.items())]
    # Two hops must work whichever line comes first.
    rng.shuffle(parts)

    def lookup() -> Question:
        key = rng.choice(keys)
        wording = (
            _word(rng, wordings, "pointer", t=table, p=key)
            if rng.random() < 0.5
            else _word(rng, wordings, "lookup", k=key)
        )
        return Question("lookup", wording, values[key], _mixed(rng, values, pool))

    def pointer() -> Question:
        name = rng.choice(tuple(pointers))
        return Question(
            "two_hop",
            _word(rng, wordings, "pointer", t=table, p=name),
            values[pointers[name]],
            _mixed(rng, values, pool),
            {name: pointers[name]},
        )

    return Text(" ".join(parts), (lookup, *([pointer] * 3 if pointers else [lookup])))


def column_readings(rng: Random, wordings: Mapping[str, tuple[str, ...]], pointer: tuple[str, int] | None) -> Text:
    """A value for each column of an image, asked for by the column or by the word that points to one (two hops)."""
    table = rng.choice(FREE_WORDS)
    pool = rng.choice((NUMBERS, NUMBERS, FREE_WORDS))
    values = dict(zip(COLUMNS, rng.sample(pool, len(COLUMNS)), strict=True))

    def lookup() -> Question:
        key = rng.choice(COLUMNS)
        return Question("lookup", _word(rng, wordings, "pointer", t=table, p=key), values[key], tuple(values.values()))

    def two_hop() -> Question:
        text = _word(rng, wordings, "pointer", t=table, p=pointer[0])
        column = COLUMNS[pointer[1]]
        return Question("two_hop", text, values[column], tuple(values.values()), {pointer[0]: column})

    return Text(_pairs(rng, values.items(), table), (lookup, two_hop, two_hop) if pointer else (lookup,))


def rules(rng: Random, wordings: Mapping[str, tuple[str, ...]]) -> Text:
    """A rule table with two keys, 2 x 2 to 4 x 4; questions name both keys."""
    size = rng.choice((2, 3, 3, 4, 4))
    words = rng.sample(FREE_WORDS, 2 * size + 6)
    first, second, outcomes = words[:size], words[size : 2 * size], words[2 * size : 2 * size + rng.randint(2, 4)]
    table = {(a, b): rng.choice(outcomes) for a in first for b in second}
    lines = [f"{a} {b} {outcome}" for (a, b), outcome in table.items()]
    rng.shuffle(lines)

    def rule() -> Question:
        a, b = rng.choice(first), rng.choice(second)
        text = rng.choice(wordings["rule"]).format(a=a, b=b)
        return Question("rule", text, table[a, b], outcomes)

    return Text("rules : " + " , ".join(lines) + " .", (rule,))


def repeats(rng: Random) -> list[str]:
    """A word sequence said twice: from the second time on, every next word is known."""
    # Of random length: at a fixed one a head could copy by distance, without looking for the word.
    return rng.choices((*FREE_WORDS, *NUMBERS), k=rng.randint(6, 40))


def _word(rng: Random, wordings: Mapping[str, tuple[str, ...]], name: str, **slots: str) -> str:
    return rng.choice(wordings[name]).format(**slots)


def _keys(rng: Random, number: int) -> list[str]:
    """Distinct key words: free words, cells or objects, one family a text so that cells often are keys."""
    family = rng.random()
    if family < 0.25 and number <= len(_CELLS):
        return rng.sample(COLUMNS if number <= len(COLUMNS) else _CELLS, number)
    if family < 0.35 and number <= len(OBJECTS):
        return rng.sample(OBJECTS, number)
    return rng.sample(FREE_WORDS, number)


def _pairs(rng: Random, pairs: object, table: str = "") -> str:
    head = table or rng.choice(("given :", "telemetry :", "sensors :", ""))
    return f"{head} " + " , ".join(f"{key} {value}" for key, value in pairs) + " ."


def _levels(levels: list[str], bounds: list[int]) -> str:
    """ "levels : low under 30 , mid under 60 , high over 59 ." """
    steps = [f"{level} under {bound}" for level, bound in zip(levels, bounds, strict=False)]
    return " levels : " + " , ".join(steps) + f" , {levels[-1]} over {bounds[-1] - 1} ."


def _over(rng: Random, wordings: Mapping[str, tuple[str, ...]], name: str, value: str) -> Question:
    """Whether a named number, or a number itself, lies over or under a bound."""
    bound = _bound_near(rng, int(value))
    word = rng.choice(("over", "under", "more", "less"))
    true = (int(value) > bound) == (word in ("over", "more"))
    text = _word(rng, wordings, "over", k=name, cmp=word, n=str(bound))
    return Question("compare", text, _YES_NO[not true], _YES_NO, {name: value} if name != value else {})


def _compare(
    rng: Random, wordings: Mapping[str, tuple[str, ...]], pair: Mapping[str, str], pool: Sequence[str]
) -> Question:
    """Which of two named numbers, or of two numbers, is larger or smaller."""
    word = rng.choice(("larger", "smaller"))
    answer = (max if word == "larger" else min)(pair, key=lambda name: int(pair[name]))
    a, b = pair
    hints = {name: value for name, value in pair.items() if name != value}  # a bare number has nothing to be found
    return Question("compare", _word(rng, wordings, "compare", a=a, b=b, cmp=word), answer, pool, hints)


def _bound_near(rng: Random, value: int) -> int:
    """A number other than the value; half of the time close to it, where comparing is hard."""
    bound = rng.randrange(100)
    if rng.random() < 0.5:
        bound = min(99, max(0, value + rng.randint(-12, 12)))
    if bound == value:
        bound = value - 1 if value else 1
    return bound


def _mixed(rng: Random, values: Mapping[str, str], pool: tuple[str, ...]) -> tuple[str, ...]:
    """Distractors: other values of the same text (hard) and words that do not occur in it."""
    return (*values.values(), *rng.sample(pool, 2))
