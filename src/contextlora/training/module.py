"""The LightningModule: walks an adapted model through the stages of a training plan. It knows no method by name.

One `Trainer.fit` runs all stages, and one Lightning epoch is one interval of one stage:

    epoch        0        1     |   2       3     | ...
    stage        0        0     |   1       1     |        begin: statuses, context snapshot, new optimizer
    closes with  validate, keep the best weights, |        end: best weights back, leaves written to the slices
                 checkpoint (after a stage change, so that a resume starts in the new stage)
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
import torch.nn.functional as F

from contextlora.adapters.model import AdaptedModel
from contextlora.backbones.scoring import OptionBatch, option_scores
from contextlora.graph.plan import TrainingPlan
from contextlora.training.checkpoint import FORMAT, KEY, CheckpointError
from contextlora.training.optimizer import OptimizerSettings, build_optimizer
from contextlora.training.stages import Progress, Schedule

Answers = dict[tuple[str, str], str]  # (task, scene) -> predicted word


class ContextLoraModule(lightning.LightningModule):
    """Trains the stages of a plan.

    Args:
        adapted: the model with its adapter; only the adapter trains, and only it is in the state dict.
        plan: slices, their use by each task, and the stages.
        schedule: length of a stage.
        optimizer: settings of each stage's optimizer.
        predict: (tasks, split) -> the predicted answers of these tasks' prerequisites by the current weights, or None
            where the prompts hold no predicted answers.
        seed: of dropout; data order has its own.
        identity: what a checkpoint must agree on to be this run's, e.g. fingerprints of backbone and configuration.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        plan: TrainingPlan,
        schedule: Schedule,
        optimizer: OptimizerSettings,
        predict: Callable[[Sequence[str], str], Answers] | None,
        seed: int,
        identity: dict[str, str],
    ) -> None:
        super().__init__()
        self.adapted, self.plan, self.schedule = adapted, plan, schedule
        self.optimizer_settings, self.predict_answers = optimizer, predict
        self.seed, self.identity = seed, identity
        self.progress = Progress()
        self.best_state: dict[str, torch.Tensor] = {}
        self.ended_stage: int | None = None  # the stage that the last interval closed, if it closed one
        self._stage_state: dict[str, Any] | None = None
        self._validation: dict[str, list[tuple[int, float, float]]] = {}
        self._interval_began = time.monotonic()

    @property
    def finished(self) -> bool:
        return self.progress.stage >= len(self.plan.stages)

    @property
    def stage_tasks(self) -> tuple[str, ...]:
        return () if self.finished else self.plan.stages[self.progress.stage]

    # ---- stages

    def begin_stage(self, state: dict[str, Any] | None = None) -> None:
        """Makes the stage's trainable leaves; `state` is the frozen selection of a stage that is being resumed."""
        uses = {task: self.plan.uses[task] for task in self.stage_tasks}
        self.adapted.begin_stage(uses, state=state)
        self._stage_state = self.adapted.stage_state()

    def _close_interval(self) -> None:
        """Enters the validation, and moves on to the next stage when this one is over."""
        per_task = {task: _mean(rows) for task, rows in self._validation.items()}
        accuracy = sum(row[0] for row in per_task.values()) / len(per_task)
        loss = sum(row[1] for row in per_task.values()) / len(per_task)
        steps = self.schedule.interval_steps(self.stage_tasks, self.progress.interval)
        if self.progress.record(steps, accuracy, loss):
            self.best_state = self.adapted.adapter_state()
        row = {"stage": self.progress.stage, "interval": self.progress.interval, "step": self.progress.total_steps}
        row |= {"accuracy": accuracy, "loss": loss}
        row |= {f"accuracy/{task}": value[0] for task, value in per_task.items()}
        row |= {f"loss/{task}": value[1] for task, value in per_task.items()}
        self.progress.history.append(row)
        self.progress.seconds += time.monotonic() - self._interval_began
        self._interval_began = time.monotonic()

    def _end_stage(self) -> None:
        self.adapted.load_adapter_state(self.best_state)
        self.adapted.end_stage()
        self.ended_stage = self.progress.stage
        self.progress.next_stage()
        self.best_state = {}

    # ---- Lightning hooks

    def configure_optimizers(self) -> Any:
        if self._stage_state is None:
            self.begin_stage()
        groups = self.adapted.parameter_groups()
        optimizer, schedule = build_optimizer(groups, self.optimizer_settings, self.schedule.budget(self.stage_tasks))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        self.ended_stage = None
        self._interval_began = time.monotonic()

    def on_train_batch_start(self, batch: OptionBatch, batch_idx: int) -> None:
        # Seeded for each step: what else draws random numbers (a DataLoader does when it starts) differs on a resume.
        torch.manual_seed((self.seed * 1_000_003 + self.trainer.global_step) % 2**63)

    def training_step(self, batch: OptionBatch, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self._scores(batch), batch.answer)
        self.log("train_loss", loss, batch_size=len(batch.answer))
        return loss

    def on_validation_epoch_start(self) -> None:
        self._validation = {task: [] for task in self.stage_tasks}

    def validation_step(self, batch: OptionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        scores = self._scores(batch)
        correct = float((scores.argmax(dim=-1) == batch.answer).sum())
        loss = float(F.cross_entropy(scores, batch.answer, reduction="sum"))
        self._validation[batch.task].append((len(batch.answer), correct, loss))

    def on_train_epoch_end(self) -> None:
        self._close_interval()
        if not self.progress.stage_is_over(self.schedule, self.stage_tasks):
            return
        self._end_stage()
        if self.finished:
            self.trainer.should_stop = True
            return
        self.begin_stage()
        self.trainer.strategy.setup_optimizers(self.trainer)

    def _scores(self, batch: OptionBatch) -> torch.Tensor:
        """(B, K) option log-likelihoods with the slices of the batch's task."""
        with self.adapted.active(self.plan.uses[batch.task], batch.task):
            return option_scores(self.adapted.model, batch)


def _mean(rows: list[tuple[int, float, float]]) -> tuple[float, float]:
    """(accuracy, loss) from (items, number correct, summed loss) of each batch."""
    num_items = sum(row[0] for row in rows)
    if not num_items:
        return 0.0, math.inf
    return sum(row[1] for row in rows) / num_items, sum(row[2] for row in rows) / num_items
