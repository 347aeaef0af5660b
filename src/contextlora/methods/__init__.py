"""Methods: ways to share one LoRA among the tasks of a graph; one file, one YAML and one line of this table each."""

from contextlora.errors import ConfigError
from contextlora.limits import shown
from contextlora.methods.contextlora import ContextLora
from contextlora.methods.joint import Joint
from contextlora.methods.method import Method, StageView
from contextlora.methods.mixlora import MixLora
from contextlora.methods.mole import Mole
from contextlora.methods.o_lora import OLora
from contextlora.methods.per_task import PerTask
from contextlora.methods.sequential import Sequential
from contextlora.settings import MethodSettings

METHODS: dict[str, type[Method]] = {
    "contextlora": ContextLora,
    "joint": Joint,
    "mixlora": MixLora,
    "mole": Mole,
    "o_lora": OLora,
    "per_task": PerTask,
    "sequential": Sequential,
}

__all__ = ["METHODS", "Method", "StageView", "build_method"]


def build_method(settings: MethodSettings) -> Method:
    """The method that settings name.

    Raises:
        ConfigError: no such method, or the settings of another one.
    """
    if settings.name not in METHODS:
        raise ConfigError(f"method.name must be one of {', '.join(METHODS)}: got {shown(settings.name)}.")
    kind = METHODS[settings.name]
    if type(settings) is not kind.Settings:
        right, given = kind.Settings.__name__, type(settings).__name__
        raise ConfigError(f"method {settings.name} takes {right}: got {given}. Give it its own settings.")
    return kind(settings)
