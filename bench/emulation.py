"""Emulated devices: what one process does in a variant. Processes and messages are real, only the model is a sleep.

Groups that are data-parallel run `StageExecutor`: its roles, queue, answers, all-reduce of gradients of the LoRA's true
size and an AdamW step. The model's forward and backward are sleeps within a `torch.autograd.Function`, its chains are
sleeps in `answer_chains`; their lengths are `StageCost.call_s` with the calibrated device, so times its speed.

Layer pipelines run the actions of `gear.builders.build_schedule`, one after the other: F, B and P sleep, SEND_F, SEND_B
and SEND_A send tensors of the true size by `isend`, and what an action waits for is what `gear.dependencies` says.
Receives are posted when the variant begins, so that messages travel while a process computes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contextlora.gear.execution.executor import Shard, StageExecutor
from contextlora.gear.execution.process_groups import ProcessGroups
from contextlora.gear.planning.candidates import Candidate, TaskPlan
from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.devices import Fleet
from contextlora.gear.planning.plan import StagePlan
from contextlora.gear.planning.roles import stage_roles
from contextlora.gear.planning.workload import TaskWork, Workload
from contextlora.gear.simulation.dependencies import Dependencies
from contextlora.gear.simulation.replay import schedule_and_costs
from contextlora.gear.simulation.schedule import SENDS

AWAKE_S = 2e-4  # before the end of a sleep; more than a wake-up is usually late


@dataclass(frozen=True)
class Variant:
    """One way to train a task's batches.

    Attributes:
        fleet: calibrated devices, process by process, and measured links.
        workload: a stage of this one task.
        candidate: groups of devices.
        plan: of the task under it.
    """

    fleet: Fleet
    workload: Workload
    candidate: Candidate
    plan: TaskPlan

    @property
    def task(self) -> TaskWork:
        """What is trained."""
        return self.workload.tasks[0]

    @property
    def timed_process(self) -> int:
        """A process that trains in every step."""
        return [device.name for device in self.fleet.devices].index(self.candidate.train.devices[0])


def run(variant: Variant, num_first: int, num_later: int) -> list[float]:
    """Runs steps with chains, then steps with the answers kept, on this process.

    Returns:
        When each step was over, in seconds of this process's clock; the first number is the beginning. Empty on a
        process that a pipeline does not use.
    """
    dist.barrier()
    began = time.perf_counter()
    if variant.candidate.train.layout == "data":
        return [mark.wall_s for mark in emulate(variant, num_first, num_later)]
    ends = _run_schedule(variant, num_first)
    return [began, *ends] if ends else []


class Mark(NamedTuple):
    """Clocks of a process after a step: wall time, CPU time, and time in which it did not wait for answers."""

    wall_s: float
    cpu_s: float
    busy_s: float


def emulate(variant: Variant, num_first: int, num_later: int) -> list[Mark]:
    """`train` with emulated compute."""
    return train(variant, _Emulated(variant), num_first, num_later)


class Model(Protocol):
    """What a process trains, and what it answers chains by."""

    weights: Sequence[nn.Parameter]
    num_answers: int

    def answer(self, task: str, numbers: Sequence[int]) -> Tensor:
        """(items, num_answers) option ids of the prerequisites' answers."""

    def loss(self, task: str, numbers: Sequence[int], shard: Shard) -> Tensor:
        """Mean loss over the shard's rows of these items."""


def train(variant: Variant, model: Model, num_first: int, num_later: int) -> list[Mark]:
    """The executor's loop on this process, with AdamW.

    Args:
        variant: of data-parallel groups.
        model: this process's.
        num_first: steps until every answer is known, where answers are kept.
        num_later: steps after them.

    Returns:
        The clocks at the beginning and after each step.
    """
    names, task, size = [d.name for d in variant.fleet.devices], variant.task, variant.workload.batch_size
    plan = StagePlan(variant.workload.name, size, (variant.candidate,), (variant.plan,), 0.0)
    roles = stage_roles(plan, names, keeps_answers=variant.candidate.later is not None)
    optimizer, num_items = torch.optim.AdamW(model.weights), num_first * size

    def state() -> dict[str, Any]:
        return {"weights": [weight.detach() for weight in model.weights], "optimizer": optimizer.state_dict()}

    def set_state(tree: dict[str, Any]) -> None:
        for weight, value in zip(model.weights, tree["weights"], strict=True):
            weight.data.copy_(value)
        optimizer.load_state_dict(tree["optimizer"])

    busy_s = 0.0

    def answer(name: str, numbers: Sequence[int]) -> Tensor:
        nonlocal busy_s
        began = time.perf_counter()
        found = model.answer(name, numbers)
        busy_s += time.perf_counter() - began
        return found

    items, answers = {task.task: num_items}, {task.task: model.num_answers}
    executor = StageExecutor(roles, _groups(), items, answers, answer, state, set_state)
    marks = [Mark(time.perf_counter(), time.process_time(), busy_s)]
    for step in range(num_first + num_later):
        # Later steps come back to the items of the first ones, whose answers may be kept.
        numbers = [(step * size + row) % num_items for row in range(size)]
        shard = executor.shard(task.task, numbers)
        began = time.perf_counter()
        optimizer.zero_grad()
        if shard is not None:
            (shard.weight * model.loss(task.task, numbers, shard)).backward()
            executor.reduce(model.weights)
            optimizer.step()
        busy_s += time.perf_counter() - began
        marks.append(Mark(time.perf_counter(), time.process_time(), busy_s))
    executor.collect()  # answers still underway would share the links with the next variant
    return marks


# All processes make each group together, once: they serve every variant.
@cache
def _groups() -> ProcessGroups:
    return ProcessGroups()


class _Emulated:
    """Sleeps as long as the calibrated device computes, call by call of the plan's micro-batches."""

    def __init__(self, variant: Variant) -> None:
        self.name = variant.fleet.devices[dist.get_rank()].name
        self.cost, self.task = StageCost(variant.fleet, variant.workload), variant.task
        self.num_answers = variant.task.num_prerequisites
        self.weights = [nn.Parameter(torch.zeros(int(variant.task.gradient_bytes) // 4))]
        groups = ((variant.candidate.train, variant.plan.train), (variant.candidate.forward, variant.plan.chains))
        groups += ((variant.candidate.later, variant.plan.later),)
        known = [zip(group.devices, share.micro_batches, strict=True) for group, share in groups if group and share]
        # Reversed, so that of a device in several groups the first one counts.
        self.sizes = {name: size for pairs in reversed(known) for name, size in pairs}

    def answer(self, task: str, numbers: Sequence[int]) -> Tensor:
        for _ in range(self.num_answers):
            _compute(self._seconds("P", len(numbers)))
        return torch.zeros(len(numbers), self.num_answers, dtype=torch.long)

    def loss(self, task: str, numbers: Sequence[int], shard: Shard) -> Tensor:
        return _Sleep.apply(self.weights[0], *(self._seconds(kind, len(shard.rows)) for kind in "FB"))

    def _seconds(self, kind: str, num_items: int) -> float:
        size = self.sizes[self.name]
        chunks = [min(size, num_items - start) for start in range(0, num_items, size)]
        return sum(self.cost.call_s(self.name, self.task, kind, items) for items in chunks)


def _compute(seconds: float) -> None:
    """Sleeps, and is awake in time: a wake-up may be some 100 us late, which would add up over the calls of a step."""
    ends = time.perf_counter() + seconds
    time.sleep(max(0.0, seconds - AWAKE_S))
    while time.perf_counter() < ends:
        pass


class _Sleep(torch.autograd.Function):
    """A model without numbers: a loss of zero and gradients of the right size, in the right time."""

    @staticmethod
    def forward(context: Any, weights: Tensor, forward_s: float, backward_s: float) -> Tensor:
        _compute(forward_s)
        context.backward_s, context.like = backward_s, weights
        return weights.new_zeros(())

    @staticmethod
    def backward(context: Any, _: Tensor) -> tuple[Tensor, None, None]:
        _compute(context.backward_s)
        return torch.zeros_like(context.like), None, None


def _run_schedule(variant: Variant, num_batches: int) -> list[float]:
    names = [device.name for device in variant.fleet.devices]
    schedule, costs = schedule_and_costs(variant.fleet, variant.workload, variant.candidate, variant.task, num_batches)
    processes = [names.index(name) for name in schedule.devices]
    if dist.get_rank() not in processes:
        return []
    here, needs = processes.index(dist.get_rank()), Dependencies(schedule).nodes
    action_of = {(row, place): schedule.actions[row][place] for row, place in needs}
    # Every process numbers all messages alike, so that sender and receiver agree on a tag.
    tags = {node: tag for tag, node in enumerate(n for n in needs if action_of[n].kind in SENDS)}

    def message(node: tuple[int, int]) -> Tensor:
        return torch.zeros(int(costs.send_bytes(action_of[node])), dtype=torch.uint8)

    ours = [node for node in tags if action_of[node].to == here]
    inbox = {node: dist.irecv(message(node), processes[node[0]], tag=tags[node]) for node in ours}
    outbox, ends = [], [0.0] * num_batches
    for place, action in enumerate(schedule.actions[here]):
        for needed in needs[here, place]:
            if needed in inbox:
                inbox.pop(needed).wait()
        if action.kind in SENDS:
            outbox.append(dist.isend(message((here, place)), processes[action.to], tag=tags[here, place]))
            continue
        _compute(costs.action_s(here, action))
        if action.kind == "B":
            ends[schedule.batch_of(action)] = time.perf_counter()  # the last backward of a batch has the last word
    for sent in outbox:
        sent.wait()
    return ends
