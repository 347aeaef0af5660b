"""Builds the parts of a run from its configuration: task set, backbone, plan, adapted model, evaluator, trainer."""

import hashlib
import os
import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from contextlora.adapters import AdaptedModel, AdapterConfig, load_slices, save_slices
from contextlora.backbones.load import Backbone, load_backbone
from contextlora.backbones.scoring import encode
from contextlora.config import RunConfig
from contextlora.evaluation.compare import flatten
from contextlora.evaluation.evaluate import Evaluator
from contextlora.gear.execution.module import GearedContextLoraModule
from contextlora.gear.execution.peers import Peers
from contextlora.gear.execution.strategy import NAME as GEAR
from contextlora.gear.planning.roles import StageRoles
from contextlora.graph import TrainingPlan
from contextlora.methods import build_plan
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.prompts import resolve_image_view
from contextlora.tasks.taskset import TaskSet
from contextlora.tasks.tasksets import load_taskset
from contextlora.training.fit import TrainerSettings
from contextlora.training.module import ContextLoraModule
from contextlora.training.optimizer import OptimizerSettings
from contextlora.training.stages import Schedule

LOCAL_SETTINGS = ("runs_dir", "taskset.data_dir", "training.devices", "training.progress")
PACKAGES = ("torch", "lightning", "transformers", "peft")


@dataclass
class Parts:
    """A run's parts; `run_parts` makes them from plain settings."""

    taskset: TaskSet
    backbone: Backbone
    plan: TrainingPlan
    adapted: AdaptedModel
    data: TaskSetDataModule
    evaluator: Evaluator

    def batch_width(self, task: str, batch_size: int) -> int:
        """Columns of a first batch with the right answers in it, image included."""
        items = self.taskset.items(task, "train")[:batch_size]
        return self.data.encode_items(task, items, [item.prerequisites for item in items]).inputs["input_ids"].shape[1]

    def save_stage(self, folder: Path, stage: int) -> None:
        """Keeps the weights as they are after a stage."""
        save_slices(self.adapted, stage_file(folder, stage), self.backbone.fingerprint)

    def load_stage(self, folder: Path, stage: int) -> None:
        """Takes over what `save_stage` kept."""
        load_slices(self.adapted, stage_file(folder, stage), self.backbone.fingerprint)


def stage_file(folder: Path, stage: int) -> Path:
    """Where a stage's weights lie among the checkpoints."""
    return folder / f"stage-{stage + 1}.safetensors"


def run_parts(config: RunConfig) -> Parts:
    """Loads and builds everything that training and evaluation share."""
    taskset = load_taskset(config.taskset)
    plan = build_plan(taskset.graph, config.method)  # before the model: a mistake in it shows at once
    model = config.model
    backbone = load_backbone(
        model.name,
        dtype=model.dtype,
        device=compute_device(config),
        attn_implementation=model.attn_implementation,
        chat_template=model.chat_template,
    )
    adapted = AdaptedModel(backbone.model, plan.partition, adapter_config(config), plan.edges)
    data = data_module(config, taskset, backbone, plan)
    evaluation, scope = config.evaluation, config.method.scope
    batch_size, max_items = evaluation.batch_size, evaluation.max_items
    evaluator = Evaluator(adapted, plan, taskset, data.encode_items, batch_size, scope, max_items)
    return Parts(taskset, backbone, plan, adapted, data, evaluator)


def data_module(config: RunConfig, taskset: TaskSet, backbone: Backbone, plan: TrainingPlan) -> TaskSetDataModule:
    """Batches of all stages, encoded for the backbone."""
    chosen = config.taskset
    return TaskSetDataModule(
        taskset,
        partial(encode, backbone),
        plan.stages,
        batch_size=config.training.batch_size,
        eval_batch_size=config.evaluation.batch_size,
        seed=config.seed,
        # With gold context too the module hands over all answers: right ones to train, predicted ones to validate.
        context="none" if chosen.context == "none" else "predicted",
        scope=config.method.scope,
        image=resolve_image_view(chosen.image, backbone.is_multimodal),
        answer_format=chosen.answer_format,
    )


def taskset_fingerprint(taskset: TaskSet) -> str:
    """16 hex digits from everything in the items that reaches a prompt, images by their names."""
    digest = hashlib.sha256()
    for (task, split), items in sorted(taskset.splits.items()):
        for item in items:
            shown = (item.scene, item.question, item.options, item.answer, item.image, item.image_text)
            digest.update(repr((task, split, *shown, sorted(item.prerequisites.items()))).encode())
    return digest.hexdigest()[:16]


def adapter_config(config: RunConfig) -> AdapterConfig:
    """What all slices share."""
    method = config.method
    return AdapterConfig(
        alpha=method.alpha,
        r_reference=method.rank,
        dropout=method.dropout,
        target_modules=config.model.target_modules,
        gated=method.variant == "gated",
        gate_init=method.gate_init,
        frozen_policy=method.frozen_policy,
        seed=config.seed,
    )


def trainer_settings(config: RunConfig, peers: Peers | None = None) -> TrainerSettings:
    """Where and how Lightning runs, alone or among peers."""
    training = config.training
    if peers is None:
        strategy = "auto" if training.strategy == GEAR else training.strategy
        return TrainerSettings(training.accelerator, strategy, training.gradient_clip)
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return TrainerSettings(training.accelerator, GEAR, training.gradient_clip, devices, peers.size // devices)


def compute_device(config: RunConfig) -> torch.device:
    """Where this process computes."""
    device = trainer_settings(config).device
    local = os.environ.get("LOCAL_RANK")
    return torch.device(device.type, int(local)) if device.type == "cuda" and local else device


def facts(config: RunConfig, parts: Parts) -> dict[str, str]:
    """What all devices of a run must agree on; folders may differ from machine to machine."""
    settings = {key: str(value) for key, value in flatten(asdict(config)).items() if key not in LOCAL_SETTINGS}
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return versions | settings | identity(parts)


def identity(parts: Parts) -> dict[str, str]:
    """What a checkpoint must agree on to be this run's."""
    return {
        "task set": taskset_fingerprint(parts.taskset),
        "backbone": parts.backbone.fingerprint,
        "dtype": str(parts.backbone.model.dtype),
    }


def training_module(config: RunConfig, parts: Parts, roles: Sequence[StageRoles] | None = None) -> ContextLoraModule:
    """The LightningModule that trains the parts, alone or in the roles that a plan gives to ranks."""
    training = config.training
    schedule = Schedule(training.steps_per_task, training.validate_every_steps, training.patience)
    optimizer = OptimizerSettings(
        learning_rate=training.learning_rate * config.method.learning_rate_scale,
        open_learning_rate_scale=training.open_learning_rate_scale,
        gate_learning_rate=training.gate_learning_rate,
        weight_decay=training.weight_decay,
        warmup_share=training.warmup_share,
    )
    kind = ContextLoraModule
    if roles is not None:
        choices, queue = parts.evaluator.chain_choices, config.gear.queue_batches
        kind = partial(GearedContextLoraModule, roles=roles, chain_choices=choices, queue_batches=queue)
    return kind(
        parts.adapted,
        parts.plan,
        schedule,
        optimizer,
        context=config.taskset.context,
        predict=parts.evaluator.chain_answers,
        seed=config.seed,
        identity=identity(parts),
    )


def describe(config: RunConfig, parts: Parts) -> dict[str, Any]:
    """The keys of results.json that say what was run, and where."""
    return {
        "taskset": parts.taskset.name,
        "method": config.method.name,
        "seed": config.seed,
        "delta": config.method.delta,
        "context": config.taskset.context,
        "trainable_parameters": parts.adapted.num_parameters(),
        "backbone": {"name": config.model.name, "fingerprint": parts.backbone.fingerprint},
        "stages": parts.plan.stages,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "dtype": str(parts.backbone.model.dtype).removeprefix("torch."),
        },
    }


def peak_memory_bytes() -> int:
    """Most resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
