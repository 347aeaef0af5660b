"""What goes wrong with a backbone, as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as hf_logging

from contextlora.errors import UserError, first_line, is_out_of_memory, tail


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
        if "trust_remote_code" in str(error):
            raise BackboneError(
                f"model {tail(name)} brings code of its own, which may do all that you may do, and is not run; take a "
                "model that transformers ships or, only if you have read that code, set model.trust_remote_code=true"
            ) from error
        where = "" if isinstance(error, OSError) else f"its {part}: "  # which names the file, or is the hub's
        said = f"{where}{first_line(error, but=name)}"
        raise BackboneError(f"model {tail(name)} cannot be loaded: {said}; mend it or name another") from error


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
