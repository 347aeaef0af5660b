"""Settings in words."""

from dataclasses import asdict

import pytest

from contextlora.evaluation.compare import flatten
from contextlora.evaluation.labels import CHOICES, FORMS, group_label, setting_label
from contextlora.evaluation.plots import accuracy_figure
from contextlora.methods.contextlora import ContextLoraSettings
from contextlora.settings import RunConfig

SETTINGS = flatten(asdict(RunConfig(method=ContextLoraSettings())))


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("taskset.context", "gold", "right answers in the prompt"),
        ("method.learning_rate_scale", 0.75, "learning rate times 0.75"),
        ("method.delta", 1, "frozen ratio 1"),
        ("training.batch_size", 16, "batch size 16"),
        ("taskset.context", "of a setting's older value", "context of a setting's older value"),
        ("method.edge_delta", {"u->v": 0.5}, "edge delta u->v 0.5"),
        ("method.edge_delta", {}, "edge delta none"),
    ],
)
def test_a_setting_is_said_in_words(key, value, words):
    assert setting_label(key, value) == words


def test_words_are_of_settings_that_exist():
    assert set(CHOICES) | set(FORMS) <= set(SETTINGS)
    assert all(SETTINGS[key] in choices for key, choices in CHOICES.items())


def test_a_legend_holds_no_setting_s_name():
    differing = {"taskset.context": "gold", "method.learning_rate_scale": 0.75, "training.steps_per_task": 40}
    names = [group_label("per_task", differing), group_label("contextlora", {})]
    (axes,) = accuracy_figure({name: {"u": (0.5, 0.4, 0.6)} for name in names}, {"u": 0.25}).axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == [
        "chance",
        "per_task (right answers in the prompt, learning rate times 0.75, steps per task 40)",
        "contextlora",
    ]
    keys = {key.split(".")[-1] for key in SETTINGS if "_" in key}
    assert not [key for key in keys if any(key in text for text in legend)]
