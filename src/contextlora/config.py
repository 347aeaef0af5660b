"""The settings of a run: documented sections, and how YAML files and arguments fill them.

The dataclasses are schema and documentation in one: `contextlora train --help` prints them. Files under `configs/` hold
deviations only. From weak to strong:

    defaults below < default.yaml < <group>/<choice>.yaml < experiment/<name>.yaml < section.key=value

`taskset=`, `method=` and `model=` choose a group file; default.yaml and an experiment choose by the same words. Every
file spells keys from the root, so that a method's file can also set the learning rate that suits it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from contextlora.errors import ConfigError

# In an editable install, which is what `make setup` makes, the configs lie beside src/.
CONFIG_DIR = Path(__file__).parents[2] / "configs"
GROUPS = ("taskset", "method", "model")


def setting(default: Any, text: str, **limits: float) -> Any:
    """A dataclass field with its documentation; `minimum` and `maximum` also hold for the values of a dict."""
    value = {"default_factory": dict} if default == {} else {"default": default}
    return field(**value, metadata={"text": text, **limits})


@dataclass
class TasksetConfig:
    """Which tasks, and how their items become prompts."""

    name: str = setting("iov", "shipped task set, or the path of a task-set folder")
    regime: Literal["low", "full"] = setting("low", "size of a shipped set: a few hundred items per task, or all")
    seed: int = setting(0, "seed of a shipped set's items; independent of the run's seed", minimum=0)
    data_dir: str = setting("data", "where shipped sets are generated on first use")
    context: Literal["none", "gold", "predicted"] = setting(
        "none", "prerequisites' answers in the prompts while training; the evaluation is also end to end in any case"
    )
    answer_format: Literal["word", "letter"] = setting("word", "score the option words or the option letters")
    image: Literal["auto", "image", "text"] = setting("auto", "show the image or its text view; auto: as the model can")


@dataclass
class MethodConfig:
    """How the tasks share one LoRA."""

    name: str = setting("contextlora", "training method, a file of configs/method")
    rank: int = setting(8, "LoRA ranks per task (r_v)", minimum=1)
    alpha: float = setting(16.0, "LoRA scale numerator: every slice is scaled by alpha / rank", minimum=0)
    dropout: float = setting(0.0, "dropout probability on the LoRA input", minimum=0, maximum=0.99)
    delta: float = setting(
        1.0, "share of each prerequisite's ranks that stays frozen while a task trains", minimum=0, maximum=1
    )
    edge_delta: dict[str, float] = setting(  # noqa: RUF009 - it makes a field
        {}, "delta of single edges, as {'u->v': 0.5}", minimum=0, maximum=1
    )
    scope: Literal["direct", "ancestors"] = setting("direct", "prerequisites: direct parents, or all ancestors")
    variant: Literal["gated", "paper"] = setting(
        "gated", "how prerequisite slices enter the forward pass: times a learned gate, or simply added"
    )
    frozen_policy: Literal["largest", "first", "random"] = setting("largest", "which ranks of a slice stay frozen")
    gate_init: float = setting(0.05, "initial gate of a prerequisite's slice (variant gated)")


@dataclass
class ModelConfig:
    """The frozen language model."""

    name: str = setting("bundled", "the bundled backbone, a checkpoint folder, or a hub id (owner/name)")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "type of the frozen weights; auto: bfloat16 where the processor computes it natively"
    )
    attn_implementation: str = setting("eager", "attention of transformers; eager is fastest on CPU at short lengths")
    target_modules: str = setting(
        "language-linear",
        "what gets LoRA: all linear layers of the language model's blocks, or a regex of module names",
    )
    chat_template: Literal["auto", "off"] = setting("auto", "wrap prompts in the model's chat template if it has one")


@dataclass
class TrainingConfig:
    """Optimisation; every stage starts a new optimizer and schedule."""

    learning_rate: float = setting(2e-3, "peak learning rate of a task's own ranks", minimum=0)
    open_learning_rate_scale: float = setting(
        0.1, "times learning_rate, for the open ranks of prerequisites; a full rate harms the prerequisites", minimum=0
    )
    gate_learning_rate: float = setting(1e-2, "learning rate of the gates", minimum=0)
    weight_decay: float = setting(0.0, "AdamW weight decay", minimum=0)
    batch_size: int = setting(32, "items per step, all of one task", minimum=1)
    steps_per_task: int = setting(160, "optimizer steps per task", minimum=1)
    validate_every_steps: int = setting(40, "steps between validations and checkpoints", minimum=1)
    patience: int = setting(0, "validations without improvement that end a stage; 0 trains all steps", minimum=0)
    warmup_share: float = setting(0.05, "share of a stage's steps with rising learning rate", minimum=0, maximum=1)
    gradient_clip: float = setting(1.0, "largest gradient norm; 0 does not clip", minimum=0)
    strategy: str = setting("auto", "Lightning strategy")
    devices: int = setting(1, "number of devices", minimum=1)
    accelerator: str = setting("auto", "Lightning accelerator: auto, cpu, gpu ...")
    progress: bool = setting(True, "show progress bars")


@dataclass
class EvaluationConfig:
    """What the final tables are computed on."""

    batch_size: int = setting(128, "items per forward pass", minimum=1)
    split: Literal["validation", "test"] = setting("test", "split of the final tables; tune on validation")
    max_items: int | None = setting(None, "use only the first items of each task", minimum=1)


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "off"] = setting("auto", "auto: online when logged in, else offline")
    project: str = setting("contextlora", "project that a run is logged to")


@dataclass
class RunConfig:
    """Everything that determines a run."""

    taskset: TasksetConfig = field(default_factory=TasksetConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = setting(0, "seed of initial weights and batch order", minimum=0)
    runs_dir: str = setting("runs", "where run folders go")


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
    choices, dotted = _split_arguments(arguments)
    base = _read(saved or config_dir / "default.yaml")
    name = choices.pop("experiment", None)
    experiment = _read(_choose(config_dir, "experiment", name)) if name else {}
    choices = _pop_choices(base) | _pop_choices(experiment) | choices
    groups = [layer for item in choices.items() for layer in _group_layers(config_dir, *item)]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig()), base, *groups, experiment, dotted)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from error
    _check_limits(config)
    return config


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
            continue
        default = entry.default if isinstance(entry.default, int | float | str | None) else entry.default_factory()
        choices = f" [{' | '.join(get_args(hint))}]" if get_origin(hint) is Literal else ""
        yield prefix + entry.name, OmegaConf.to_yaml({"": default})[4:].strip(), entry.metadata["text"] + choices


def _split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Sort arguments into choices of files and a tree of plain settings."""
    choices, settings = {}, []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ConfigError(f"expected key=value, got {argument!r}")
        # method.name=joint means method=joint: the name alone would keep the other method's settings.
        choice = key.removesuffix(".name")
        if choice in (*GROUPS, "experiment"):
            choices[choice] = value
        else:
            settings.append(argument)
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist(settings))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {' '.join(settings)}: {str(error).splitlines()[0]}") from error
    return choices, _checked(tree, RunConfig, "")


def _read(path: Path) -> dict[str, Any]:
    """One YAML file as a tree of known keys."""
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise ConfigError(
            f"no file {path}; run from an editable install (make setup) or name the folder with --config-dir"
        ) from None
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    return _checked(tree, RunConfig, "", f" in {path}")


def _checked(tree: Any, cls: type, prefix: str, source: str = "") -> dict[str, Any]:
    """Check a tree's keys against a section; gives back on/off where YAML made them booleans."""
    if not isinstance(tree, dict):
        raise ConfigError(f"{prefix.rstrip('.') or 'settings'}{source}: expected keys of the section, got {tree!r}")
    hints = get_type_hints(cls)
    checked = {}
    for key, value in tree.items():
        if key not in hints:
            raise ConfigError(f"unknown key {prefix}{key}{source}{_known(str(key), hints, prefix)}")
        if is_dataclass(hints[key]) and not (cls is RunConfig and key in GROUPS and isinstance(value, str)):
            value = _checked(value, hints[key], f"{prefix}{key}.", source)
        elif isinstance(value, bool) and get_origin(hints[key]) is Literal:
            value = "on" if value else "off"
        checked[key] = value
    return checked


def _known(value: str, names: Iterable[str], prefix: str = "") -> str:
    """The end of an error message: the nearest known name and all of them."""
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"; did you mean {prefix}{near[0]}?" if near else ";"
    return f"{hint} Known: {', '.join(names) or 'none'}"


def _pop_choices(tree: dict[str, Any]) -> dict[str, str]:
    return {group: tree.pop(group) for group in GROUPS if isinstance(tree.get(group), str)}


def _choose(config_dir: Path, group: str, choice: str) -> Path:
    """The file of a choice."""
    files = {path.stem: path for path in sorted((config_dir / group).glob("*.yaml"))}
    if choice not in files:
        rule = f"; a {group} may also be a folder or contain a '/'" if group in ("taskset", "model") else ""
        raise ConfigError(f"unknown {group} {choice!r}{_known(choice, files)}{rule}")
    return files[choice]


def _group_layers(config_dir: Path, group: str, choice: str) -> list[dict[str, Any]]:
    """What a choice sets: the name first, so that its file may map a short name to a path or hub id."""
    name = {group: {"name": choice}}
    if group in ("taskset", "model") and ("/" in choice or Path(choice).is_dir()):
        return [name]
    return [name, _read(_choose(config_dir, group, choice))]


def _check_limits(section: Any, prefix: str = "") -> None:
    for entry in fields(section):
        value, key = getattr(section, entry.name), prefix + entry.name
        if is_dataclass(value):
            _check_limits(value, f"{key}.")
        low, high = entry.metadata.get("minimum"), entry.metadata.get("maximum", float("inf"))
        for number in () if low is None else value.values() if isinstance(value, dict) else [value]:
            if number is not None and not low <= number <= high:  # written so that nan fails
                rule = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
                raise ConfigError(f"{key} must be {rule}, got {number}")
