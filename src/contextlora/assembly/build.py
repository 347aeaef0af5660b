"""The data module and the LightningModule of a run, and what its Trainer gets."""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch

from contextlora.assembly.provenance import identity
from contextlora.backbones.attention import choose_attention
from contextlora.backbones.load import load_backbone
from contextlora.config import RunConfig
from contextlora.gear.execution.ddp import NAME as PEERS_DDP  # importing registers the strategies with Lightning
from contextlora.gear.execution.module import GearedContextLoraModule
from contextlora.gear.execution.strategy import NAME as GEAR
from contextlora.gear.planning.roles import StageRoles
from contextlora.methods import build_method
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.tasksets import load_taskset
from contextlora.training import fit
from contextlora.training.module import ContextLoraModule
from contextlora.training.optimizer import OptimizerSettings
from contextlora.training.stages import StageLength


def build_data(config: RunConfig) -> TaskSetDataModule:
    """Task set and backbone."""
    chosen, model = config.taskset, config.model
    taskset = load_taskset(chosen)
    build_method(config.method).plan(taskset.graph, chosen.scope)  # before the model: a mistake in it shows at once
    backbone = load_backbone(
        model.name,
        dtype=model.dtype,
        device=compute_device(config),
        attn_implementation="eager" if model.attn_implementation == "auto" else model.attn_implementation,
        chat_template=model.chat_template,
        trust_remote_code=model.trust_remote_code,
        quantization=model.quantization,
    )
    # Between keys and values and checkpointed blocks transformers chooses the latter, so options get rows of their own.
    backbone.continues = backbone.continues and not model.gradient_checkpointing
    data = TaskSetDataModule(
        taskset,
        backbone,
        batch_size=config.training.batch_size,
        eval_batch_size=config.evaluation.batch_size,
        seed=config.seed,
        context=chosen.context,
        scope=chosen.scope,
        image=chosen.image,
        answer_format=chosen.answer_format,
        length_normalised=chosen.length_normalised,
        validation_items=config.training.validation_items,
        # auto: chosen once the model is adapted, see commands.train
        micro_batch_size=None if config.training.micro_batch_size == "auto" else config.training.micro_batch_size,
    )
    if model.attn_implementation == "auto":
        _choose_attention(data)
    return data


def _choose_attention(data: TaskSetDataModule) -> None:
    # Each of several processes would measure for itself, and they must not differ.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return
    task, model = data.taskset.graph.tasks[0], data.backbone.model
    items = data.taskset.items(task, "train")[: min(data.batch_size, 8)]
    with suppress(Exception):  # it will happen again in the checks of all prompts and of a forward, which say more
        batch = data.encode_items(task, items, [data.right_context(task, item) for item in items])
        choose_attention(model, batch.to(model.device))


def optimizer_settings(config: RunConfig) -> OptimizerSettings:
    """Of every stage, at the method's own scale of the learning rate."""
    training = config.training
    return OptimizerSettings(
        learning_rate=training.learning_rate * config.method.learning_rate_scale,
        weight_decay=training.weight_decay,
        warmup_share=training.warmup_share,
    )


def build_module(
    config: RunConfig, data: TaskSetDataModule, roles: Sequence[StageRoles] | None = None
) -> ContextLoraModule:
    """The module that trains, alone or in the roles that a plan gives to processes."""
    training = config.training
    kind = ContextLoraModule
    if roles is not None:
        kind = partial(GearedContextLoraModule, roles=roles, queue_batches=config.gear.queue_batches)
    module = kind(
        data,
        build_method(config.method),
        length=StageLength(training.steps_per_task, training.validate_every_steps, training.patience),
        optimizer=optimizer_settings(config),
        target_modules=config.model.target_modules,
        seed=config.seed,
        identity=identity(config, data),
    )
    module.evaluator.max_items = config.evaluation.max_items
    if config.model.gradient_checkpointing:
        module.adapted.checkpoint_activations()
    return module


def trainer_settings(config: RunConfig, num_processes: int = 1) -> fit.TrainerSettings:
    """Where and how Lightning runs, alone or among several processes."""
    training = config.training
    common = {"gradient_clip": training.gradient_clip, "options": training.trainer}
    if num_processes == 1:
        return fit.TrainerSettings(training.accelerator, **common)  # nobody to share with
    # Set by torchrun, and by gear.processes where that starts the processes itself.
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    num_nodes = num_processes // devices
    strategy = GEAR if training.strategy == GEAR else PEERS_DDP
    return fit.TrainerSettings(training.accelerator, strategy, devices=devices, num_nodes=num_nodes, **common)


def compute_device(config: RunConfig) -> torch.device:
    """Where this process computes."""
    device = fit.compute_device(config.training.accelerator)
    local = os.environ.get("LOCAL_RANK")
    # One GPU for each process of this machine.
    return torch.device(device.type, int(local)) if device.type == "cuda" and local else device
