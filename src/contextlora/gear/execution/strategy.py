# ruff: noqa: D102 - Lightning's hooks say what they are by their names
"""`Trainer(strategy="contextgear")`: Lightning's loop on every process, with the executor deciding who computes what.

Every process walks through the same batches, so that global_step, schedules and the end of training agree. A process
that does not train in a step returns a loss without a backward: its gradients stay None, which no optimizer moves by.
The weights reach it when it joins in, before a validation and before a checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from lightning import LightningModule
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor

from contextlora.errors import ConfigError
from contextlora.gear.execution.ddp import PeersDDPStrategy
from contextlora.gear.execution.executor import Shard, StageExecutor
from contextlora.gear.planning.roles import StageRoles
from contextlora.gear.simulation.schedule import QUEUE_BATCHES

NAME = "contextgear"
METHODS = ("gear_stage", "gear_batch", "answer_chains", "make_shard")
PIPELINE_METHODS = ("hidden_item", "run_layers", "layer_parameters")


@dataclass(frozen=True)
class GearStage:
    """A stage, as a module describes it.

    Attributes:
        roles: of all processes, from `gear.planning.roles.stage_roles`.
        num_items: task -> training items.
        num_answers: task -> answers that its prompts need.
        known: (task, item number) -> answers, of a stage that is resumed.
        queue_batches: how far forward-only processes may be ahead.
    """

    roles: StageRoles
    num_items: dict[str, int]
    num_answers: dict[str, int]
    known: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    queue_batches: int = QUEUE_BATCHES


class GearModule(Protocol):
    """What a LightningModule must have besides the usual; its train loader yields the whole batch on every process."""

    def gear_stage(self, num_processes: int) -> GearStage:
        """The stage that begins; called whenever optimizers are set up."""

    def gear_batch(self, batch: Any) -> tuple[str, Sequence[int]]:
        """The task of a batch and the numbers of its items."""

    def answer_chains(self, task: str, numbers: Sequence[int]) -> Tensor:
        """(items, n) option ids of the prerequisites' answers, by the weights of the stage's start.

        `trainer.strategy.executor.forward` runs a pass over them in micro-batches or through a pipeline.
        """

    def make_shard(self, batch: Any, shard: Shard) -> Any:
        """The rows of a shard with the answers in their prompts; `training_step` gets it and returns its mean loss.

        A shard that is too large for the plan comes in several parts, each with a `training_step` of its own.
        """


class PipelinedModule(GearModule, Protocol):
    """What layer pipelines need besides."""

    def hidden_item(self, batch: Any) -> Tensor:
        """The hidden states of one item of what `make_shard` made, (T, h), as a meta tensor."""

    def run_layers(self, batch: Any, layers: slice, hidden: Tensor | None) -> Tensor:
        """In `training_step`'s place: hidden states (rows, T, h), or the mean loss where `layers` has no stop."""

    def layer_parameters(self, layers: slice) -> Sequence[torch.nn.Parameter]:
        """What trains in these layers; every parameter belongs to one stage."""


class ContextGearStrategy(PeersDDPStrategy):
    """Runs the executor under Lightning; processes are launched as for `ddp`, or by torchrun.

    Attributes:
        executor: of the stage in force.
    """

    executor: StageExecutor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._step: _Step | None = None

    def setup(self, trainer: Trainer) -> None:
        _check(trainer)
        # Lightning may put no sampler of its own in the loader's place: every process walks through all batches.
        trainer._accelerator_connector.use_distributed_sampler = False
        super().setup(trainer)

    def configure_ddp(self) -> None:
        """No wrapper: it would synchronise every step of every process."""

    def setup_optimizers(self, trainer: Trainer) -> None:
        super().setup_optimizers(trainer)
        self.begin_stage()

    def begin_stage(self) -> None:
        """Takes the module's `gear_stage` anew, as after new optimizers; call it when answers start to differ."""
        module, stage = self.lightning_module, self.lightning_module.gear_stage(self.world_size)
        if stage.roles.pipelines:
            _check_methods(module, PIPELINE_METHODS, "layer pipelines need", "set gear.layouts=[data]")
        self.executor = StageExecutor(
            stage.roles,
            self.groups,
            stage.num_items,
            stage.num_answers,
            module.answer_chains,
            self._get_state,
            self._set_state,
            stage.known,
            stage.queue_batches,
            self.root_device,
        )

    # ---- a step

    def training_step(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        shard = self.executor.shard(*self.lightning_module.gear_batch(batch))
        self._step = None if shard is None else _Step(batch, shard, args, kwargs)
        # Lightning wants a loss. A pipeline's forwards and backwards alternate, so that all of them run in `backward`.
        if shard is None or shard.pipeline is not None:
            return torch.zeros((), device=self.root_device)
        return self._part_loss(shard.parts()[0])

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        step = self._step
        if step is None:
            return closure_loss
        if step.shard.pipeline is not None:
            self._backward_in_pipeline()
            return closure_loss
        closure_loss = super().backward(closure_loss, *args, **kwargs)
        # Only now: Lightning clears the gradients between training_step and here.
        for part in step.shard.parts()[1:]:
            loss = self._part_loss(part)
            super().backward(loss["loss"] if isinstance(loss, dict) else loss, *args, **kwargs)
        self.executor.reduce(self._parameters())
        return closure_loss

    def _part_loss(self, part: Shard) -> Any:
        """What the module returns for a micro-batch, weighted."""
        step = self._step
        batch = self.batch_to_device(self.lightning_module.make_shard(step.batch, part))
        loss = super().training_step(batch, *step.args, **step.kwargs)
        if part.weight == 1:
            return loss
        return {**loss, "loss": loss["loss"] * part.weight} if isinstance(loss, dict) else loss * part.weight

    def _backward_in_pipeline(self) -> None:
        module, step = self.lightning_module, self._step

        def run(part: Shard, layers: slice, hidden: Tensor | None) -> Tensor:
            return module.run_layers(self.batch_to_device(module.make_shard(step.batch, part)), layers, hidden)

        item = module.hidden_item(module.make_shard(step.batch, step.shard.parts()[0]))
        self.executor.backward(step.shard, run, item)
        clip = module.trainer.gradient_clip_val
        if clip and module.trainer.gradient_clip_algorithm in (None, "norm"):
            # Lightning clips too, but knows this stage's gradients only; after this there is nothing left to clip.
            self.executor.clip(self._parameters(), clip)

    # ---- where every process must have the weights of now

    def share_weights(self) -> None:
        """Gives every process the trained weights and all answers; all processes must call it together."""
        self.executor.share_state()
        self.executor.collect()

    def on_validation_start(self) -> None:
        if hasattr(self, "executor"):  # not in Trainer.validate
            self.share_weights()
        super().on_validation_start()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        if hasattr(self, "executor"):
            # Every process comes here: Lightning collects a checkpoint on all of them, and process 0 writes it.
            self.share_weights()
        return super().lightning_module_state_dict()

    def on_train_end(self) -> None:
        self.share_weights()
        super().on_train_end()

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]

    def _get_state(self, layers: slice | None = None) -> list[dict[str, Any]]:
        """Of each optimizer: weights, and state by the number of the parameter; of some layers' parameters only."""
        chosen = self._parameters() if layers is None else self.lightning_module.layer_parameters(layers)
        ours, found = {id(parameter) for parameter in chosen}, []
        for optimizer in self.optimizers:
            # In the order by which `optimizer.state_dict` numbers them.
            numbered = enumerate(p for group in optimizer.param_groups for p in group["params"])
            weights, state = {n: p.detach() for n, p in numbered if id(p) in ours}, optimizer.state_dict()
            state["state"] = {n: value for n, value in state["state"].items() if n in weights}
            found.append({"weights": weights, **state})
        return found

    def _set_state(self, found: list[dict[str, Any]]) -> None:
        for optimizer, part in zip(self.optimizers, found, strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            with torch.no_grad():
                for number, value in part["weights"].items():
                    parameters[number].copy_(value)
            # Of a pipeline the stages' parts come one after another: what an earlier one brought stays.
            state = optimizer.state_dict()["state"] | part["state"]
            optimizer.load_state_dict({"state": state, "param_groups": part["param_groups"]})


@dataclass(frozen=True)
class _Step:
    """A step that this process takes part in, with the further arguments of `training_step`."""

    batch: Any
    shard: Shard
    args: tuple
    kwargs: dict[str, Any]


def _check(trainer: Trainer) -> None:
    """Refuses what the strategy cannot run.

    Raises:
        ConfigError: names it.
    """
    module: LightningModule = trainer.lightning_module
    _check_methods(module, METHODS, "strategy=contextgear needs", "use ddp")
    if not module.automatic_optimization or trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            f"strategy=contextgear needs automatic optimization without accumulation: {type(module).__name__} has "
            f"automatic_optimization={module.automatic_optimization}, the trainer accumulate_grad_batches="
            f"{trainer.accumulate_grad_batches}; change them or use ddp."
        )


def _check_methods(module: LightningModule, methods: Sequence[str], who: str, otherwise: str) -> None:
    missing = [name for name in methods if not callable(getattr(module, name, None))]
    if missing:
        raise ConfigError(
            f"{who} a module with the methods {', '.join(methods)}: {type(module).__name__} lacks "
            f"{', '.join(missing)}; add them (contextlora.gear.execution.strategy says what they do) or {otherwise}."
        )


StrategyRegistry.register(NAME, ContextGearStrategy, description="ContextGear: planned roles of devices")
