"""How YAML files and arguments become the settings of a run; the only importer of omegaconf.

The dataclasses of `contextlora.settings` are schema and documentation in one. Files under `configs/` hold deviations
only. From weak to strong:

    defaults below < default.yaml < <group>/<choice>.yaml < experiment/<name>.yaml < section.key=value

`taskset=`, `method=` and `model=` choose a group file; default.yaml and an experiment choose by the same words. Every
file spells keys from the root, so that a model's file can also set the learning rate that suits it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from contextlora.errors import ConfigError, first_line, known, squeezed, tail
from contextlora.files import read_file, write_atomically
from contextlora.limits import fits, is_text, rule, shown
from contextlora.methods import METHODS
from contextlora.plain_values import check_leaves, check_numbers, check_resolved
from contextlora.settings import MethodSettings, RunConfig

# In an editable install, which is what `make setup` makes, the configs lie beside src/.
CONFIG_DIR = Path(__file__).parents[2] / "configs"
# OmegaConf's errors, and what yaml raises for numbers of too many digits, too many levels and foreign bytes.
UNREADABLE = (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError, OSError)
_MOST_BYTES = 1 << 20  # PyYAML takes seconds for it
GROUPS = ("taskset", "method", "model")


def load_config(arguments: Sequence[str] = (), config_dir: Path | None = None, saved: Path | None = None) -> RunConfig:
    """Build the configuration of a run.

    Args:
        arguments: `group=choice`, `experiment=name` and `section.key=value`, in any order; the last one wins.
        config_dir: folder with default.yaml and the groups; by default the repository's `configs/`.
        saved: a config.yaml that `to_yaml` wrote, taken instead of the defaults.

    Raises:
        ConfigError: unknown key or choice, wrong type, value out of range; names the key, the value and what is known.
    """
    config_dir = config_dir or CONFIG_DIR
    choices, settings = _split_arguments(arguments)
    base = _read(saved or config_dir / "default.yaml")
    name = choices.pop("experiment", None)
    experiment = [_read(_choose(config_dir, "experiment", name))] if name else []
    # From strong to weak: a choice that is made already stays.
    for source in (*experiment, base):
        choices = _pop_choices(source.tree) | choices
    groups = [layer for item in choices.items() for layer in _group_layers(config_dir, *item)]
    # The method comes first, as the schema has the settings of that method alone.
    schema = default_config(choices.get("method") or _method_of(base.tree))
    layers = [_checked(*layer, schema) for layer in (base, *groups, *experiment, settings)]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), *layers)
        check_resolved(OmegaConf.to_container(merged, resolve=True))
        return OmegaConf.to_object(merged)
    except ConfigError:
        raise
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError) as error:
        key = getattr(error, "full_key", "") or "settings"
        raise ConfigError(f"{squeezed(key)}{_rule_of(key, schema)}: {first_line(error)}; give another value") from error


def _rule_of(key: str, section: Any) -> str:
    """What a setting must be, as a part of a message; nothing for keys within lists and mappings."""
    hint = None
    for name in key.split("."):
        hint = get_type_hints(type(section)).get(name) if is_dataclass(section) else None
        section = getattr(section, name, None)
    return f" must be {rule(hint)}" if hint else ""


def default_config(method: str | None) -> RunConfig:
    """The defaults of a run with a method; those of every method where it is None or unknown."""
    kind = METHODS[method].Settings if method in METHODS else MethodSettings
    return RunConfig(method=kind())


def read_devices(name_or_path: str) -> tuple[Any, Path]:
    """A device catalogue as a plain tree, with the file it was read from.

    Args:
        name_or_path: the name of a file in `configs/devices`, or a path.

    Raises:
        ConfigError: there is no such file, or it is no YAML.
    """
    path = Path(name_or_path)
    if not path.suffix and not os.path.exists(path):
        path = _choose(CONFIG_DIR, "devices", name_or_path)
    missing = f"gear.devices names no file: {tail(path)}; give a device catalogue (make: DEVICES=FILE)"
    return _load(path, missing, resolve=True), path


def write_devices(tree: dict[str, Any], path: Path, header: str) -> None:
    """Writes a device catalogue that `read_devices` reads back; `header` says where its figures come from."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    write_atomically(path, comment + OmegaConf.to_yaml(OmegaConf.create(tree)))


def to_yaml(config: RunConfig) -> str:
    """The whole configuration as YAML that `load_config(saved=...)` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def describe_settings(cls: type = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, documentation) of each setting, after ("section.", documentation, "") of its section."""
    hints = get_type_hints(cls)
    # Plain values first: after a section's rows they would read as part of it.
    for entry in sorted(fields(cls), key=lambda entry: is_dataclass(hints[entry.name])):
        hint = hints[entry.name]
        if is_dataclass(hint):
            yield f"{entry.name}.", str(hint.__doc__), ""
            yield from describe_settings(hint, f"{entry.name}.")
            if hint is MethodSettings:
                yield from _describe_methods()
            continue
        if prefix == "method." and cls is not MethodSettings and _is_as_in_every_method(entry):
            continue
        default = entry.default if isinstance(entry.default, int | float | str | None) else entry.default_factory()
        choices = f" [{' | '.join(get_args(hint))}]" if get_origin(hint) is Literal else ""
        # As YAML writes it, without the empty key and its colon in front.
        shown = f"[{', '.join(default)}]" if isinstance(default, list) else OmegaConf.to_yaml({"": default})[4:].strip()
        yield prefix + entry.name, shown, entry.metadata["text"] + choices


def _is_as_in_every_method(entry: Field) -> bool:
    of_all = MethodSettings.__dataclass_fields__.get(entry.name)
    return of_all is not None and (entry.name == "name" or entry.default == of_all.default)


def _describe_methods() -> Iterator[tuple[str, str, str]]:
    """The settings that only some methods have."""
    for name, method in METHODS.items():
        if method.Settings is not MethodSettings:
            yield f"method ({name}).", str(method.Settings.__doc__), ""
            yield from describe_settings(method.Settings, "method.")


class _Layer(NamedTuple):
    """A tree of settings and where it comes from, as the end of an error message."""

    tree: Any
    source: str = ""


def _split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], _Layer]:
    """Sort arguments into choices of files and a tree of plain settings."""
    choices, found = {}, OmegaConf.create()
    for argument in arguments:
        if not is_text(argument):
            raise ConfigError(f"settings must be text without NUL and lone surrogates: got {shown(argument)}")
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"expected key=value, got {shown(argument)}; name the key")
        # method.name=joint means method=joint: the name alone would keep the other method's settings.
        choice = key.removesuffix(".name")
        if choice in (*GROUPS, "experiment"):
            choices[choice] = value
            continue
        try:
            found.merge_with_dotlist([argument])
        except UNREADABLE as error:
            raise ConfigError(f"cannot read {shown(argument)}: {first_line(error)}; mend it") from error
        check_numbers(value, f" in {shown(argument)}")
    tree = OmegaConf.to_container(found)
    check_leaves(tree, "")
    return choices, _Layer(tree)


def _read(path: Path) -> _Layer:
    """One YAML file."""
    missing = f"no file {tail(path)}; run from an editable install (make setup) or name the folder with --config-dir"
    tree = _load(path, missing)
    if not isinstance(tree, dict):
        raise ConfigError(f"settings in {tail(path)} must be a mapping of keys to values, got {shown(tree)}")
    return _Layer(tree, f" in {tail(path, 50)}")  # as much as leaves room for a key and the known ones


def _load(path: Path, missing: str, resolve: bool = False) -> Any:
    """A YAML file as a plain tree; `missing` is the message where there is none."""
    try:
        content = read_file(path, _MOST_BYTES)
        check_numbers(content.decode(), f" in {tail(path)}")
        found = OmegaConf.load(BytesIO(content))
        check_leaves(OmegaConf.to_container(found), f" in {tail(path)}")
        return OmegaConf.to_container(found, resolve=resolve)
    except FileNotFoundError:
        raise ConfigError(missing) from None
    except ConfigError:
        raise
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or first_line(error, but=path)
        raise ConfigError(f"{tail(path)} is no readable YAML file: {reason}; mend it") from error


def _checked(tree: Any, source: str, section: Any, prefix: str = "") -> dict[str, Any]:
    """Check a tree's keys against a section (a dataclass); gives back on/off where YAML made them booleans."""
    if not isinstance(tree, dict):
        name = prefix.rstrip(".") or "settings"
        raise ConfigError(f"{name}{source} must be a mapping of keys to values, got {shown(tree)}")
    hints = get_type_hints(type(section))
    checked = {}
    for key, value in tree.items():
        if key not in hints:
            others = _other_methods(key) if prefix == "method." else ""
            raise ConfigError(f"unknown key {squeezed(f'{prefix}{key}')}{source}{others or known(key, hints, prefix)}")
        if is_dataclass(getattr(section, key)):
            value = _checked(value, source, getattr(section, key), f"{prefix}{key}.")
        elif isinstance(value, bool) and get_origin(hints[key]) is Literal:
            value = "on" if value else "off"
        elif value is None and hints[key] is str:
            raise ConfigError(f"{prefix}{key}{source} must not be empty; give a value, or leave out the key")
        elif not _can_become(value, hints[key]):
            refused = type(section).__dataclass_fields__[key].metadata.get("refused", {})
            why = f": {refused[value]}" if isinstance(value, str) and value in refused else ""
            raise ConfigError(f"{prefix}{key}{source} must be {rule(hints[key])}, got {shown(value)}{why}")
        checked[key] = value
    return checked


def _can_become(value: Any, hint: Any) -> bool:
    """Whether OmegaConf may go on with a value, which makes numbers of words and words of numbers."""
    kind, inner = get_origin(hint), get_args(hint)
    if isinstance(value, str) and ("${" in value or kind is not Literal) and kind not in (list, dict):
        return True
    if kind is dict:  # what it holds is checked in the end
        return isinstance(value, dict)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return fits(value, hint) or (is_number and (hint is bool or hint is str or str in inner))


def _other_methods(key: str) -> str:
    """The end of the message about a setting that the chosen method does not have but others do."""
    names = [name for name, method in METHODS.items() if key in method.Settings.__dataclass_fields__]
    return f": only {', '.join(names)} ha{'s' if len(names) == 1 else 've'} it; leave it out" if names else ""


def _method_of(tree: dict[str, Any]) -> str | None:
    """The method that a tree names as a setting, as a saved configuration does."""
    method = tree.get("method")
    return method.get("name") if isinstance(method, dict) else None


def _pop_choices(tree: dict[str, Any]) -> dict[str, str]:
    return {group: tree.pop(group) for group in GROUPS if isinstance(tree.get(group), str)}


def _choose(config_dir: Path, group: str, choice: str) -> Path:
    """The file of a choice."""
    files = {path.stem: path for path in sorted((config_dir / group).glob("*.yaml"))}
    if choice not in files:
        also = f"; a {group} may also be a folder or contain a '/'" if group in ("taskset", "model") else ""
        also = also or ("" if files else f"; add a file to {tail(config_dir / group)}")
        raise ConfigError(f"unknown {group} {shown(choice)}{known(choice, files)}{also}")
    return files[choice]


def _group_layers(config_dir: Path, group: str, choice: str) -> list[_Layer]:
    """What a choice sets: the name first, so that its file may map a short name to a path or hub id."""
    name = _Layer({group: {"name": choice}})
    if group in ("taskset", "model") and ("/" in choice or os.path.isdir(choice)):
        return [name]
    return [name, _read(_choose(config_dir, group, choice))]
