"""Settings in words, for the legends of pictures and the rows of tables."""

from collections.abc import Mapping
from typing import Any

CHOICES = {
    "taskset.context": {
        "none": "no answers in the prompt",
        "gold": "right answers in the prompt",
        "predicted": "predicted answers in the prompt",
    },
    "taskset.regime": {"low": "few training items", "full": "all training items"},
    "taskset.answer_format": {"word": "answers are words", "letter": "answers are letters"},
    "taskset.length_normalised": {True: "scores by characters", False: "scores as they are"},
    "taskset.scope": {"direct": "direct prerequisites", "ancestors": "all ancestors"},
    "method.variant": {"gated": "prerequisites behind a learned gate", "paper": "prerequisites added as they are"},
    "method.frozen_policy": {
        "largest": "freezes the largest ranks",
        "first": "freezes the first ranks",
        "random": "freezes random ranks",
    },
}
FORMS = {
    "method.delta": "frozen ratio {:g}",
    "method.learning_rate_scale": "learning rate times {:g}",
    "method.open_learning_rate_scale": "open ranks at {:g} of the learning rate",
}


def setting_label(key: str, value: Any) -> str:
    """("taskset.context", "gold") -> "right answers in the prompt"; else the key's own words, "batch size 16"."""
    if value in CHOICES.get(key, ()):
        return CHOICES[key][value]
    if key in FORMS:
        return FORMS[key].format(value)
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {one}" for name, one in value.items()) or "none"
    return f"{key.split('.')[-1].replace('_', ' ')} {value}"


def group_label(method: str, settings: Mapping[str, Any]) -> str:
    """A method and the settings, by dotted key, that tell it apart: "per_task (right answers in the prompt)"."""
    details = ", ".join(setting_label(key, value) for key, value in settings.items())
    return method + (f" ({details})" if details else "")
