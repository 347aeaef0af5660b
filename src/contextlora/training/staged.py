"""Stages: what trains in each, which answers its prompts hold, and how far training has come."""

import math
from collections.abc import Collection, Mapping
from functools import cache, partial

import lightning
import torch

from contextlora.adapters import AdaptedModel, AdapterConfig
from contextlora.adapters.state import check_finite
from contextlora.errors import NotFiniteError
from contextlora.evaluation.evaluate import Evaluator
from contextlora.graph.plan import SliceUse
from contextlora.methods import Method, StageView
from contextlora.methods.contextlora import ContextLora
from contextlora.tasks.datamodule import Answers, TaskSetDataModule
from contextlora.training.gradients import slice_gradients
from contextlora.training.stages import Progress, StageLength


class StagedModule(lightning.LightningModule):
    """What `ContextLoraModule` is besides Lightning's hooks; arguments and attributes are explained there."""

    def __init__(
        self, data: TaskSetDataModule, method: Method | None, length: StageLength | None, target_modules: str, seed: int
    ) -> None:
        super().__init__()
        self.data, self.method, self.length = data, method or ContextLora(), length or StageLength()
        self.plan = self.method.plan(data.taskset.graph, data.scope)
        self.uses = dict(self.plan.uses)  # a copy: these change, the plan does not
        self.adapted = self._adapt(target_modules, seed)
        self.evaluator = Evaluator(
            self.adapted, self.uses, data.taskset, data.encode_items, data.eval_batch_size, data.scope
        )
        self.progress = Progress()
        self.best_state: dict[str, torch.Tensor] = {}
        self.ended_stage: tuple[int, set[str]] | None = None  # what the last interval closed: stage, trained owners
        self.answers: Answers = {}  # the snapshot: answers in the train prompts of this stage
        self._train_losses: list[torch.Tensor] = []

    def _adapt(self, target_modules: str, seed: int) -> AdaptedModel:
        settings = self.method.settings
        config = AdapterConfig(
            alpha=settings.alpha,
            r_reference=settings.rank,
            dropout=settings.dropout,
            target_modules=target_modules,
            seed=seed,
            **self.method.adapter_settings,
        )
        adapted = AdaptedModel(self.data.backbone.model, self.plan.partition, config, self.plan.edges)
        self.method.inject(adapted)
        return adapted

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        return self.progress.stage >= len(self.plan.stages)

    @property
    def stage_tasks(self) -> tuple[str, ...]:
        """Tasks of the stage in force; none when all are done."""
        return () if self.finished else self.plan.stages[self.progress.stage]

    def accuracies(self, split: str = "test") -> dict[str, float]:
        """Task -> accuracy on a split, with the model's own answers to the prerequisites where prompts hold any."""
        tasks = self.data.taskset.graph.tasks
        return {task: self.evaluator.predict(task, split, self._deployed_context).accuracy for task in tasks}

    @property
    def _deployed_context(self) -> str:
        return "none" if self.data.context == "none" else "predicted"

    def begin_stage(self) -> None:
        """Makes the stage's trainable leaves and takes the snapshot of the prerequisites' answers."""
        # Uses first: a method may ask for gradients, which are taken between stages.
        self._update_uses()
        self.adapted.begin_stage(self._stage_uses())
        self.best_state = {}
        self._take_snapshot()

    def _stage_uses(self) -> dict[str, SliceUse]:
        return {task: self.uses[task] for task in self.stage_tasks}

    def _update_uses(self) -> None:
        """Asks the method for changes; the model must be between stages."""
        gradients = cache(partial(slice_gradients, self))  # of each task once, by all its slices
        changed = self.method.next_uses(
            StageView(
                plan=self.plan,
                tasks=self.stage_tasks,
                interval=self.progress.interval,
                uses=dict(self.uses),
                history=self.progress.history,
                validate=self._validate_task,
                gradient=lambda task, name: gradients(task)[name].flat,
                importance=lambda task, name: gradients(task)[name].importance,
                notes=self.progress.notes,
            )
        )
        self.set_uses(self._agree_on(changed))

    def _agree_on(self, uses: Mapping[str, SliceUse]) -> Mapping[str, SliceUse]:
        """Those of the first process: what a method decides by may differ in the last digits."""
        if self._trainer is None or self.trainer.world_size == 1:
            return uses
        found = self.trainer.strategy.broadcast(_plain(uses))
        return {task: SliceUse(tuple(own), rest) for task, (own, rest) in found.items()}

    @property
    def stage_owners(self) -> set[str]:
        """Owners of all that the stage trains, or may have trained before its uses changed."""
        return {*self.progress.owners, *self.adapted.trained_owners}

    def set_uses(self, uses: Mapping[str, SliceUse]) -> None:
        """Changes how tasks use the slices from now on."""
        self.uses.update(uses)  # in place: the evaluator holds the same dictionary
        self.progress.uses = _plain(self.uses)

    def _validate_task(self, task: str) -> tuple[float, float]:
        prediction = self.evaluator.predict(task, "validation", self._deployed_context)
        return prediction.accuracy, prediction.loss

    def change_uses(self) -> None:
        """Between two intervals of a stage; what trains on keeps its values and moments."""
        if not self.method.changes_uses:
            return
        orders, moments = self.adapted.stage_state(), self._moments()
        self.progress.owners = sorted(self.stage_owners)
        self.adapted.end_stage()
        self._update_uses()
        self.adapted.begin_stage(self._stage_uses(), orders)
        # What begins to train only now is still as it was at the best validation.
        opened = self.adapted.trained_owners.difference(self.progress.owners)
        self.best_state |= self.adapted.state.read(opened)
        # The new optimizer goes on in the schedule of the stage.
        self.progress.optimizer_step = self._steps_done()
        self.trainer.strategy.setup_optimizers(self.trainer)
        # Leaves of one name and length hold the same ranks, because the stage keeps its orders.
        state = self.optimizers(use_pl_optimizer=False).state
        for name, parameter in self.adapted.named_parameters():
            if name in moments and moments[name]["exp_avg"].shape == parameter.shape:
                state[parameter] = moments[name]

    def _moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """Parameter name -> AdamW's state of it, where it has any."""
        state = self.optimizers(use_pl_optimizer=False).state
        return {name: state[one] for name, one in self.adapted.named_parameters() if one in state}

    def _steps_done(self) -> int:
        """Gradient steps of this stage so far."""
        return sum(self.length.interval_steps(self.stage_tasks, k) for k in range(self.progress.interval))

    def _take_snapshot(self) -> None:
        """Settles the prerequisites' answers in the train prompts: right ones of tasks that have not trained yet."""
        if self.data.context != "none":
            self.answers = self._snapshot_answers(self._untrained())

    def _untrained(self) -> set[str]:
        """Tasks whose right answers stand for predicted ones."""
        untrained = set(self.uses)
        if self.data.context == "predicted":
            # Once an interval is over, tasks of the stage itself have answers worth reading.
            untrained.difference_update(*self.plan.stages[: self.progress.stage + (self.progress.interval > 0)])
        return untrained

    def _snapshot_answers(self, untrained: Collection[str]) -> Answers:
        return self.evaluator.chain_answers(self.stage_tasks, "train", untrained)

    @property
    def _stage_feeds_itself(self) -> bool:
        """Whether a task of the stage trains together with one of its prerequisites, as in one joint stage."""
        return self.data.context == "predicted" and any(
            name in self.stage_tasks for words in self.answers.values() for name in words
        )

    def _announce_interval(self) -> None:
        """Tells the data what the next interval trains."""
        tasks, progress = self.stage_tasks, self.progress
        num_steps, done = self.length.interval_steps(tasks, progress.interval), len(progress.losses)
        self.data.set_interval(progress.stage, tasks, self._steps_done() + done, num_steps - done)
        answers = self.answers
        if not progress.total_steps and self.data.context != "none":  # a Trainer may validate before the first step
            answers = answers | self.evaluator.chain_answers(
                tasks, "validation", set(self.uses), most=self.data.validation_items
            )
        self.data.set_answers(answers)

    def is_last_of_interval(self, batch_idx: int) -> bool:
        """Whether the interval's validation follows a batch; `batch_idx` counts from where it was broken off."""
        steps = self.length.interval_steps(self.stage_tasks, self.progress.interval)
        return batch_idx + 1 + len(self.progress.losses) == steps

    def _enter_validation(self, rows: Mapping[str, tuple[float, float]]) -> None:
        """Adds a validation to the progress, and keeps the weights if it is the stage's best."""
        accuracy, loss = (sum(row[k] for row in rows.values()) / len(rows) for k in (0, 1))
        progress, stage = self.progress, self.progress.stage
        if not math.isfinite(loss):
            task = next(task for task, row in rows.items() if not math.isfinite(row[1]))
            raise NotFiniteError(f"after step {self.trainer.global_step} the validation loss of task {task} is {loss}")
        # Before `record`, which counts the interval as done.
        steps = self.length.interval_steps(self.stage_tasks, progress.interval)
        if progress.record(steps, accuracy, loss):
            self.best_state = self.adapted.state.read(self.stage_owners)
        row = {"stage": stage, "interval": progress.interval, "step": progress.total_steps}
        row |= {"train_loss": self._mean_train_loss(), "accuracy": accuracy, "loss": loss}
        row |= {f"accuracy/{task}": value[0] for task, value in rows.items()}
        row |= {f"loss/{task}": value[1] for task, value in rows.items()}
        if self.method.changes_uses:
            row |= {
                f"delta/{name}->{task}": delta for task in rows for name, delta in self.uses[task].prerequisites.items()
            }
        progress.history.append(row)
        self.log_dict({key if "/" in key else f"stage/{key}": float(value) for key, value in row.items()})

    def _mean_train_loss(self) -> float:
        return float(torch.stack(self._train_losses).mean())

    def _end_stage(self) -> None:
        check_finite(self.best_state, f"those of stage {self.progress.stage + 1} at step {self.progress.total_steps}")
        self.adapted.state.write(self.best_state)
        # Before the stage ends: without its uses nobody knows what it trained.
        self.ended_stage = self.progress.stage, self.stage_owners
        self.adapted.end_stage()
        self.progress.next_stage()
        self.best_state, self.answers = {}, {}


def _plain(uses: Mapping[str, SliceUse]) -> dict[str, list]:
    """As checkpoints hold them."""
    return {task: [list(use.own), dict(use.prerequisites)] for task, use in uses.items()}
