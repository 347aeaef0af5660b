"""What goes wrong in loading and feeding a backbone, in the project's words."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as hf_logging

from contextlora.errors import UserError, first_line, is_out_of_memory, tail
from contextlora.limits import shown

_LACKING_PACKAGE = re.compile(r"\b(torchvision|num2words)\b", re.IGNORECASE)
_REFUSED_ATTENTION = re.compile(r'`attn_implementation="(.*?)"` is not supported')


class BackboneError(UserError):
    """A backbone cannot be found, loaded, or fed with a prompt."""


@contextmanager
def errors_of(name: str, part: str) -> Iterator[None]:
    """Turns whatever a damaged part of a model makes transformers stumble over into one line, and keeps it quiet.

    Raises:
        BackboneError: names model and part.
    """
    try:
        with quiet():
            yield
    except BackboneError as error:
        raise BackboneError(f"model {tail(name)} cannot be loaded: {error}") from error
    except Exception as error:  # tokenizers raises bare ones, and configurations are checked by half a dozen libraries
        if is_out_of_memory(error):
            raise
        if brings_code(error):
            raise BackboneError(code_message(name)) from error
        if refused := _REFUSED_ATTENTION.search(str(error)):
            raise BackboneError(
                f"model.attn_implementation must be eager, sdpa or another one that transformers has for model "
                f"{tail(name)}, got {shown(refused[1])}"
            ) from error
        if lacking := _LACKING_PACKAGE.search(str(error)):
            raise BackboneError(
                f"model {tail(name)} needs {lacking[0].lower()} to read images, which is not here; install it: "
                "pip install 'contextlora[vision]'"
            ) from error
        mend = "mend it or name another"
        if part == "chat template":
            mend = "mend it, or set model.chat_template=off"
        where = "" if isinstance(error, OSError) else f"its {part}: "  # which names the file, or is the hub's
        said = f"{where}{first_line(error, but=name)}"
        raise BackboneError(f"model {tail(name)} cannot be loaded: {said}; {mend}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, and its warnings and reports: what matters of them is raised."""
    # Settings of the whole process, in which the caller may use transformers too.
    shows_progress, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(max(verbosity, hf_logging.ERROR))
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if shows_progress:
            hf_logging.enable_progress_bar()


def brings_code(error: Exception) -> bool:
    """Whether transformers refuses to run what comes with a model."""
    return "trust_remote_code" in str(error)


def code_message(name: object) -> str:
    """What to say then of the model of this name."""
    return (
        f"model {tail(name)} brings code of its own, which may do all that you may do, and is not run; take a model "
        "that transformers ships or, only if you have read that code, set model.trust_remote_code=true"
    )


def warn_of_code(name: object) -> None:
    """Says on stderr that code which comes with a model may run."""
    print(f"contextlora: code that comes with model {name} may do all that you may do", file=sys.stderr)
