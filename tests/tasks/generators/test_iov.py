from collections import Counter
from itertools import product

import numpy as np
import pytest
from PIL import Image

from contextlora.backbones.pretraining.vocabulary import WORDS
from contextlora.tasks.generators import iov
from contextlora.tasks.prompts import render
from contextlora.tasks.renderers import OBJECTS
from contextlora.tasks.task import SPLITS
from contextlora.tasks.taskset import TaskSet

COUNTS = {"train": 60, "validation": 10, "test": 10}


@pytest.fixture(scope="module")
def taskset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iov")
    iov.build(folder, 3, COUNTS)
    return TaskSet.load(folder)


def test_the_rules_are_latin_squares_also_as_functions_of_the_roots():
    route_by_roots = {
        hazard: {grip: iov.ROUTES[hazard][iov.MANOEUVRES[hazard][grip]] for grip in iov.GRIPS} for hazard in iov.HAZARDS
    }
    for table, answers in (
        (iov.MANOEUVRES, iov.ANSWERS["manoeuvre"]),
        (iov.ROUTES, iov.ANSWERS["route"]),
        (route_by_roots, iov.ANSWERS["route"]),
    ):
        rows = [list(row.values()) for row in table.values()]
        assert all(sorted(line) == sorted(answers) for line in [*rows, *zip(*rows, strict=True)])


def test_every_object_has_one_class_and_no_class_is_called_like_an_object():
    kinds = [kind for kinds in iov.HAZARDS.values() for kind in kinds]
    assert sorted(kinds) == sorted(OBJECTS)
    assert not set(iov.HAZARDS) & set(OBJECTS)


def test_graph_forks_and_joins(taskset):
    assert taskset.graph.generations == (("hazard", "grip"), ("manoeuvre",), ("route",))
    assert taskset.graph.prerequisites("route") == ("hazard", "manoeuvre")


def test_answers_follow_from_question_and_text_view(taskset):
    """Works the answer out from what the model is shown, with the documented tables alone."""
    class_of = {kind: hazard for hazard, kinds in iov.HAZARDS.items() for kind in kinds}
    for task, split in product(iov.ANSWERS, SPLITS):
        for item in taskset.items(task, split):
            told = item.question.split()
            lane = told[1]
            reading = int(told[told.index(lane, 2) + 1])
            seen = item.image_text.split()
            hazard = class_of[seen[seen.index(lane) - 1]]
            grip = iov.ANSWERS["grip"][reading // 25]
            answers = {"hazard": hazard, "grip": grip, "manoeuvre": iov.MANOEUVRES[hazard][grip]}
            answers["route"] = iov.ROUTES[hazard][answers["manoeuvre"]]
            assert item.answer_word == answers[task] and sorted(item.options) == sorted(iov.ANSWERS[task])
            ancestors = taskset.graph.prerequisites(task, scope="ancestors")
            assert item.prerequisites == {name: answers[name] for name in ancestors}


def test_each_scene_holds_every_class_and_every_band_once(taskset):
    for item in taskset.items("hazard", "train"):
        for kind in ("class", "band"):
            assert len({item.fields[f"{kind}_{column}"] for column in ("c1", "c2", "c3", "c4")}) == 4
        for column in ("c1", "c2", "c3", "c4"):
            reading = int(item.fields[f"reading_{column}"])
            low, high = iov.GRIPS[item.fields[f"band_{column}"]]
            assert low <= reading <= high


def test_images_are_small_rgb_and_one_a_scene(taskset):
    items = taskset.items("route", "test")
    assert len({item.image for item in items}) == len(items)
    with Image.open(taskset.folder / items[0].image) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_the_same_seed_gives_the_same_set_and_a_larger_one_begins_with_it(taskset, tmp_path):
    iov.build(tmp_path, 3, {"train": 61, "validation": 10, "test": 10})
    again = TaskSet.load(tmp_path)
    assert again.items("route", "train")[:60] == taskset.items("route", "train")
    assert again.items("grip", "test") == taskset.items("grip", "test")
    for item in taskset.items("hazard", "test"):
        pixels = [np.asarray(Image.open(source.folder / item.image)) for source in (taskset, again)]
        assert np.array_equal(*pixels)


def test_options_are_shuffled(taskset):
    places = Counter(item.answer for item in taskset.items("route", "train"))
    assert set(places) == {0, 1, 2, 3} and max(places.values()) < 30  # 15 expected, of 60


@pytest.mark.parametrize("image", ["image", "text"])
@pytest.mark.parametrize("answer_format", ["word", "letter"])
def test_the_bundled_backbone_knows_every_word(taskset, image, answer_format):
    used = set()
    for name, split in product(iov.ANSWERS, SPLITS):
        for item in taskset.items(name, split):
            prompt = render(item, taskset.tasks[name], item.prerequisites, image=image, answer_format=answer_format)
            used |= {*prompt.text.split(), *prompt.continuations}
    assert used <= set(iov.words())
    assert set(iov.words()) <= set(WORDS)
