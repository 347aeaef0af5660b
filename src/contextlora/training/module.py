# ruff: noqa: D102 - Lightning's hooks say what they are by their names
"""The LightningModule: walks an adapted model through the stages of a method's plan. It knows no method by name.

One `Trainer.fit` runs all stages, and one Lightning epoch is one interval of one stage:

    epoch        0        1     |   2       3     | ...
    stage        0        0     |   1       1     |        begin: statuses, context snapshot, new optimizer
    closes with  validate, keep the best weights, |        end: best weights back, leaves written to the slices
                 checkpoint (after a stage change, so that a resume starts in the new stage)
"""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from contextlora.adapters.config import LANGUAGE_LINEAR
from contextlora.adapters.state import check_finite
from contextlora.backbones.scoring import OptionBatch, option_scores
from contextlora.errors import ConfigError, NotFiniteError, UserError
from contextlora.graph.plan import SliceUse
from contextlora.methods import Method
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.training.checkpoint import FORMAT, KEY, check_identity
from contextlora.training.dropout import share_masks
from contextlora.training.optimizer import OptimizerSettings, build_optimizer
from contextlora.training.staged import Answers, StagedModule
from contextlora.training.stages import Progress, StageLength


class ContextLoraModule(StagedModule):
    """Trains a data module's tasks as a method says, stage by stage; stops its Trainer after the last one.

    Args:
        data: tasks, items and the backbone, whose linear layers get the slices; the Trainer must get the same one.
        method: how the tasks share the LoRA; None takes `ContextLora()`.
        length: of a stage.
        optimizer: settings of each stage's optimizer.
        target_modules: which linear layers are adapted, see `AdapterConfig`.
        seed: of initial values and dropout; data order has its own.
        identity: what a checkpoint must agree on to be this run's, e.g. fingerprints of backbone and configuration.

    Attributes:
        adapted: the model with its adapter; only the adapter trains, and only it is in the state dict.
        plan: slices and stages.
        uses: task -> how it uses the slices now.
        evaluator: answers items with the weights of now.
        progress: how far training has come.
    """

    def __init__(
        self,
        data: TaskSetDataModule,
        method: Method | None = None,
        *,
        length: StageLength | None = None,
        optimizer: OptimizerSettings | None = None,
        target_modules: str = LANGUAGE_LINEAR,
        seed: int = 0,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data, method, length, target_modules, seed)
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.seed, self.identity = seed, dict(identity or {})
        self.masks = share_masks(self.adapted, seed)
        self._stage_is_ready = False
        self._sums: dict[str, list[float]] = {}  # validation: items, right ones, summed loss of each task
        self._epoch_began, self._step_task = 0.0, ""
        self._parts_left: list[OptionBatch] = []  # of the step's batch, still to be read

    def is_finished(self, checkpoint: Mapping[str, Any]) -> bool:
        """Whether a checkpoint was taken after the last stage."""
        return checkpoint[KEY]["progress"]["stage"] >= len(self.plan.stages)

    # ---- a step

    def step_loss(self, batch: OptionBatch, scores: torch.Tensor | None = None) -> torch.Tensor:
        """What a training step minimises: the mean loss of a batch of one task, and the method's penalty.

        Args:
            batch: of the task.
            scores: (B, K) of its options where they are known.
        """
        loss = F.cross_entropy(self._scores(batch) if scores is None else scores, batch.answer)
        self._train_losses.append(loss.detach())
        penalty = self.method.penalty(self.adapted, batch.task)
        return loss if penalty is None else loss + penalty

    def _scores(self, batch: OptionBatch) -> torch.Tensor:
        """(B, K) option log-likelihoods with the slices of the batch's task."""
        with self.adapted.active(self.uses[batch.task], batch.task):
            return option_scores(self.adapted.model, batch)

    def _seed_step(self, batch: OptionBatch | None = None) -> None:
        """Makes the random numbers of a step depend on seed and step, whatever was drawn before."""
        # A stride longer than any run: the steps of one seed are not those of the next.
        torch.manual_seed((self.seed * 1_000_003 + self.trainer.global_step) % 2**63)
        self.masks.step = self.trainer.global_step
        if batch is not None:
            self.masks.rows, self.masks.batch_size = batch.rows, batch.batch_size
            self._step_task = batch.task

    @property
    def latest_loss(self) -> float | None:
        """Mean loss of the latest step, as far as this process knows it."""
        return float(self._train_losses[-1])

    # ---- Lightning hooks, in the order in which they run

    def setup(self, stage: str) -> None:
        if stage != "fit":
            self.test_step()
        if self.trainer.datamodule is not self.data:
            raise ConfigError("the Trainer must get the data module that the module was made with: fit(module, data)")

    def test_step(self, *_: Any) -> None:
        # `setup` calls it; without such a method Lightning would refuse first, and name no remedy.
        asked = self.trainer.state.fn.value
        raise UserError(f"a Trainer can only fit this module, got {asked}: call module.accuracies(split) instead")

    predict_step = test_step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint[KEY]
        check_identity(ours["identity"], self.identity)
        self.progress = Progress(**ours["progress"])
        self.set_uses({task: SliceUse(tuple(own), rest) for task, (own, rest) in self.progress.uses.items()})
        check_finite(ours["best_state"] | ours.get("snapshot", {}), "the checkpoint's values")
        self.best_state, self.answers = ours["best_state"], ours["answers"]
        if not self.finished:
            # Before Lightning makes the optimizer and loads its state: its parameters are this stage's leaves.
            self.adapted.begin_stage(self._stage_uses(), state=ours["stage_state"])
            if ours.get("snapshot"):
                self._restore_snapshot(ours["snapshot"])
        self._stage_is_ready = True

    def _restore_snapshot(self, weights: dict[str, torch.Tensor]) -> None:
        """Makes the answers that several devices had not finished; Lightning loads the weights of now after this."""
        self.adapted.state.write(weights)
        self.answers = self._snapshot_answers(self._untrained())

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], *_: Any, **__: Any) -> None:
        check_finite(state_dict, "the checkpoint's values")
        self.adapted.state.write(state_dict)

    def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        # The base is loaded anew, and the seed gives what has never trained: neither is saved.
        return self.adapted.state.read(self.adapted.state.changed | self.adapted.trained_owners)

    def configure_optimizers(self) -> dict[str, Any]:
        if self.finished:  # by an earlier fit, or in the checkpoint
            raise UserError(
                f"a fit needs a stage that is left, all {self.progress.stage} are done: call module.accuracies(split) "
                "to measure what is trained, or make a new module to train again"
            )
        if not self._stage_is_ready:
            self.begin_stage()
            self._stage_is_ready = True
        self._announce_interval()
        groups, budget = self.adapted.parameter_groups(), self.length.budget(self.stage_tasks)
        optimizer, rates = build_optimizer(
            groups, self.optimizer_settings, self.method.peak_rate, self.progress.optimizer_step, budget
        )
        # Answers that are remembered by the old weights expire.
        optimizer.register_step_post_hook(lambda *_: self.adapted.mark_trained())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        # Lightning trains a model in the mode that it finds, and a backbone is loaded for inference.
        self.adapted.train()
        self.ended_stage = None
        # Every loss once, where several processes sum up theirs.
        kept = self.progress.losses if self.trainer.is_global_zero else []
        self._train_losses = list(torch.tensor(kept, device=self.device))
        self._epoch_began = time.monotonic()

    def on_train_batch_start(self, batch: OptionBatch | list[OptionBatch], batch_idx: int) -> None:
        self._seed_step()

    def training_step(self, batch: OptionBatch | list[OptionBatch], batch_idx: int) -> torch.Tensor:
        if isinstance(batch, list):
            first, *self._parts_left = batch
            return self._share_of_loss(first)
        self._seed_step(batch)
        return self.step_loss(batch)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(loss, *args, **kwargs)
        # Only now: Lightning clears the gradients between training_step and here.
        while self._parts_left:
            super().backward(self._share_of_loss(self._parts_left.pop(0)), *args, **kwargs)

    def _share_of_loss(self, part: OptionBatch) -> torch.Tensor:
        """What a part of a batch adds to the step's loss; all parts together log one loss."""
        self._seed_step(part)
        share = len(part.rows) / part.batch_size
        loss = self.step_loss(part) * share
        logged = self._train_losses.pop() * share
        if part.rows.start:
            logged = logged + self._train_losses.pop()
        self._train_losses.append(logged)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm(gradients)
        # Both at once: each look at a number makes a GPU wait.
        total = norm + self._train_losses[-1] if self._train_losses else norm
        if not math.isfinite(total):
            # Before the optimizer's step: the weights are still those of the last good one.
            raise NotFiniteError(
                f"at step {self.trainer.global_step + 1}, of task {self._step_task}, the gradient's norm is "
                f"{float(norm)} and the loss {self.latest_loss}"
            )
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            clip_grads_with_norm_(
                [p for group in optimizer.param_groups for p in group["params"]], gradient_clip_val, norm
            )
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_end(self, outputs: Any, batch: OptionBatch | list[OptionBatch], batch_idx: int) -> None:
        if self.latest_loss is not None:
            self.log("loss", self.latest_loss, prog_bar=True)
        # Validation prompts hold what a deployed model would have: answers by the weights of now. They must be there
        # before the validation loop starts, because that fetches its first batch ahead of every hook.
        if self.is_last_of_interval(batch_idx) and self.data.context != "none":
            self.data.set_answers(self.answers | self._validation_answers())

    def break_off_interval(self) -> None:
        """After a step: what is saved now goes on behind it, as an epoch of its own to Lightning; for one process."""
        self.progress.losses = torch.stack(self._train_losses).tolist()
        self.progress.seconds += time.monotonic() - self._epoch_began
        self.trainer.fit_loop.epoch_progress.increment_processed()

    def _validation_answers(self) -> Answers:
        return self.evaluator.chain_answers(self.stage_tasks, "validation", most=self.data.validation_items)

    def on_validation_epoch_start(self) -> None:
        self._sums = {task: [0.0, 0.0, 0.0] for task in self.stage_tasks}

    def validation_step(self, batch: OptionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        scores = self._scores(batch)
        sums = self._sums[batch.task]
        sums[0] += len(batch.answer)
        sums[1] += float((scores.argmax(dim=-1) == batch.answer).sum())
        # in float64: the same sum however the items are cut into batches
        sums[2] += float(F.cross_entropy(scores.double(), batch.answer, reduction="sum"))

    def on_validation_epoch_end(self) -> None:
        # Not at the end of the epoch: Lightning calls the callbacks' hooks there first, without these figures.
        if not self.trainer.sanity_checking:
            self._enter_validation({task: (right / n, loss / n) for task, (n, right, loss) in self._sums.items()})

    def on_train_epoch_end(self) -> None:
        if self.progress.stage_is_over(self.length):
            self._end_stage()
            if self.finished:
                self._update_uses()  # the last word: with these uses the run is evaluated and exported
                self.trainer.should_stop = True
            else:
                self.begin_stage()
                # Lightning makes optimizers once a fit; this has it call configure_optimizers for the new leaves.
                self.trainer.strategy.setup_optimizers(self.trainer)
        else:
            self.change_uses()
            if self._stage_feeds_itself:
                self._take_snapshot()
        if not self.finished:
            # Loaders look at it when their next iteration begins.
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
