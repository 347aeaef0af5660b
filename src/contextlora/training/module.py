# ruff: noqa: D102 - Lightning's hooks say what they are by their names
"""The LightningModule: walks an adapted model through the stages of a training plan. It knows no method by name.

One `Trainer.fit` runs all stages, and one Lightning epoch is one interval of one stage:

    epoch        0        1     |   2       3     | ...
    stage        0        0     |   1       1     |        begin: statuses, context snapshot, new optimizer
    closes with  validate, keep the best weights, |        end: best weights back, leaves written to the slices
                 checkpoint (after a stage change, so that a resume starts in the new stage)
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import lightning
import torch
import torch.nn.functional as F

from contextlora.adapters.model import AdaptedModel
from contextlora.backbones.scoring import OptionBatch, option_scores
from contextlora.graph.plan import TrainingPlan
from contextlora.training.checkpoint import FORMAT, KEY, check_identity
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
        context: the prerequisites' answers in the train prompts: "none", "gold" (right ones) or "predicted" (a snapshot
            taken when the stage begins). Validation prompts hold predicted answers in both of the latter.
        predict: (tasks, split, untrained) -> answers of these tasks' prerequisites by the weights of now, right ones
            for the untrained.
        seed: of dropout; data order has its own.
        identity: what a checkpoint must agree on to be this run's, e.g. fingerprints of backbone and configuration.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        plan: TrainingPlan,
        schedule: Schedule,
        optimizer: OptimizerSettings,
        context: str,
        predict: Callable[[Sequence[str], str, Collection[str]], Answers],
        seed: int,
        identity: dict[str, str],
    ) -> None:
        super().__init__()
        self.adapted, self.plan, self.schedule = adapted, plan, schedule
        self.optimizer_settings, self.context, self.predict = optimizer, context, predict
        self.seed, self.identity = seed, identity
        self.progress = Progress()
        self.best_state: dict[str, torch.Tensor] = {}
        self.ended_stage: int | None = None  # the stage that the last interval closed, if it closed one
        self.answers: Answers = {}  # the snapshot: predicted answers in the train prompts of this stage
        self._stage_is_ready = False
        self._train_losses: list[torch.Tensor] = []
        self._sums: dict[str, list[float]] = {}  # validation: items, right ones, summed loss of each task
        self._epoch_began = 0.0

    @staticmethod
    def is_finished(checkpoint: Mapping[str, Any], plan: TrainingPlan) -> bool:
        """Whether a checkpoint was taken after the last stage."""
        return checkpoint[KEY]["progress"]["stage"] >= len(plan.stages)

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        return self.progress.stage >= len(self.plan.stages)

    @property
    def stage_tasks(self) -> tuple[str, ...]:
        """Tasks of the stage in force; none when all are done."""
        return () if self.finished else self.plan.stages[self.progress.stage]

    # ---- stages

    def begin_stage(self) -> None:
        """Makes the stage's trainable leaves and takes the snapshot of the prerequisites' answers."""
        self.adapted.begin_stage({task: self.plan.uses[task] for task in self.stage_tasks})
        self.best_state = {}
        self._take_snapshot()

    def _take_snapshot(self) -> None:
        """Settles the prerequisites' answers in the train prompts: right ones of tasks that have not trained yet."""
        if self.context == "none":
            return
        self.answers = self._snapshot_answers(self._untrained())

    def _untrained(self) -> set[str]:
        """Tasks whose right answers stand for predicted ones."""
        untrained = set(self.plan.uses)
        if self.context == "predicted":
            untrained.difference_update(*self.plan.stages[: self.progress.stage + (self.progress.interval > 0)])
        return untrained

    def _snapshot_answers(self, untrained: Collection[str]) -> Answers:
        return self.predict(self.stage_tasks, "train", untrained)

    @property
    def _stage_feeds_itself(self) -> bool:
        """Whether a task of the stage trains together with one of its prerequisites, as in one joint stage."""
        return self.context == "predicted" and any(name in self.stage_tasks for name, _ in self.answers)

    def _announce_interval(self) -> None:
        """Tells the data what the next interval trains."""
        steps = [self.schedule.interval_steps(self.stage_tasks, k) for k in range(self.progress.interval + 1)]
        self.trainer.datamodule.set_interval(self.progress.stage, sum(steps[:-1]), steps[-1])
        self.trainer.datamodule.set_predicted(self.answers)

    def _enter_validation(self, rows: Mapping[str, tuple[float, float]]) -> None:
        """Adds a validation to the progress, and keeps the weights if it is the stage's best."""
        accuracy, loss = (sum(row[k] for row in rows.values()) / len(rows) for k in (0, 1))
        progress, stage = self.progress, self.progress.stage
        steps = self.schedule.interval_steps(self.stage_tasks, progress.interval)
        if progress.record(steps, accuracy, loss):
            self.best_state = self.adapted.adapter_state()
        row = {"stage": stage, "interval": progress.interval, "step": progress.total_steps}
        row |= {"train_loss": self._mean_train_loss(), "accuracy": accuracy, "loss": loss}
        row |= {f"accuracy/{task}": value[0] for task, value in rows.items()}
        row |= {f"loss/{task}": value[1] for task, value in rows.items()}
        progress.history.append(row)

    @property
    def step_loss(self) -> float | None:
        """Mean loss of the latest step, as far as this process knows it."""
        return float(self._train_losses[-1])

    def _mean_train_loss(self) -> float:
        return float(torch.stack(self._train_losses).mean())

    def _end_stage(self) -> None:
        self.adapted.load_adapter_state(self.best_state)
        self.adapted.end_stage()
        self.ended_stage = self.progress.stage
        self.progress.next_stage()
        self.best_state, self.answers = {}, {}

    # ---- Lightning hooks, in the order in which they run

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint[KEY]
        check_identity(ours["identity"], self.identity)
        self.progress = Progress(**ours["progress"])
        self.best_state, self.answers = ours["best_state"], ours["answers"]
        if not self.finished:
            uses = {task: self.plan.uses[task] for task in self.stage_tasks}
            self.adapted.begin_stage(uses, state=ours["stage_state"])
            if ours.get("snapshot"):
                self._restore_snapshot(ours["snapshot"])
        self._stage_is_ready = True

    def _restore_snapshot(self, weights: dict[str, torch.Tensor]) -> None:
        """Makes the answers that several devices had not finished; Lightning loads the weights of now after this."""
        self.adapted.load_adapter_state(weights)
        self.answers = self._snapshot_answers(self._untrained())

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], *_: Any, **__: Any) -> None:
        self.adapted.load_adapter_state(state_dict)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return self.adapted.adapter_state()

    def configure_optimizers(self) -> dict[str, Any]:
        if not self._stage_is_ready:
            self.begin_stage()
            self._stage_is_ready = True
        self._announce_interval()
        groups = self.adapted.parameter_groups()
        optimizer, rates = build_optimizer(groups, self.optimizer_settings, self.schedule.budget(self.stage_tasks))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        self.ended_stage = None
        self._train_losses = []
        self._epoch_began = time.monotonic()

    def on_train_batch_start(self, batch: OptionBatch, batch_idx: int) -> None:
        self._seed_step()

    def _seed_step(self) -> None:
        # Seeded for each step: what else draws random numbers (a DataLoader does when it starts) differs on a resume.
        torch.manual_seed((self.seed * 1_000_003 + self.trainer.global_step) % 2**63)

    def training_step(self, batch: OptionBatch, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self._scores(batch), batch.answer)
        self._train_losses.append(loss.detach())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: OptionBatch, batch_idx: int) -> None:
        # Validation prompts hold what a deployed model would have: answers by the weights of now. They must be there
        # before the validation loop starts, because that fetches its first batch ahead of every hook.
        is_last = batch_idx + 1 == self.schedule.interval_steps(self.stage_tasks, self.progress.interval)
        if is_last and self.context != "none":
            self.trainer.datamodule.set_predicted(self.answers | self._validation_answers())

    def _validation_answers(self) -> Answers:
        return self.predict(self.stage_tasks, "validation", ())

    def on_validation_epoch_start(self) -> None:
        self._sums = {task: [0.0, 0.0, 0.0] for task in self.stage_tasks}

    def validation_step(self, batch: OptionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        scores = self._scores(batch)
        sums = self._sums[batch.task]
        sums[0] += len(batch.answer)
        sums[1] += float((scores.argmax(dim=-1) == batch.answer).sum())
        # in float64: the same sum however the items are cut into batches
        sums[2] += float(F.cross_entropy(scores.double(), batch.answer, reduction="sum"))

    def on_train_epoch_end(self) -> None:
        self._enter_validation({task: (right / n, loss / n) for task, (n, right, loss) in self._sums.items()})
        if self.progress.stage_is_over(self.schedule):
            self._end_stage()
            if self.finished:
                self.trainer.should_stop = True
            else:
                self.begin_stage()
                self.trainer.strategy.setup_optimizers(self.trainer)
        elif self._stage_feeds_itself:
            self._take_snapshot()
        if not self.finished:
            self._announce_interval()
        self.progress.seconds += time.monotonic() - self._epoch_began

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = {
            "format": FORMAT,
            "identity": self.identity,
            "progress": self.progress.to_dict(),
            "stage_state": self.adapted.stage_state(),
            "best_state": self.best_state,
            "answers": self.answers,
            "snapshot": {},  # weights of the stage's start, where answers are still to be made by them
        }

    def _scores(self, batch: OptionBatch) -> torch.Tensor:
        """(B, K) option log-likelihoods with the slices of the batch's task."""
        with self.adapted.active(self.plan.uses[batch.task], batch.task, batch.shard):
            return option_scores(self.adapted.model, batch)
