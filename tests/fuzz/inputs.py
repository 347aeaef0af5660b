"""What commands are fuzzed with: kinds of input, each a function (working directory, random generator) -> a command.

The working directory is as `prepare` leaves it; what a function does to it is its input, and the second thing that it
returns says what that is.
"""

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from contextlora import cli
from contextlora.config import CONFIG_DIR, describe_settings
from contextlora.methods import METHODS
from contextlora.tasks.taskset import TaskSet, write_taskset
from contextlora.training.checkpoint import AtomicCheckpointIO
from contextlora.training.fit import OWN_OPTIONS

from .mutations import TEXTS, mutate_file, mutate_text, odd_text

WRITTEN = ("runs", "data")  # in the working directory
BASE = ("taskset=tasks/tiny", "model=models/llama", "runs_dir=runs", "taskset.data_dir=data")
# Short whatever else an input says, and in one process.
SHORT = ("training.steps_per_task=2", "training.devices=1", "tracking.mode=off", "evaluation.max_items=2", *BASE[2:])
TINY = ("method.rank=2", "method.delta=0.5", "model.dtype=float32", "training.batch_size=4", "training.progress=false")
RUNS = Path("runs/tiny/contextlora")
FINISHED, HALF, TRAINED = (RUNS / name for name in ("finished", "half", "trained"))
CATALOGUE = """\
devices:
  first: {flops_per_s: 1.0e6, memory_bytes: 1.0e8, overhead_s: 0.01}
  second:
    measured: {workload: tiny, forward_flops: 1.0e5, forward_s: 0.1, train_s: 0.3}
    memory_bytes: 1.0e8
link: {bandwidth_bits_per_s: 1.0e4, latency_s: 0.001}
links:
  first - second: {bandwidth_bits_per_s: 1.0e6}
"""
EXPERIMENT = """\
method: contextlora
training: {learning_rate: 0.01, batch_size: 4, trainer: {enable_model_summary: false}}
"""
_OPTIONS = {  # of commands that take a run
    "evaluate": ("--run", str(FINISHED)),
    "export": ("--run", "runs/latest"),
    "resume": ("--run", str(HALF), "--devices", "1"),
    "clean-runs": ("--yes", "runs_dir=runs"),
    "train-": ("--config-dir", "configs"),
}
_DEEPER = (  # with something odd in the place of X
    *(
        f"training.trainer.{name}=X"
        for name in sorted(set(signature(Trainer).parameters) - {*OWN_OPTIONS, "default_root_dir"})
    ),
    "training.callbacks=[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: X}}]",
    "training.callbacks=[{class_path: lightning.pytorch.callbacks.LearningRateMonitor, init_args: {X: X}}]",
    *("training.callbacks=[X]", "training.loggers=[X]", "method.edge_delta={a->c: X}", "method.edge_delta={X: 0.5}"),
    *("gear.layouts=[X]", "model.target_modules=X", "model.attn_implementation=X", "training.accelerator=X"),
)
FORMATS = {"png": {}, "jpg": {}, "gif": {}, "bmp": {}, "tiff": {"compression": "tiff_lzw"}, "webp": {}, "ppm": {}}


class Input(NamedTuple):
    """A command, and what it meets."""

    arguments: list[str]
    what: str


def prepare(folder: Path, taskset: TaskSet, models: dict[str, Path]) -> None:
    """Fills a folder with what inputs begin from; all paths are relative, so that it can be copied."""
    cwd = folder / "cwd"
    (folder / "outside").mkdir(parents=True)
    (folder / "outside" / "file").write_text("{}\n")
    shutil.copytree(taskset.folder, cwd / "tasks" / "tiny")
    for name, source in models.items():
        shutil.copytree(source, cwd / "models" / name)
    (cwd / "models" / "gpt2" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    shutil.copytree(CONFIG_DIR, cwd / "configs")
    (cwd / "configs" / "experiment").mkdir()
    (cwd / "configs" / "experiment" / "own.yaml").write_text(EXPERIMENT)
    (cwd / "pair.yaml").write_text(CATALOGUE)
    (cwd / "data").mkdir()
    _write_pictures(cwd / "tasks" / "pictures", taskset)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        _train(patch)
        # Loads whatever commands need: a forked process that begins with it is faster.
        for name in ("compare", "data_check", "clean_runs", "evaluate", "export", "resume", "ask", "import_"):
            import_module(f"contextlora.commands.{name}")
        for command in (["plan"], ["train", "--dry-run", "taskset=tasks/pictures", "model=models/llava"]):
            assert cli.main([*command[:1], *BASE, "gear.devices=pair.yaml", *command[1:]]) == 0
        shutil.rmtree("runs/plans")


def _train(patch: pytest.MonkeyPatch) -> None:
    """A finished run, one that ended after its second checkpoint, and one that ended after all training."""
    train, save, saved = ["train", *BASE, *TINY, *SHORT], AtomicCheckpointIO.save_checkpoint, []
    assert cli.main(train) == 0
    next(RUNS.iterdir()).rename(FINISHED)

    def save_twice(*given: object, **named: object) -> None:
        save(*given, **named)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_twice)
    assert cli.main([*train, "seed=1"]) == 130
    next(path for path in RUNS.iterdir() if path.name != FINISHED.name).rename(HALF)
    shutil.copytree(FINISHED, TRAINED)
    (TRAINED / "results.json").unlink()
    (TRAINED / "status.json").write_text('{"state": "interrupted", "trained": true}\n')
    Path("runs/latest").unlink()
    Path("runs/latest").symlink_to(FINISHED.relative_to("runs"))


def _write_pictures(folder: Path, taskset: TaskSet) -> None:
    """A task set whose items show images of every format."""
    rng, names = random.Random(0), [f"images/{ending}.{ending}" for ending in FORMATS]
    (folder / "images").mkdir(parents=True)
    for name, options in zip(names, FORMATS.values(), strict=True):
        Image.frombytes("RGB", (16, 16), rng.randbytes(768)).save(folder / name, **options)
    items = {
        key: [replace(item, image=name) for item, name in zip(items, names, strict=False)]
        for key, items in taskset.splits.items()
    }
    write_taskset(folder, "pictures", taskset.tasks.values(), items)


def mutate_some(paths: list[Path], rng: random.Random) -> str:
    """Changes one file, sometimes two."""
    chosen = rng.sample(paths, min(len(paths), rng.choice((1, 1, 1, 2))))
    # One may have gone with the other.
    return "; ".join(f"{path}: {mutate_file(path.absolute(), rng)}" for path in chosen if path.exists())


def arguments(rng: random.Random) -> Input:
    settings = {"taskset": "tasks/tiny", "method": "joint", "model": "models/gpt2", "experiment": "own"}
    settings |= {key: default for key, default, text in describe_settings() if text}
    key = rng.choice([key for key in settings if key not in ("runs_dir", "taskset.data_dir")])
    own = key.removeprefix("method.")  # of some methods only
    methods = [name for name, method in METHODS.items() if own == key or own in method.Settings.__dataclass_fields__]
    command = rng.choice(["train --dry-run"] * 8 + ["train", "plan", "compare", "data-check"] * 3 + list(_OPTIONS))
    options = list(_OPTIONS.get(command, ("--config-dir", "configs")))
    given = [f"method={rng.choice(methods)}", f"{key}={settings[key]}"]
    place = rng.choice((given, given, given, given, options))
    place[1:] = [mutate_text(place[1], rng), *place[2:]]
    if rng.random() < 0.15:
        command, options, given = "train", [], [rng.choice(_DEEPER).replace("X", odd_text(rng))]
    last = [] if command == "resume" else [*given, *(SHORT if command == "train" else BASE[2:])]
    first = [] if command in _OPTIONS else [*BASE, *(TINY[2:] if command == "train" else ())]
    return Input([*command.split(" "), *options, *first, *last], "nothing but the arguments")


def configs(rng: random.Random) -> Input:
    files = [Path("configs") / name for name in ("default", "method/contextlora", "experiment/own", "experiment/own")]
    what = mutate_some([path.with_suffix(".yaml") for path in dict.fromkeys(files)], rng)
    command = rng.choice(("train --dry-run", "train --dry-run", "plan", "data-check", "compare"))
    # A model of a file's own, but not the 90 MB of the bundled one.
    return Input([*command.split(" "), "--config-dir", "configs", "experiment=own", *BASE], what)


def task_sets(rng: random.Random) -> Input:
    folder = Path("tasks/tiny")
    lines = sorted(folder.rglob("*.jsonl"))
    whole = rng.random() < 0.4
    changed = rng.choice(([folder / "taskset.yaml"], lines, [folder / "train", folder / "taskset.yaml"]))
    what = _rename(folder, rng) if whole else mutate_some(changed, rng)
    command = rng.choice(("train", "train --dry-run", "plan") if whole else (*["data-check", "plan"] * 2, *_OPTIONS))
    last = _OPTIONS.get(command, (*BASE, *TINY, *SHORT))
    return Input([*command.split(" "), *last], what)


def _rename(folder: Path, rng: random.Random) -> str:
    """Calls a task or an answer something else in all files of a task set, so that it may still be a right one."""
    old, new = rng.choice(("a", "c", "red")), rng.choice(TEXTS)
    description = folder / "taskset.yaml"
    tree = yaml.safe_load(description.read_text())
    entries = {name: {**task, "prerequisites": [*task["prerequisites"]]} for name, task in tree["tasks"].items()}
    tree = json.loads(json.dumps({**tree, "tasks": entries}).replace(json.dumps(old), json.dumps(new)))
    description.write_bytes(yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass"))
    for path in sorted(folder.rglob("*.jsonl")):
        path.write_text(path.read_text().replace(json.dumps(old), json.dumps(new)))
        if path.stem == old:
            with suppress(ValueError, OSError):  # no name of a file
                path.rename(path.with_name(f"{new}.jsonl"))
    return f"{old} -> {ascii(new)[:80]}"


def catalogues(rng: random.Random) -> Input:
    return Input(["plan", *BASE, "gear.devices=pair.yaml"], mutate_some([Path("pair.yaml")], rng))


def models(rng: random.Random) -> Input:
    name = rng.choice(("llama", "llama", "llava", "gpt2"))
    what = mutate_some(sorted(Path("models", name).iterdir()), rng)
    tasks = "pictures" if name == "llava" else "tiny"
    command = rng.choice(("train --dry-run", "train --dry-run", "train", "plan"))
    chosen = (*TINY, *SHORT, f"taskset=tasks/{tasks}", f"model=models/{name}")
    return Input([*command.split(" "), *chosen], what)


def run_files(rng: random.Random) -> Input:
    command = rng.choice(("compare", "compare", "evaluate", "export", "resume", "resume", "clean-runs"))
    run = rng.choice((HALF, HALF, TRAINED)) if command == "resume" else FINISHED
    files = [path for path in sorted(run.rglob("*")) if path.parent.name in (run.name, "checkpoints")]
    files += [Path("runs/latest"), Path("runs/.runs")] if rng.random() < 0.2 else []
    what = mutate_some([path for path in files if path.suffix or path.name in (".order", "latest", "checkpoints")], rng)
    named = rng.random() < 0.7
    last = ["--run", str(run)] if named and command not in ("compare", "clean-runs") else []
    last += [*BASE, *TINY, *SHORT] if command == "compare" else []
    return Input([command, *last, *(BASE if command == "evaluate" and named else [])], what)


def images(rng: random.Random) -> Input:
    what = mutate_some(sorted(Path("tasks/pictures/images").iterdir()), rng)
    command = rng.choice(("data-check", "train --dry-run", "plan"))
    return Input([*command.split(" "), *BASE, "taskset=tasks/pictures", "model=models/llava"], what)


KINDS: dict[str, Callable[[random.Random], Input]] = {
    function.__name__.replace("_", "-"): function
    for function in (arguments, configs, task_sets, catalogues, models, run_files, images)
}
