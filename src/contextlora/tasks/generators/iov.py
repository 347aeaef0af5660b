"""Internet of Vehicles: which route to take, from one camera image and one line of telemetry.

    hazard (image, ego lane) ------+-----------------> route
                                   +--> manoeuvre --->
    grip (telemetry, ego lane) --------'

A scene is drawn from these distributions, all uniform and independent but for the permutations:

| what            | distribution                                                                                  |
|-----------------|-----------------------------------------------------------------------------------------------|
| ego lane        | c1..c4                                                                                        |
| hazard classes  | a permutation of the four classes over the lanes: one object in each lane (column)            |
| object          | one of its class's three kinds                                                                |
| row, colour     | r1..r4, one of six colours; of no meaning for any task                                        |
| place           | up to 4 pixels off the cell's centre (`renderers.scatter`)                                    |
| weather         | one of five, for the whole image; of no meaning for any task                                  |
| grip readings   | percent; a permutation of the four bands over the lanes, then uniform over the band's middle  |
| option order    | a permutation, for each item                                                                  |

Bands are 25 percent wide; readings keep 2 off both edges (`slick` 2..22, `damp` 27..47, `fair` 52..72, `dry` 77..97).
Because classes and bands are permutations, no input field alone says anything: lane *and* image give the hazard, lane
*and* telemetry the grip. Both rules are Latin squares, so that one prerequisite alone says nothing either; they are
`manoeuvre = hazard + grip` and `route = w hazard + manoeuvre` over the field of four elements (w is neither 0 nor 1,
answers numbered in the order below), so that route, as a function of the two roots, is a Latin square as well.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from contextlora.tasks.renderers import COLOURS, COLUMNS, ROWS, WEATHERS, Sprite, draw_scene, scatter
from contextlora.tasks.task import Item, Task
from contextlora.tasks.taskset import write_taskset

HAZARDS = {
    "fragile": ("person", "bike", "cone"),  # breaks when touched
    "massive": ("truck", "bus", "van"),  # long and heavy
    "agile": ("car", "dog", "deer"),  # may change course at once
    "fixed": ("barrier", "sign", "tree"),  # never moves
}
GRIPS = {"slick": (2, 22), "damp": (27, 47), "fair": (52, 72), "dry": (77, 97)}  # percent, both ends included
MANOEUVRES = {
    "fragile": {"slick": "brake", "damp": "yield", "fair": "follow", "dry": "pass"},
    "massive": {"slick": "yield", "damp": "brake", "fair": "pass", "dry": "follow"},
    "agile": {"slick": "follow", "damp": "pass", "fair": "brake", "dry": "yield"},
    "fixed": {"slick": "pass", "damp": "follow", "fair": "yield", "dry": "brake"},
}
ROUTES = {
    "fragile": {"brake": "main", "yield": "bypass", "follow": "bridge", "pass": "tunnel"},
    "massive": {"brake": "bridge", "yield": "tunnel", "follow": "main", "pass": "bypass"},
    "agile": {"brake": "tunnel", "yield": "bridge", "follow": "bypass", "pass": "main"},
    "fixed": {"brake": "bypass", "yield": "main", "follow": "tunnel", "pass": "bridge"},
}
TASKS = (
    Task("hazard", (), 4, "Which class of object is ahead in the ego lane?"),
    Task("grip", (), 4, "How much grip does the ego lane have?"),
    Task(
        "manoeuvre",
        ("hazard", "grip"),
        4,
        "What to do, given the hazard and the grip?",
        {(hazard, grip): MANOEUVRES[hazard][grip] for hazard, grip in product(HAZARDS, GRIPS)},
    ),
    Task(
        "route",
        ("hazard", "manoeuvre"),
        4,
        "Which way to go, given the hazard and the manoeuvre?",
        {(hazard, word): route for hazard, row in ROUTES.items() for word, route in row.items()},
    ),
)
ANSWERS = {
    "hazard": tuple(HAZARDS),
    "grip": tuple(GRIPS),
    "manoeuvre": tuple(MANOEUVRES["fragile"].values()),
    "route": tuple(ROUTES["fragile"].values()),
}
# In words that the bundled backbone's generic skills use, since a LoRA can only add what the base nearly has.
QUESTIONS = {
    "hazard": "what hazard is in the lane ?",
    "grip": "what is grip of the lane ?",
    "manoeuvre": "what manoeuvre ?",
    "route": "what route ?",
}
_NUMBERS = range(100)


def words() -> tuple[str, ...]:
    """Every word that a prompt of this set can hold with the default template, punctuation and letters included."""
    prompt = (*".,:?abcd", "<image>", "camera", "weather", "lane", "given", "options", "answer")
    prompt += tuple(word for question in QUESTIONS.values() for word in question.split())
    inputs = [*COLUMNS, *ROWS, *WEATHERS, *(kind for kinds in HAZARDS.values() for kind in kinds)]
    answers = [word for task, options in ANSWERS.items() for word in (task, *options)]
    readings = [str(number) for number in _NUMBERS if any(low <= number <= high for low, high in GRIPS.values())]
    return tuple(dict.fromkeys((*prompt, *inputs, *answers, *readings)))


def build(folder: Path, seed: int, counts: Mapping[str, int]) -> None:
    """Writes the whole task set.

    Scene i of a split depends on (seed, split, i) alone, so that a smaller regime is the beginning of a larger one.

    Args:
        folder: an empty or missing folder.
        seed: 0 or more.
        counts: scenes in each split.
    """
    items: dict[tuple[str, str], list[Item]] = {(task.name, split): [] for task in TASKS for split in counts}
    seen: set[str] = set()
    for number, (split, count) in enumerate(counts.items()):
        (folder / "images" / split).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng((seed, number, index))
            scene = _draw_fields(rng)
            while (content := repr(scene)) in seen:  # no content twice, least of all in two splits
                scene = _draw_fields(rng)
            seen.add(content)
            scene_id = f"{split}-{index:05d}"
            image = f"images/{split}/{scene_id}.png"
            Image.fromarray(_draw_image(scene, rng)).save(folder / image, compress_level=1)
            for task, item in _items(scene_id, image, scene, rng).items():
                items[task, split].append(item)
    write_taskset(folder, "iov", TASKS, items)


def _draw_fields(rng: np.random.Generator) -> dict[str, str]:
    """Named content of one scene, which decides every answer and everything drawn but the pixel noise."""
    scene = {"lane": str(rng.choice(COLUMNS)), "weather": str(rng.choice(WEATHERS))}
    classes, bands = rng.permutation(list(HAZARDS)), rng.permutation(list(GRIPS))
    for column, hazard, band in zip(COLUMNS, classes, bands, strict=True):
        low, high = GRIPS[band]
        scene |= {
            f"class_{column}": str(hazard),
            f"object_{column}": str(rng.choice(HAZARDS[hazard])),
            f"row_{column}": str(rng.choice(ROWS)),
            f"colour_{column}": str(rng.choice(list(COLOURS))),
            f"band_{column}": str(band),
            f"reading_{column}": str(rng.integers(low, high + 1)),
        }
    return scene


def _draw_image(scene: Mapping[str, str], rng: np.random.Generator) -> np.ndarray:
    cells = [(column, ROWS.index(scene[f"row_{name}"])) for column, name in enumerate(COLUMNS)]
    sprites = [
        Sprite(scene[f"object_{name}"], scene[f"colour_{name}"], x, y)
        for name, (x, y) in zip(COLUMNS, scatter(rng, cells), strict=True)
    ]
    return draw_scene(sprites, scene["weather"], rng)


def _items(scene_id: str, image: str, scene: Mapping[str, str], rng: np.random.Generator) -> dict[str, Item]:
    lane = scene["lane"]
    hazard, grip = scene[f"class_{lane}"], scene[f"band_{lane}"]
    manoeuvre = MANOEUVRES[hazard][grip]
    answers = {"hazard": hazard, "grip": grip, "manoeuvre": manoeuvre, "route": ROUTES[hazard][manoeuvre]}
    needs = {"hazard": (), "grip": (), "manoeuvre": ("hazard", "grip"), "route": ("hazard", "grip", "manoeuvre")}
    readings = " , ".join(f"{name} {scene[f'reading_{name}']}" for name in COLUMNS)
    objects = " , ".join(f"{scene[f'object_{name}']} {name} {scene[f'row_{name}']}" for name in COLUMNS)
    items = {}
    for task, answer in answers.items():
        options = tuple(str(word) for word in rng.permutation(ANSWERS[task]))
        items[task] = Item(
            id=f"{task}/{scene_id}",
            scene=scene_id,
            question=f"lane {lane} . grip {readings} . {QUESTIONS[task]}",
            options=options,
            answer=options.index(answer),
            image=image,
            image_text=f"camera : {objects} , weather {scene['weather']} .",
            prerequisites={name: answers[name] for name in needs[task]},
            fields=scene,
        )
    return items
