"""Runs a planned stage over `torch.distributed`: who computes which rows, and what crosses the links.

    D_f   chains of batch i+1, i+2 ...      at most `queue_batches` ahead       (Eq. (7))
             |  option ids only
             v
    D_t   shard of batch i: forward, backward -> all-reduce of the LoRA gradients; now and then its chains before

Needs neither Lightning nor this project's models; a training loop on every process is

    for task, numbers in batches:                          # the whole batch, the same on every process
        shard = executor.shard(task, numbers)              # waits for the answers of these items
        optimizer.zero_grad()
        if shard is not None:                              # None: this process does not train in this step
            executor.backward(shard, run, item)            # micro-batch by micro-batch
            executor.reduce(parameters)
            executor.clip(parameters, max_norm)            # by the norm of the whole gradient
            optimizer.step()
    executor.share_state()                                 # now every process has the trained weights

where `run(part, layers, hidden)` gives the mean loss over the rows of `part`. In a layer pipeline it computes these
layers only and gives hidden states in all stages but the last (see `gear.pipeline_executor`); elsewhere `layers` and
`hidden` are None, and `item` is not needed.

Every process issues the same collectives in the same order. Answers and weights go over gloo, whatever the device is;
gradients over the default group's backend. Answers go from their process to each other one in messages of one size, for
which `queue_batches` - 1 receives are always open: they cross the link while the batch before trains, and nobody gets
further ahead than that.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from contextlora.errors import UserError
from contextlora.gear.execution.mail import Mail
from contextlora.gear.execution.pipeline_executor import PipelineExecutor, Run
from contextlora.gear.execution.process_groups import ProcessGroups, broadcast_tree
from contextlora.gear.planning.roles import Pipeline, StageRoles
from contextlora.gear.simulation.schedule import QUEUE_BATCHES
from contextlora.training.shared_batches import sum_over_processes


@dataclass(frozen=True)
class Shard:
    """What a process trains of a batch.

    Attributes:
        rows: its rows.
        answers: (B, n) option ids of the prerequisites of all rows; n = 0 where the task has none.
        weight: share of the batch: sum of weight x mean loss over the processes is the mean loss of the batch.
        size: k, the most rows to be computed at a time; 0 sets no limit.
        pipeline: whose processes compute these rows together; None where this process does it alone.
    """

    rows: range
    answers: Tensor
    weight: float
    size: int = 0
    pipeline: Pipeline | None = None

    def parts(self) -> list["Shard"]:
        """Micro-batches of at most `size` rows."""
        parts = _cut(self.rows, self.size)
        return [replace(self, rows=rows, weight=self.weight * len(rows) / len(self.rows)) for rows in parts]


class StageExecutor:
    """This process's part of a stage.

    Args:
        roles: of all processes.
        groups: of the processes.
        num_items: task -> training items.
        num_answers: task -> answers that its prompts need, 0 for none.
        answer_chains: (task, item numbers) -> (items, n) option ids by the weights of the stage's start.
        get_state, set_state: the trained weights and the optimizer's state, as a tree of tensors and numbers. After a
            layer pipeline each of its processes is asked by `get_state(layers)` for those of its layers, and
            `set_state` gets one such part after another.
        known: (task, item number) -> answers made before, of a stage that is resumed; the same on every process.
        queue_batches: how many batches of answers may wait to be taken.
        device: where this process computes.
    """

    def __init__(
        self,
        roles: StageRoles,
        groups: ProcessGroups,
        num_items: dict[str, int],
        num_answers: dict[str, int],
        answer_chains: Callable[[str, Sequence[int]], Tensor],
        get_state: Callable[..., Any],
        set_state: Callable[[Any], None],
        known: dict[tuple[str, int], Tensor] | None = None,
        queue_batches: int = QUEUE_BATCHES,
        device: torch.device | str = "cpu",
    ) -> None:
        self.roles, self.groups = roles, groups
        self.num_items, self.num_answers, self.answer_chains = num_items, num_answers, answer_chains
        self.get_state, self.set_state, self.queue_batches = get_state, set_state, queue_batches
        self.device = torch.device(device)
        self.known = dict(known or {})
        self._asked = set(self.known)  # runs ahead of `known` where answers are on their way
        self._underway: deque[_Exchange] = deque()  # in the order of sending: messages carry no names
        self._num_batches: Counter[str] = Counter()  # whose chains have been run, by task
        shape = max(len(row.chain_owners) for row in roles.tasks.values()), max(num_answers.values())
        senders = {process for task, row in roles.tasks.items() if num_answers[task] for process in row.all_owners}
        self._mail = Mail(groups.cpu, groups.next_tag(), shape, senders, queue_batches - 1)
        self._newest = tuple(range(groups.size))  # processes whose weights are those of now
        self._split: Pipeline | None = None  # the pipeline over whose processes these weights are spread
        self._group: Any = None  # of the processes that train the step
        self._task = ""  # whose chains are being run
        self._pipelines = {
            row: PipelineExecutor(row, groups.process, group, self.device)
            # made by all, members or not
            for row, group in [(row, groups.of(row.processes)) for row in roles.pipelines]
            if groups.process in row.processes
        }

    def shard(self, task: str, numbers: Sequence[int]) -> Shard | None:
        """Does this process's part of a batch's chains, and says which rows it trains; None for none.

        Args:
            task: of the batch.
            numbers: its items.
        """
        later = self._all_asked()  # asked first: the batch that completes the answers still belongs to the first epoch
        self._run_chains(task, numbers)
        size, shares = len(numbers), self.roles.tasks[task]
        pipeline = self.roles.later if later else self.roles.train
        trainers = shares.trainers(later, size) if pipeline is None else pipeline.processes
        if not set(trainers) <= set(self._newest) or self._split not in (None, pipeline):
            self.share_state()  # collective: every process decides so, from roles and batches alone
        self._newest, self._split, self._group = trainers, pipeline, self.groups.of(trainers)
        if self.groups.process not in trainers:
            return None
        rows = range(size) if pipeline is not None else shares.rows(self.groups.process, later, size)
        return Shard(rows, self.answers(task, numbers), len(rows) / size, self._size(task, later), pipeline)

    def backward(self, shard: Shard, run: Run, item: Tensor | None = None) -> Tensor:
        """Forward and backward of a shard, a micro-batch at a time; gradients are added to those that are there.

        Args:
            shard: from `shard`.
            run: (part, layers, hidden states) -> mean loss over the rows of a part, see the module's head.
            item: for pipelines, the hidden states of one item, (T, h), as a meta tensor.

        Returns:
            This process's share of the batch's mean loss; in a pipeline the last stage has it all.
        """
        parts = shard.parts()

        def weighted(part: Shard, layers: slice | None, hidden: Tensor | None) -> Tensor:
            found = run(part, layers, hidden)
            return found if layers is not None and layers.stop is not None else part.weight * found

        if shard.pipeline is not None:
            sizes = [len(part.rows) for part in parts]
            return self._pipelines[shard.pipeline].train(parts, sizes, weighted, item)
        losses = []
        for part in parts:
            loss = weighted(part, None, None)
            loss.backward()  # frees the part's activations before the next one makes its own
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def forward(self, num_items: int, run: Run, item: Tensor | None = None, output: Tensor | None = None) -> Tensor:
        """One pass of the chains being run, for `answer_chains` to call: forward only, a micro-batch at a time.

        Args:
            num_items: of the pass.
            run: (rows, layers, hidden states) -> (rows, ...) outputs of these items, or hidden states between stages.
            item, output: for pipelines, one item's hidden states (T, h) and outputs, as meta tensors.

        Returns:
            (items, ...) outputs, the same on every process that takes part.
        """
        parts = _cut(range(num_items), self._size(self._task, False))
        pipeline = self.roles.runs_chains_in(self.groups.process)
        if pipeline is not None:
            return self._pipelines[pipeline].forward(parts, list(map(len, parts)), run, item, output)
        return torch.cat([run(rows, None, None) for rows in parts])

    def answers(self, task: str, numbers: Sequence[int]) -> Tensor:
        """(items, n) answers of items whose chains have been run, waiting for those that are underway."""
        if not self.num_answers[task]:
            return torch.empty(len(numbers), 0, dtype=torch.long)
        self._take_all()
        return torch.stack([self.known[task, number] for number in numbers])

    def collect(self) -> None:
        """Waits for all answers that are underway, and until this process's own have left it."""
        self._take_all()
        self._mail.wait_for_sends()

    def reduce(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sums the gradients of the processes that train this step; a parameter without one is left alone."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._group is None or self._split is not None or not gradients:  # stages have no layer in common
            return
        sum_over_processes(gradients, self._group)

    def clip(self, parameters: Iterable[torch.nn.Parameter], max_norm: float) -> None:
        """Scales the gradients down to a norm, that of all layers also where a pipeline's processes share them."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        square = sum((gradient.float().pow(2).sum() for gradient in gradients), torch.zeros((), device=self.device))
        if self._split is not None:
            dist.all_reduce(square, group=self._group)  # no parameter is in two stages, so squares add up
        # As in clip_grad_norm_. What is not finite in one stage becomes nan in all: 0 times it is nan.
        scale = max_norm / (square.sqrt() + 1e-6) + 0 * square
        if not scale >= 1:
            for gradient in gradients:
                gradient.mul_(scale)

    def share_state(self) -> None:
        """Gives every process the weights of now and the optimizer's state; does nothing where all have them."""
        if len(self._newest) == self.groups.size and self._split is None:
            return
        split, here = self._split, self.groups.process
        for stage, source in enumerate(split.processes if split else [min(self._newest)]):
            layers = (split.layers(stage),) if split else ()
            state = broadcast_tree(self.get_state(*layers) if here == source else None, source, self.groups)
            if here != source and (split or here not in self._newest):
                self.set_state(state)
        self._newest, self._split = tuple(range(self.groups.size)), None

    # ---- answers

    def _all_asked(self) -> bool:
        """Whether the chains of all items of the stage have been run, or are being run."""
        if not self.roles.keeps_answers:
            return False
        needed = sum(self.num_items[task] for task in self.roles.tasks if self.num_answers[task])
        return len(self._asked) >= needed

    def _run_chains(self, task: str, numbers: Sequence[int]) -> None:
        if not self.num_answers[task]:
            return
        keeps = self.roles.keeps_answers
        new = [row for row, number in enumerate(numbers) if not keeps or (task, number) not in self._asked]
        if not new:
            return
        if len(numbers) > self._mail.shape[0]:
            raise UserError(f"{task}: a batch must have at most {self._mail.shape[0]} items, got {len(numbers)}")
        self._asked.update((task, number) for number in numbers)
        by_process: list[list[int]] = [[] for _ in range(self.groups.size)]
        for row in new:
            by_process[self.roles.tasks[task].owner(row, len(numbers), self._num_batches[task])].append(numbers[row])
        self._num_batches[task] += 1
        while len(self._underway) >= self.queue_batches:  # a process that does not train takes answers here
            self._take()
        self._mail.wait_for_sends()  # the bounded queue: a send ends once its receive is open
        pipeline = self.roles.runs_chains_in(self.groups.process)
        owner = self.groups.process if pipeline is None else pipeline.processes[-1]
        mine, self._task, sent = by_process[owner], task, None
        if mine:
            found = self.answer_chains(task, mine)  # by all stages of a pipeline, though only the last one sends
            if owner == self.groups.process:
                sent = torch.full(self._mail.shape, -1, dtype=torch.long)
                sent[: len(mine), : self.num_answers[task]] = found
                self._mail.send(sent)
        self._underway.append(_Exchange(task, by_process, sent))

    def _take_all(self) -> None:
        while self._underway:
            self._take()

    def _take(self) -> None:
        exchange = self._underway.popleft()
        for process, numbers in enumerate(exchange.by_process):
            if numbers:
                rows = exchange.sent if process == self.groups.process else self._mail.receive(process)
                rows = rows[:, : self.num_answers[exchange.task]]
                self.known |= {(exchange.task, number): rows[place] for place, number in enumerate(numbers)}

    def _size(self, task: str, later: bool) -> int:
        """k of this process."""
        shares = self.roles.tasks[task]
        sizes = shares.later_sizes if later else shares.sizes
        return sizes[self.groups.process] if sizes else 0


@dataclass(frozen=True)
class _Exchange:
    """Answers of one batch on their way: items by the process that answers them, and this process's own answers."""

    task: str
    by_process: list[list[int]]
    sent: Tensor | None


def _cut(rows: range, size: int) -> list[range]:
    """Runs of at most `size` rows; 0 sets no limit."""
    return [rows[start : start + size] for start in range(0, len(rows), size)] if size else [rows]
