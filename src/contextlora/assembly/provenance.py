"""What a run is made of, for its results, its checkpoints and its peers."""

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from contextlora.config import RunConfig
from contextlora.evaluation.compare import flatten, settings_that_matter
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.taskset import TaskSet
from contextlora.training.module import ContextLoraModule

# Of a machine or its terminal: they change nothing that peers must share.
LOCAL_SETTINGS = ("runs_dir", "taskset.data_dir", "training.devices", "training.progress")
PACKAGES = ("torch", "lightning", "transformers", "peft")


# Say where something lies or runs, or count through the fingerprints: a run may go on with others.
MOVABLE = (
    *("taskset.name", "taskset.train_items", "model.name", "model.dtype", "evaluation.split", "evaluation.max_items"),
    *("training.devices", "training.strategy", "training.accelerator"),
)


def taskset_fingerprint(taskset: TaskSet, splits: Sequence[str] = ("train", "validation")) -> str:
    """16 hex digits from all that reaches a prompt of these splits: template, graph, items, what the images hold.

    The test split is left out by default: it changes no weight, so that an item of it can be mended and the run go on.
    """
    digest = hashlib.sha256(repr(taskset.template).encode())
    digest.update(repr(taskset.as_context).encode() if taskset.as_context else b"")
    for name, task in taskset.tasks.items():
        # Nothing more, where older runs had nothing.
        shown = tuple(one for one in (task.context, task.template, task.as_context) if one is not None)
        digest.update(repr((name, task.prerequisites, *shown)).encode())
    images: dict[str, str] = {}
    # Where a scene has one item of each task, it says itself which belong together.
    several = any(
        len({item.scene for item in items}) < len(items) for key, items in taskset.splits.items() if key[1] in splits
    )
    for (task, split), items in sorted(taskset.splits.items()):
        for item in items if split in splits else ():
            if item.image and item.image not in images:
                images[item.image] = hashlib.sha256((taskset.folder / item.image).read_bytes()).hexdigest()
                digest.update(images[item.image].encode())
            shown = (item.scene, item.question, item.options, item.answer, item.image, item.image_text)
            linked = (item.id, sorted(item.parents.items())) if several else ()
            digest.update(repr((task, split, *shown, sorted(item.prerequisites.items()), *linked)).encode())
    return digest.hexdigest()[:16]


def identity(config: RunConfig, data: TaskSetDataModule) -> dict[str, str]:
    """What a checkpoint must agree on to be this run's."""
    # Callbacks change no result that is compared, but may change how a run goes on.
    own = {"seed": config.seed, "training.callbacks": config.training.callbacks}
    settings = settings_that_matter(flatten(asdict(config))) | own
    return {
        "task set": taskset_fingerprint(data.taskset),
        "backbone": data.backbone.fingerprint,
        **data.backbone.part_fingerprints,
        "dtype": str(data.backbone.model.dtype),  # model.dtype=auto depends on the processor
        **{f"setting {key}": str(value) for key, value in settings.items() if key not in MOVABLE},
    }


def facts(config: RunConfig, data: TaskSetDataModule) -> dict[str, str]:
    """What all processes of a run must agree on; folders may differ from machine to machine."""
    settings = {key: str(value) for key, value in flatten(asdict(config)).items() if key not in LOCAL_SETTINGS}
    tests = {"test split": taskset_fingerprint(data.taskset, ("test",))}
    return _versions() | settings | tests | identity(config, data)


def describe(config: RunConfig, module: ContextLoraModule) -> dict[str, Any]:
    """The keys of results.json that say what was run, and where."""
    data = module.data
    return {
        "taskset": data.taskset.name,
        "method": config.method.name,
        "method_settings": asdict(config.method),
        "seed": config.seed,
        "context": config.taskset.context,
        "deltas": {
            f"{name}->{task}": delta for task, use in module.uses.items() for name, delta in use.prerequisites.items()
        },
        "trainable_parameters": module.adapted.num_parameters(),
        "exports_lora": module.method.exports_lora,
        "backbone": {"name": config.model.name, "fingerprint": data.backbone.fingerprint},
        "stages": module.plan.stages,
        "versions": _versions(),
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "dtype": str(data.backbone.model.dtype).removeprefix("torch."),
        },
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
