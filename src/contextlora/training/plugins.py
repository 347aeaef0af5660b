"""Lightning callbacks and loggers of the user's own, from the settings."""

import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from contextlora.errors import ConfigError, PassingError, UserError, first_line, is_out_of_memory, tail
from contextlora.limits import shown

_MEND = "change its init_args, or leave it out"


def build_plugins(entries: Sequence[Any], kind: type, key: str, folder: Path | None = None) -> list[Any]:
    """Objects from import paths, in the form that Lightning's own command line takes.

    Args:
        entries: "package.module.Class", or {"class_path": the same, "init_args": {...}}.
        kind: what each must be.
        key: of the setting, for messages.
        folder: given as `save_dir` to a class that takes one, where `init_args` names none.

    Raises:
        ConfigError: names the entry that cannot be built.
    """
    made = []
    for found, arguments in check_plugins(entries, kind, key, folder):
        try:
            made.append(found(**arguments))
        except Exception as error:  # whatever a user's class may raise
            path, reason = f"{found.__module__}.{found.__qualname__}", f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"{key}: {path} cannot be built ({reason}); {_MEND}") from error
    return made


def check_plugins(
    entries: Sequence[Any], kind: type, key: str, folder: Path | None = None
) -> list[tuple[type, dict[str, Any]]]:
    """Classes with their arguments, as `build_plugins` builds them, and the same errors as far as they show by then."""
    return [_checked(entry, kind, key, folder) for entry in entries]


@contextmanager
def naming_the_plugin(plugins: Sequence[Any]) -> Iterator[None]:
    """Errors that a hook of the user's own raises inside become a `PassingError` that names class and hook."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        for frame, _ in traceback.walk_tb(error.__traceback__):
            own = frame.f_locals.get("self")
            if any(own is plugin for plugin in plugins):
                where = f"{type(own).__module__}.{type(own).__qualname__}.{frame.f_code.co_name}"
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise PassingError(
                    f"{where} must not fail, but raised {reason}; --debug shows where, resume goes on"
                ) from error
        raise


def _checked(entry: Any, kind: type, key: str, folder: Path | None) -> tuple[type, dict[str, Any]]:
    if isinstance(entry, str):
        entry = {"class_path": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str):
        raise ConfigError(
            f"{key}: each entry is an import path or {{class_path: ..., init_args: ...}}, got {shown(entry)}; write one"
        )
    if unknown := set(entry) - {"class_path", "init_args"}:
        raise ConfigError(
            f"{key}: an entry may only have the keys class_path and init_args, got {shown(min(map(str, unknown)))}"
        )
    path, arguments = entry["class_path"], entry.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(
            f"{key}: init_args of {tail(path)} must be a mapping of names to values, got {shown(arguments)}"
        )
    arguments = dict(arguments)
    found = _imported(path, key)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{key}: {tail(path)} must be a class of Lightning {kind.__name__}s, got {shown(found)}")
    signature = inspect.signature(found)
    # Lightning's loggers ask for it, or write into the working directory.
    if folder is not None and "save_dir" in signature.parameters:
        arguments.setdefault("save_dir", str(folder))
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{key}: {tail(path)} cannot be built ({first_line(error)}); {_MEND}") from error
    return found, arguments


def _imported(path: str, key: str) -> Any:
    module, _, name = path.rpartition(".")
    # `python -m` finds a file of the user's in the current folder; an installed script does not.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:  # ValueError: a name without a module
        raise ConfigError(
            f"{key}: there is no {tail(path)} ({first_line(error)}); install it, or correct the path"
        ) from error
    except Exception as error:  # whatever a user's file may raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"{key}: importing {tail(path)} fails ({reason}); mend it, or leave it out") from error
