"""What a run is made of, for its results, its checkpoints and its peers."""

import hashlib
import platform
import resource
import sys
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch

from contextlora.config import RunConfig
from contextlora.evaluation.compare import flatten
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.taskset import TaskSet
from contextlora.training.module import ContextLoraModule

# Of a machine or its terminal: they change nothing that peers must share.
LOCAL_SETTINGS = ("runs_dir", "taskset.data_dir", "training.devices", "training.progress")
PACKAGES = ("torch", "lightning", "transformers", "peft")


def taskset_fingerprint(taskset: TaskSet) -> str:
    """16 hex digits from everything in the items that reaches a prompt, images by their names."""
    digest = hashlib.sha256()
    for (task, split), items in sorted(taskset.splits.items()):
        for item in items:
            shown = (item.scene, item.question, item.options, item.answer, item.image, item.image_text)
            digest.update(repr((task, split, *shown, sorted(item.prerequisites.items()))).encode())
    return digest.hexdigest()[:16]


def identity(data: TaskSetDataModule) -> dict[str, str]:
    """What a checkpoint must agree on to be this run's."""
    return {
        "task set": taskset_fingerprint(data.taskset),
        "backbone": data.backbone.fingerprint,
        "dtype": str(data.backbone.model.dtype),  # model.dtype=auto depends on the processor
    }


def facts(config: RunConfig, data: TaskSetDataModule) -> dict[str, str]:
    """What all processes of a run must agree on; folders may differ from machine to machine."""
    settings = {key: str(value) for key, value in flatten(asdict(config)).items() if key not in LOCAL_SETTINGS}
    return _versions() | settings | identity(data)


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


def peak_memory_bytes() -> int:
    """Most resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
