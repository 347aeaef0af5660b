"""Lightning callbacks and loggers of the user's own, from the settings."""

import inspect
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from contextlora.errors import ConfigError, first_line


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
    return [_build(entry, kind, key, folder) for entry in entries]


def find_class(entry: Any, key: str) -> tuple[type, dict[str, Any]]:
    """The class that an entry names and its arguments; raises `ConfigError` as `build_plugins`."""
    if isinstance(entry, str):
        entry = {"class_path": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str):
        raise ConfigError(f"{key}: each entry is an import path or {{class_path: ..., init_args: ...}}, got {entry!r}")
    if unknown := set(entry) - {"class_path", "init_args"}:
        raise ConfigError(f"{key}: an entry has the keys class_path and init_args, got {sorted(unknown)[0]!r}")
    module, _, name = entry["class_path"].rpartition(".")
    try:
        return getattr(import_module(module), name), dict(entry.get("init_args") or {})
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"{key}: there is no {entry['class_path']} ({first_line(error)})") from error


def _build(entry: Any, kind: type, key: str, folder: Path | None) -> Any:
    found, arguments = find_class(entry, key)
    path = f"{found.__module__}.{found.__qualname__}"
    try:
        if folder is not None and "save_dir" in inspect.signature(found).parameters:
            arguments.setdefault("save_dir", str(folder))
        made = found(**arguments)
    except Exception as error:  # whatever a user's class may raise
        raise ConfigError(f"{key}: {path} cannot be built ({type(error).__name__}: {first_line(error)})") from error
    if not isinstance(made, kind):
        raise ConfigError(f"{key}: {path} must be a Lightning {kind.__name__}, got {type(made).__name__}")
    return made
