"""Settings: which layer wins, and that every mistake is named with its key, its value and what is known."""

import math
import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from contextlora.adapters import AdapterConfig
from contextlora.config import CONFIG_DIR, GROUPS, RunConfig, load_config, read_devices, to_yaml
from contextlora.errors import ConfigError
from contextlora.gear.simulation.schedule import QUEUE_BATCHES
from contextlora.methods.contextlora import ContextLoraSettings
from contextlora.settings import MethodSettings, TrainingConfig
from contextlora.training.fit import TrainerSettings
from contextlora.training.optimizer import OptimizerSettings
from contextlora.training.stages import StageLength


@pytest.fixture
def config_dir(tmp_path):
    files = {
        "default.yaml": "taskset: roads\nmethod: contextlora\nmodel: small\nseed: 1\n",
        "taskset/roads.yaml": "training: {batch_size: 4}\n",
        "method/contextlora.yaml": "training: {learning_rate: 0.1}\n",
        "method/joint.yaml": "training: {learning_rate: 0.2, weight_decay: 0.2}\ntracking: {mode: off}\n",
        "model/small.yaml": "model: {name: owner/small-model}\n",
        "experiment/try.yaml": "method: joint\ntraining: {weight_decay: 0.3}\nseed: 2\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_stronger_layer_wins(config_dir):
    config = load_config([], config_dir)
    assert (config.training.learning_rate, config.training.batch_size, config.seed) == (0.1, 4, 1)
    config = load_config(["experiment=try"], config_dir)
    assert (config.method.name, config.training.learning_rate, config.training.weight_decay) == ("joint", 0.2, 0.3)
    config = load_config(["training.weight_decay=0.5", "seed=3", "experiment=try", "seed=4"], config_dir)
    assert (config.training.weight_decay, config.seed) == (0.5, 4)
    config = load_config(["method=contextlora", "experiment=try"], config_dir)
    assert (config.method.name, config.training.learning_rate) == ("contextlora", 0.1)


def test_a_group_file_may_map_a_short_name(config_dir):
    config = load_config([], config_dir)
    assert (config.taskset.name, config.model.name) == ("roads", "owner/small-model")


def test_a_name_alone_chooses_the_whole_group(config_dir):
    assert load_config(["method.name=joint"], config_dir) == load_config(["method=joint"], config_dir)


@pytest.mark.parametrize("name", ["owner/model", "./model", "../shared/data/model"])
def test_a_taskset_or_model_may_be_a_path_or_hub_id(config_dir, name):
    config = load_config([f"model={name}", f"taskset={name}"], config_dir)
    assert (config.model.name, config.taskset.name) == (name, name)


def test_a_folder_here_needs_no_slash(config_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert load_config(["taskset=mine"], config_dir).taskset.name == "mine"


def test_off_stays_a_word(config_dir):
    assert load_config(["tracking.mode=off"], config_dir).tracking.mode == "off"
    assert load_config(["method=joint"], config_dir).tracking.mode == "off"
    saved = config_dir / "saved.yaml"
    saved.write_text(to_yaml(load_config(["tracking.mode=off", "model.chat_template=off"], config_dir)))
    assert load_config([], config_dir, saved=saved).model.chat_template == "off"


@pytest.mark.parametrize("settings", [("method.edge_delta.u->v=0.25",), ("method=joint", "method.alpha=3")])
def test_a_saved_configuration_comes_back_whole_and_can_be_changed(config_dir, settings):
    config = load_config(["seed=7", *settings], config_dir)
    saved = config_dir / "saved.yaml"
    saved.write_text(to_yaml(config))
    assert load_config([], config_dir, saved=saved) == config
    changed = load_config(["evaluation.split=validation"], config_dir, saved=saved)
    assert (changed.evaluation.split, changed.method) == ("validation", config.method)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("method.detla=1", ["unknown key method.detla", "did you mean method.delta?", "frozen_policy"]),
        ("mehtod.delta=1", ["unknown key mehtod", "did you mean method?"]),
        ("sede=1", ["unknown key sede", "did you mean seed?"]),
        ("method=jiont", ["unknown method 'jiont'", "did you mean joint?", "Known: contextlora, joint"]),
        ("model=smal", ["unknown model 'smal'", "did you mean small?", "folder"]),
        ("experiment=tyr", ["unknown experiment 'tyr'", "did you mean try?"]),
        ("method.delta=1.5", ["method.delta must be between 0 and 1, or auto", "1.5"]),
        ("method.delta=-0.1", ["method.delta must be between 0 and 1, or auto", "-0.1"]),
        ("method.delta=nan", ["method.delta must be between 0 and 1, or auto", "nan"]),
        ("gear.layouts=[ring]", ["gear.layouts must be a list of one of data, 1f1b, gpipe, got ['ring']"]),
        ("method.edge_delta.u->v=2", ["method.edge_delta must be at least 0 and at most 1, got 2"]),
        ("training.learning_rate=.inf", ["training.learning_rate must be a finite number", "got inf"]),
        ("method.gate_init=.nan", ["method.gate_init must be a finite number", "got nan"]),
        ("training.warmup_share=1", ["training.warmup_share must be at least 0 and below 1, got 1"]),
        ("method.learning_rate_scale=0", ["method.learning_rate_scale must be above 0, got 0"]),
        ("method.rank=0", ["method.rank must be at least 1 and at most 4096, got 0"]),
        ("evaluation.max_items=0", ["evaluation.max_items must be at least 1, got 0"]),
        ("method.rank=eight", ["method.rank", "eight", "Integer"]),
        ("taskset.scope=all", ["taskset.scope", "all", "direct", "ancestors"]),
        ("training=3", ["training", "3"]),
        ("training.batch_size=", ["training.batch_size", "None"]),
        ("training.batch_size={1", ["training.batch_size={1"]),
        ("method.rank=${x}", ["method.rank"]),
        ("method.edge_delta=[]", ["method.edge_delta must be a mapping of names to a finite number", "got []"]),
        ("gear.layouts[0]=x", ["gear.layouts must be a list of one of data, 1f1b, gpipe, got {'0': 'x'}"]),
        ("training.callbacks=foo", ["training.callbacks must be a list", "got 'foo'"]),
        ("training.loggers={}", ["training.loggers must be a list", "got {}"]),
        ("training.trainer=5", ["training.trainer must be a mapping", "got 5"]),
        ("training.trainer={a: [.inf]}", ["training.trainer must be a mapping of names to finite values"]),
        ("training.strategy=fsdp", ["one of auto, ddp, contextgear, got 'fsdp': it shards parameters once, while"]),
        ("training.batch_size=1e19", ["training.batch_size must be a whole number", "got 1e+19"]),
        (f"training.batch_size={10**19}", ["training.batch_size must be a whole number of at most", "got 1000"]),
        (f"seed={'9' * 400}", ["seed must be a whole number of at most", "(400 characters)"]),
        (f"training.learning_rate={'9' * 400}", ["training.learning_rate must be a finite number", "999 ..."]),
        (f"seed={'9' * 5000}", ["cannot read 'seed=999", "digits"]),
        (f"seed=0x{'f' * 5000}", ["seed must be a whole number", "got int of too many digits"]),
        (f"seed={'[' * 5000}", ["cannot read 'seed=[[["]),
        ("method.edge_delta.u->v=${x}", ["method.edge_delta", "x"]),
        ("method.rank=1000000000", ["method.rank must be at least 1 and at most 4096, got 1000000000"]),
        ("method.delta=true", ["method.delta must be", "number", "got True"]),
        ("seed=1.5", ["seed must be a whole number", "got 1.5"]),
        ("seed=null", ["seed must be a whole number", "got None"]),
        ("runs_dir=\udcff", ["without NUL and lone surrogates", r"'runs_dir=\udcff'"]),
        ("runs_dir=a\0b", ["without NUL and lone surrogates", r"'runs_dir=a\x00b'"]),
        ('runs_dir="a\\0b"', ["runs_dir must be text without NUL", r"'a\x00b'"]),
        ("verbose", ["expected key=value, got 'verbose'"]),
        ("seed=???", ["seed is '???'", "give one"]),
        ("method.edge_delta.u->v=???", ["method.edge_delta.u->v is '???'"]),
        ("training.trainer={a: [1, '???']}", ["training.trainer.a.1 is '???'"]),
    ],
)
def test_a_mistake_is_named_in_one_line(config_dir, argument, said):
    with pytest.raises(ConfigError) as caught:
        load_config([argument], config_dir)
    assert all(text in str(caught.value) for text in said), caught.value
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


PYTHON = [
    (ContextLoraSettings, {"rank": 0}, "method.rank must be at least 1 and at most 4096, got 0"),
    (ContextLoraSettings, {"rank": True}, "method.rank must be a whole number"),
    (ContextLoraSettings, {"gate_init": math.nan}, "method.gate_init must be a finite number"),
    (
        ContextLoraSettings,
        {"edge_delta": {"a->b": math.inf}},
        "method.edge_delta must be a mapping of names to a finite",
    ),
    (ContextLoraSettings, {"delta": True}, "method.delta must be between 0 and 1, or auto: got True"),
    (ContextLoraSettings, {"delta_policy": "x"}, "method.delta_policy must be one of gradient"),
    (TrainingConfig, {"learning_rate": 10**400}, "training.learning_rate must be a finite number"),
    (TrainingConfig, {"batch_size": 10**5000}, "training.batch_size must be a whole number"),
    (TrainingConfig, {"trainer": {"x": [{"y": -math.inf}]}}, "training.trainer must be a mapping"),
    (RunConfig, {"seed": -1}, "seed must be at least 0, got -1"),
    (RunConfig, {"runs_dir": Path("runs")}, "runs_dir must be text"),
    (StageLength, {"steps_per_task": math.nan}, "training.steps_per_task must be a whole number"),
    (OptimizerSettings, {"weight_decay": math.inf}, "training.weight_decay must be a finite number"),
    (OptimizerSettings, {"learning_rate": math.nan}, "training.learning_rate must be a finite number"),
    (AdapterConfig, {"gate_init": math.inf}, "method.gate_init must be a finite number"),
    (TrainerSettings, {"gradient_clip": math.nan}, "training.gradient_clip must be a finite number"),
]


@pytest.mark.parametrize(("kind", "values", "said"), PYTHON)
def test_settings_from_python_are_checked_alike(kind, values, said):
    with pytest.raises(ConfigError, match=f"^{said}") as caught:
        kind(**values)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("key", [entry.name for entry in fields(ContextLoraSettings)])
def test_a_method_has_its_own_settings_and_no_others(config_dir, key):
    """Every setting is taken by ContextLoRA; the message of one that joint does not have names who has it."""
    value = getattr(ContextLoraSettings(), key)
    assert getattr(load_config([f"method.{key}={value}"], config_dir).method, key) == value
    if key in MethodSettings.__dataclass_fields__:
        return
    with pytest.raises(ConfigError) as caught:
        load_config(["method=joint", f"method.{key}={value}"], config_dir)
    assert str(caught.value) == f"unknown key method.{key}: only contextlora has it; leave it out"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {learning_rat: 1}", "did you mean training.learning_rate?"),
        ("a: [", "no readable YAML file"),
        ("a: " + "9" * 5000, "no readable YAML file"),
        ("#" * (2 << 20), "at most 1"),
        ("- 1", "keys"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(config_dir, text, said):
    (config_dir / "method/contextlora.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"method/contextlora\.yaml") as caught:
        load_config([], config_dir)
    assert said in str(caught.value)


def test_a_missing_config_folder_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="--config-dir"):
        load_config([], tmp_path)


def sections(cls=RunConfig):
    yield cls
    for entry in fields(cls):
        default = entry.default_factory() if callable(entry.default_factory) else None
        if is_dataclass(default):
            yield from sections(type(default))


def test_every_setting_is_documented():
    plain = [entry for cls in sections() for entry in fields(cls) if not is_dataclass(getattr(cls(), entry.name))]
    assert len(plain) > 30
    assert [entry.name for entry in plain if len(entry.metadata["text"]) < 10] == []


CHOICES = [path for group in (*GROUPS, "experiment") for path in sorted((CONFIG_DIR / group).glob("*.yaml"))]


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_file_loads_and_says_how_to_use_it(path):
    load_config([f"{path.parent.name}={path.stem}"])
    assert re.match(r"# .*^#   make ", path.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("sweep/*.yaml")), ids=lambda path: path.stem)
def test_every_value_of_a_sweep_is_a_setting(path):
    sweep = yaml.safe_load(path.read_text())
    settings = [word for word in sweep["command"] if "=" in word]
    for key, values in sweep["parameters"].items():
        for value in values["values"]:
            load_config([*settings, f"{key}={value}"])
    assert sweep["command"][-1] == "${args_no_hyphens}"


def test_the_default_is_what_the_dataclasses_say_about_names():
    default, schema = load_config([]), RunConfig()
    assert (default.taskset.name, default.model.name) == (schema.taskset.name, schema.model.name)
    assert default.method.name == type(default.method)().name == "contextlora"


def test_the_queue_is_as_long_as_that_of_a_users_own_script():
    assert RunConfig().gear.queue_batches == QUEUE_BATCHES  # settings may not import it


@pytest.mark.parametrize(
    ("value", "is_taken"),
    [
        ("${oc.env:HOME}", False),
        ("a ${oc.env:HOME,x}", False),
        ("${ oc.env : HOME }", False),
        ("${oc.decode:'${oc.env:HOME}'}", False),
        ("${${runs_dir}:HOME}", False),
        ("${oc.${runs_dir}:HOME}", False),
        ("${runs_dir}: x", True),
        ("${runs_dir}/${seed}", True),
        ("a:b", True),
    ],
)
def test_a_file_may_refer_to_its_own_keys_but_not_read_the_environment(config_dir, tmp_path, value, is_taken):
    """Files of settings and saved configurations come from others; what they copied would be logged."""
    content = OmegaConf.to_yaml({"tracking": {"project": value}, "training": {"callbacks": [{"a": [value]}]}})
    (config_dir / "experiment").mkdir(exist_ok=True)
    (config_dir / "experiment" / "foreign.yaml").write_text(content)
    (tmp_path / "saved.yaml").write_text(content)
    for arguments in ({"arguments": ["experiment=foreign"]}, {"saved": tmp_path / "saved.yaml"}):
        if is_taken:
            found = load_config(config_dir=config_dir, **arguments)
            expected = value.replace("${runs_dir}", found.runs_dir).replace("${seed}", str(found.seed))
            assert found.tracking.project == expected
            continue
        with pytest.raises(ConfigError, match=r"tracking\.project.*command line") as caught:
            load_config(config_dir=config_dir, **arguments)
        assert os.environ["HOME"] not in str(caught.value)


def test_the_command_line_may_read_the_environment(config_dir):
    assert load_config(["tracking.project=${oc.env:HOME}"], config_dir).tracking.project == os.environ["HOME"]


def test_a_device_catalogue_reads_no_environment(tmp_path):
    (tmp_path / "c.yaml").write_text("devices: {a: {memory_bytes: '${oc.env:HOME}'}}")
    with pytest.raises(ConfigError, match=r"devices\.a\.memory_bytes"):
        read_devices(str(tmp_path / "c.yaml"))
    (tmp_path / "c.yaml").write_text("b: 1\na: ${b}")
    assert read_devices(str(tmp_path / "c.yaml"))[0] == {"a": 1, "b": 1}
