# ruff: noqa: D102 - Lightning's hooks say what they are by their names
"""The LightningModule for several devices: the methods that `strategy=contextgear` asks for.

Answers of the train items are not made at once when a stage begins but batch by batch, by the ranks that the plan says
and by the weights of the stage's start, so that they are the same ones.
"""

from collections.abc import Collection, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from contextlora.adapters.state import owners_of
from contextlora.backbones.cut import CutModel
from contextlora.backbones.scoring import OptionBatch, option_scores
from contextlora.errors import ConfigError
from contextlora.gear.execution.executor import Shard
from contextlora.gear.execution.strategy import GearStage
from contextlora.gear.planning.roles import StageRoles
from contextlora.methods import Method
from contextlora.tasks.datamodule import ItemNumbers
from contextlora.tasks.task import Item, item_key
from contextlora.training.checkpoint import KEY
from contextlora.training.module import ContextLoraModule
from contextlora.training.staged import Answers


class GearedContextLoraModule(ContextLoraModule):
    """Trains the stages of a plan on several devices.

    Args:
        roles: of the processes in every stage.
        queue_batches: how many batches D_f may be ahead.
        args, kwargs: as for `ContextLoraModule`.
    """

    def __init__(self, *args: Any, roles: Sequence[StageRoles], queue_batches: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.roles, self.queue_batches = roles, queue_batches
        self.snapshot: dict[str, Tensor] = {}
        self.chains: dict[str, tuple[str, ...]] = {}  # task -> prerequisites that the model itself answers
        self._step_start, self._step_weight = 0, 0.0  # the step's first loss, and its share of the batch so far

    # ---- what the strategy asks for

    def gear_stage(self, num_processes: int) -> GearStage:
        self.data.by_numbers = True
        tasks, roles = self.stage_tasks, self.roles[self.progress.stage]
        if roles.pipelines and type(self.method).penalty is not Method.penalty:
            name = self.method.settings.name
            raise ConfigError(f"method {name} adds a penalty over all layers to the loss: set gear.layouts=[data]")
        for pipeline in roles.pipelines:
            self._check_cuts([pipeline.layers(stage) for stage in range(len(pipeline.processes))])
        return GearStage(
            roles=roles,
            num_items={task: len(self._items(task)) for task in tasks},
            num_answers={task: len(self.chains.get(task, ())) for task in tasks},
            known=self._known(),
            queue_batches=self.queue_batches,
        )

    def gear_batch(self, batch: ItemNumbers) -> tuple[str, Sequence[int]]:
        return batch

    def answer_chains(self, task: str, numbers: Sequence[int]) -> Tensor:
        graph, names = self.data.taskset.graph, self.chains[task]
        asked = {*names, *(above for name in names for above in graph.prerequisites(name, "ancestors"))}
        owners = {name for one in asked for name in owners_of(self.uses[one], one, self.adapted.parts)}
        # What the stage does not train is still as it was at its start: nothing to swap.
        if owners.isdisjoint(self.stage_owners):
            return self.evaluator.chain_choices(task, numbers, names, self._score)
        with self.adapted.state.replaced(self.snapshot):
            return self.evaluator.chain_choices(task, numbers, names, self._score)

    def make_shard(self, batch: ItemNumbers, shard: Shard) -> OptionBatch:
        # All rows' answers, not only the shard's: prompts are padded as in the whole batch.
        self._enter_answers(batch.task, batch.numbers, shard.answers)
        return self.data.encode_rows(batch, shard.rows)

    # ---- layer pipelines

    @cached_property
    def cut(self) -> CutModel:
        """The model in stages."""
        return CutModel(self.adapted.model)

    def _check_cuts(self, stages: Sequence[slice]) -> None:
        for task in self.stage_tasks:
            batch = self.data.encode_items(task, self._items(task)[:2], None).to(self.device)
            # Or dropout masks would be those for the rows of an earlier batch.
            self._seed_step(batch)
            with self.adapted.active(self.uses[task], task):
                self.cut.check(batch, stages)

    def hidden_item(self, batch: OptionBatch) -> Tensor:
        return self.cut.item(batch)

    def layer_parameters(self, layers: slice) -> list[torch.nn.Parameter]:
        return self.cut.parameters(layers)

    def run_layers(self, batch: OptionBatch, layers: slice, hidden: Tensor | None) -> Tensor:
        # Every micro-batch takes other rows of the dropout masks.
        self._seed_step(batch)
        with self.adapted.active(self.uses[batch.task], batch.task):
            found = self.cut.run(batch, layers, hidden)
        if layers.stop is not None:
            return found
        loss = self.step_loss(batch, found)
        self._weigh_loss(batch)
        return loss

    # ---- answers

    def _score(self, task: str, items: Sequence[Any], contexts: Sequence[Any]) -> Tensor:
        """(N, K) scores of a pass of the chains underway, by those who run it together."""
        encode = partial(self.data.encode_items, task, items, contexts)

        def run(rows: range, layers: slice | None, hidden: Tensor | None) -> Tensor:
            batch = encode(rows).to(self.device)
            return option_scores(self.adapted.model, batch) if layers is None else self.cut.run(batch, layers, hidden)

        executor, item, output = self.trainer.strategy.executor, None, None
        if executor.roles.runs_chains_in(self.global_rank):
            first = encode(range(1))  # any row shows the shapes: all are padded to the longest item
            item, output = self.cut.item(first), torch.empty(first.option_ids.shape[1], device="meta")
        return executor.forward(len(items), run, item, output).float().cpu()

    def _snapshot_answers(self, untrained: Collection[str]) -> Answers:
        """Right answers of the untrained; the others come batch by batch, from these weights."""
        # All else has its initial values through the whole stage and needs no copy.
        self.snapshot = self.adapted.state.read(self.adapted.state.changed | self.stage_owners)
        self._list_chains(untrained)
        right = self.evaluator.chain_answers(self.stage_tasks, "train", set(self.uses))  # right ones: no pass is run
        return {key: {name: words[name] for name in words if name in untrained} for key, words in right.items()}

    def _take_snapshot(self) -> None:
        super()._take_snapshot()
        if self.progress.interval:  # a stage that feeds itself starts again with other answers
            self.trainer.strategy.begin_stage()

    def _restore_snapshot(self, weights: dict[str, Tensor]) -> None:
        self.snapshot = weights

    def _list_chains(self, untrained: Collection[str]) -> None:
        data = self.data
        self.chains = {
            task: tuple(n for n in data.taskset.context_tasks(task, data.scope) if n not in untrained)
            for task in self.stage_tasks
        }

    def _items(self, task: str) -> Sequence[Any]:
        return self.data.taskset.items(task, "train")

    def _options_of(self, name: str, item: Item) -> tuple[str, ...]:
        """The options of a prerequisite's item that this one builds on; none where there is no such item."""
        parent = self.data.taskset.parent(name, "train", item)
        return parent.options if parent is not None else ()

    def _enter_answers(self, task: str, numbers: Sequence[int], choices: Tensor) -> None:
        items = self._items(task)
        for number, row in zip(numbers, choices.tolist(), strict=True):
            item = items[number]
            words = self.answers.setdefault(item_key(task, item), {})
            for name, choice in zip(self.chains.get(task, ()), row, strict=True):
                if choice >= 0:  # -1: the item builds on none of the prerequisite
                    words[name] = self._options_of(name, item)[choice]

    def _known(self) -> dict[tuple[str, int], Tensor]:
        """The answers so far, as the executor holds them: items with all their prerequisites' answers."""
        known = {}
        for task, names in self.chains.items():
            for number, item in enumerate(self._items(task) if names else ()):
                options = [self._options_of(name, item) for name in names]
                words = [self.answers.get(item_key(task, item), {}).get(name) for name in names]
                if all(word is not None for word, some in zip(words, options, strict=True) if some):
                    row = [some.index(word) if some else -1 for word, some in zip(words, options, strict=True)]
                    known[task, number] = torch.tensor(row)
        return known

    # ---- intervals

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if not self.finished and self.data.context != "none":
            self._list_chains(self._untrained())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if not self.finished and sum(map(len, self.chains.values())):
            # The weights of the stage's start: large, and needed only while answers are still to be made by them.
            known = self._known()
            if any(
                names and (task, n) not in known for task, names in self.chains.items() for n in self._numbers(task)
            ):
                checkpoint[KEY]["snapshot"] = self.snapshot

    def _numbers(self, task: str) -> range:
        return range(len(self._items(task)))

    def on_train_batch_end(self, outputs: Any, batch: ItemNumbers, batch_idx: int) -> None:
        if self.is_last_of_interval(batch_idx):
            strategy = self.trainer.strategy
            # Before `super`, which makes the validation's answers by the weights of now.
            strategy.share_weights()
            self.adapted.mark_trained()  # the optimizer's hook came before the weights of the others
            for (task, number), row in strategy.executor.known.items():
                self._enter_answers(task, [number], row[None])
        super().on_train_batch_end(outputs, batch, batch_idx)

    def _validation_answers(self) -> Answers:
        data = self.data
        return self.evaluator.chain_answers(self.stage_tasks, "validation", part=data.part, most=data.validation_items)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if not self.trainer.is_global_zero:
            self._train_losses = []  # every loss once: those of all processes are summed up

    def on_train_batch_start(self, batch: ItemNumbers, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._step_start, self._step_weight = len(self._train_losses), 0.0  # a step has a loss a part, or none

    def training_step(self, batch: OptionBatch, batch_idx: int) -> Tensor:
        self._seed_step(batch)
        loss = self.step_loss(batch)  # the strategy weighs it
        self._weigh_loss(batch)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The strategy has summed the gradients, of the processes that train in this step."""

    def _weigh_loss(self, batch: OptionBatch) -> None:
        """Makes the latest loss the rows' share of the batch's."""
        weight = len(batch.rows) / batch.batch_size
        self._train_losses[-1] = self._train_losses[-1] * weight  # not in place: it is the loss itself
        self._step_weight += weight

    @property
    def latest_loss(self) -> float | None:
        """The mean over the rows that this process trained; None where it was none, or not to their loss."""
        losses = self._train_losses[self._step_start :]
        return float(sum(losses)) / self._step_weight if losses else None

    def _mean_train_loss(self) -> float:
        # A process that trained nothing in the interval has no losses, but the others wait for its sum.
        total = torch.zeros((), device=self.device) + sum(self._train_losses)
        # The interval that ends: `record` has counted it already.
        steps = self.length.interval_steps(self.stage_tasks, self.progress.interval - 1)
        return float(self.trainer.strategy.reduce(total, reduce_op="sum")) / steps
