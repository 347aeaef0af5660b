"""Builds the parts of a run from its configuration: task set, backbone, plan, adapted model, evaluator, trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from contextlora.adapters import AdaptedModel, AdapterConfig, load_slices, save_slices
from contextlora.backbones.load import Backbone, load_backbone
from contextlora.backbones.scoring import OptionBatch, encode
from contextlora.config import RunConfig
from contextlora.errors import ConfigError
from contextlora.evaluation.evaluate import Evaluator
from contextlora.graph import TrainingPlan
from contextlora.methods import build_plan
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.prompts import render, resolve_image_view
from contextlora.tasks.task import Item
from contextlora.tasks.taskset import TaskSet
from contextlora.tasks.tasksets import resolve_taskset
from contextlora.training.module import ContextLoraModule
from contextlora.training.optimizer import OptimizerSettings
from contextlora.training.stages import Schedule


@dataclass
class Parts:
    """A run's parts; `run_parts` makes them from plain settings."""

    taskset: TaskSet
    backbone: Backbone
    plan: TrainingPlan
    adapted: AdaptedModel
    evaluator: Evaluator

    def save_stage(self, folder: Path, stage: int) -> None:
        """Keeps the weights as they are after a stage."""
        save_slices(self.adapted, stage_file(folder, stage), self.backbone.fingerprint)

    def load_stage(self, folder: Path, stage: int) -> None:
        load_slices(self.adapted, stage_file(folder, stage), self.backbone.fingerprint)


def stage_file(folder: Path, stage: int) -> Path:
    return folder / f"stage-{stage + 1}.safetensors"


def run_parts(config: RunConfig) -> Parts:
    """Loads and builds everything that training and evaluation share."""
    taskset = load_taskset(config)
    plan = build_plan(taskset.graph, config.method)  # before the model: a mistake in it shows at once
    model = config.model
    backbone = load_backbone(
        model.name,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
        chat_template=model.chat_template,
    )
    adapted = AdaptedModel(backbone.model, plan.partition, adapter_config(config), plan.edges)
    prompts = PromptWriter(taskset, backbone, config.taskset.image, config.taskset.answer_format)
    evaluation = config.evaluation
    evaluator = Evaluator(adapted, plan, taskset, prompts, evaluation.batch_size, evaluation.max_items)
    return Parts(taskset, backbone, plan, adapted, evaluator)


def load_taskset(config: RunConfig) -> TaskSet:
    """The configured task set, generated where it is not there yet."""
    chosen = config.taskset
    return resolve_taskset(chosen.name, chosen.data_dir, chosen.seed, chosen.regime)


def adapter_config(config: RunConfig) -> AdapterConfig:
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


class PromptWriter:
    """Renders and encodes items; what `Evaluator` calls its `PromptEncoder`."""

    def __init__(self, taskset: TaskSet, backbone: Backbone, image: str, answer_format: str) -> None:
        self.taskset, self.backbone, self.answer_format = taskset, backbone, answer_format
        self.image = resolve_image_view(image, backbone.is_multimodal)

    def __call__(self, task: str, items: Sequence[Item], contexts: Sequence[Mapping[str, str]] | None) -> OptionBatch:
        prompts = [
            render(
                item,
                self.taskset.tasks[task],
                contexts[index] if contexts else None,
                template=self.taskset.template,
                image=self.image,
                answer_format=self.answer_format,
                folder=self.taskset.folder,
            )
            for index, item in enumerate(items)
        ]
        return encode(self.backbone, prompts)


def training_parts(config: RunConfig, parts: Parts) -> tuple[ContextLoraModule, TaskSetDataModule]:
    """The LightningModule and its data."""
    training = config.training
    if training.devices != 1:
        raise ConfigError(f"training.devices must be 1: got {training.devices}. Training on several is not built yet.")
    schedule = Schedule(training.steps_per_task, training.validate_every_steps, training.patience)
    optimizer = OptimizerSettings(
        learning_rate=training.learning_rate,
        open_learning_rate_scale=training.open_learning_rate_scale,
        gate_learning_rate=training.gate_learning_rate,
        weight_decay=training.weight_decay,
        warmup_share=training.warmup_share,
    )
    module = ContextLoraModule(
        parts.adapted,
        parts.plan,
        schedule,
        optimizer,
        context=config.taskset.context,
        predict=parts.evaluator.chain_answers,
        seed=config.seed,
        identity={"backbone": parts.backbone.fingerprint, "configuration": training_settings(config)},
    )
    return module, TaskSetDataModule()
