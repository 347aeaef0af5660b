"""Runs a planned stage over `torch.distributed`: who computes which rows, and what crosses the links.

    D_f   chains of batch i+1, i+2 ...      at most `queue_batches` ahead       (Eq. (7))
             |  option ids only
             v
    D_t   own (reassigned) chains of batch i, shard of batch i: forward, backward -> all-reduce of the LoRA gradients

Needs neither Lightning nor this project's models; a training loop on every rank is

    for task, numbers in batches:                          # the whole batch, the same on every rank
        shard = executor.shard(task, numbers)              # waits for the answers of these items
        optimizer.zero_grad()
        if shard is not None:                              # None: this rank does not train in this step
            (shard.weight * mean_loss(task, numbers, shard)).backward()
            executor.reduce(parameters)
            optimizer.step()
    executor.share_state()                                 # now every rank has the trained weights

Every rank issues the same collectives in the same order. Answers and weights go over gloo, whatever the device is;
gradients over the default group's backend. Answers go from their rank to each other one in messages of one size, for
which `queue_batches` - 1 receives are always open: they cross the link while the batch before trains, and nobody gets
further ahead than that.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from contextlora.errors import UserError
from contextlora.gear.groups import Groups, broadcast_tree
from contextlora.gear.mail import Mail
from contextlora.gear.roles import StageRoles


@dataclass(frozen=True)
class Shard:
    """What a rank trains of a batch.

    Attributes:
        rows: its rows.
        answers: (B, n) option ids of the prerequisites of all rows; n = 0 where the task has none.
        weight: share of the batch: sum of weight x mean loss over the ranks is the mean loss of the batch.
    """

    rows: range
    answers: Tensor
    weight: float


class StageExecutor:
    """This rank's part of a stage.

    Args:
        roles: of all ranks.
        groups: of the processes.
        num_items: task -> training items.
        num_answers: task -> answers that its prompts need, 0 for none.
        answer_chains: (task, item numbers) -> (items, n) option ids by the weights of the stage's start.
        get_state, set_state: the trained weights and the optimizer's state, as a tree of tensors and numbers.
        known: (task, item number) -> answers made before, of a stage that is resumed; the same on every rank.
        queue_batches: how many batches of answers may wait to be taken.
    """

    def __init__(
        self,
        roles: StageRoles,
        groups: Groups,
        num_items: dict[str, int],
        num_answers: dict[str, int],
        answer_chains: Callable[[str, Sequence[int]], Tensor],
        get_state: Callable[[], Any],
        set_state: Callable[[Any], None],
        known: dict[tuple[str, int], Tensor] | None = None,
        queue_batches: int = 2,
    ) -> None:
        self.roles, self.groups = roles, groups
        self.num_items, self.num_answers, self.answer_chains = num_items, num_answers, answer_chains
        self.get_state, self.set_state, self.queue_batches = get_state, set_state, queue_batches
        self.known = dict(known or {})
        self._asked = set(self.known)  # runs ahead of `known` where answers are on their way
        self._underway: deque[_Exchange] = deque()
        owners = {task: row.chain_owners for task, row in roles.tasks.items()}
        shape = max(map(len, owners.values())), max(num_answers.values())
        senders = {rank for task, row in owners.items() if num_answers[task] for rank in row}
        self._mail = Mail(groups.cpu, groups.next_tag(), shape, senders, queue_batches - 1)
        self._newest = tuple(range(groups.size))  # ranks whose weights are those of now
        self._group: Any = None  # of the ranks that train the step

    def shard(self, task: str, numbers: Sequence[int]) -> Shard | None:
        """Does this rank's part of a batch's chains, and says which rows it trains; None for none.

        Args:
            task: of the batch.
            numbers: its items.
        """
        later = self._all_asked()
        self._run_chains(task, numbers)
        size, shares = len(numbers), self.roles.tasks[task]
        trainers = shares.trainers(later, size)
        if not set(trainers) <= set(self._newest):
            self.share_state()
        self._newest, self._group = trainers, self.groups.of(trainers)
        if self.groups.rank not in trainers:
            return None
        rows = shares.rows(self.groups.rank, later, size)
        return Shard(rows, self.answers(task, numbers), len(rows) / size)

    def answers(self, task: str, numbers: Sequence[int]) -> Tensor:
        """(items, n) answers of items whose chains have been run, waiting for those that are underway."""
        if not self.num_answers[task]:
            return torch.empty(len(numbers), 0, dtype=torch.long)
        self._take_all()
        return torch.stack([self.known[task, number] for number in numbers])

    def collect(self) -> None:
        """Waits for all answers that are underway, and until this rank's own have left it."""
        self._take_all()
        self._mail.wait_for_sends()

    def reduce(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sums the gradients of the ranks that train this step; a parameter without one is left alone."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._group is None or not gradients:
            return
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat, group=self._group)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def share_state(self) -> None:
        """Gives every rank the weights of now and the optimizer's state; does nothing where all have them."""
        if len(self._newest) == self.groups.size:
            return
        source = min(self._newest)
        state = broadcast_tree(self.get_state() if self.groups.rank == source else None, source, self.groups)
        if self.groups.rank not in self._newest:
            self.set_state(state)
        self._newest = tuple(range(self.groups.size))

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
            raise UserError(f"{task}: a batch may have the planned {self._mail.shape[0]} items, got {len(numbers)}")
        self._asked.update((task, number) for number in numbers)
        by_rank: list[list[int]] = [[] for _ in range(self.groups.size)]
        for row in new:
            by_rank[self.roles.tasks[task].owner(row, len(numbers))].append(numbers[row])
        while len(self._underway) >= self.queue_batches:
            self._take()
        self._mail.wait_for_sends()
        mine, sent = by_rank[self.groups.rank], None
        if mine:
            sent = torch.full(self._mail.shape, -1, dtype=torch.long)
            sent[: len(mine), : self.num_answers[task]] = self.answer_chains(task, mine)
            self._mail.send(sent)
        self._underway.append(_Exchange(task, by_rank, sent))

    def _take_all(self) -> None:
        while self._underway:
            self._take()

    def _take(self) -> None:
        exchange = self._underway.popleft()
        for rank, numbers in enumerate(exchange.by_rank):
            if numbers:
                rows = exchange.sent if rank == self.groups.rank else self._mail.receive(rank)
                rows = rows[:, : self.num_answers[exchange.task]]
                self.known |= {(exchange.task, number): rows[place] for place, number in enumerate(numbers)}


@dataclass(frozen=True)
class _Exchange:
    """Answers of one batch on their way: items by the rank that answers them, and this rank's own answers."""

    task: str
    by_rank: list[list[int]]
    sent: Tensor | None
