"""Emulated devices: what one rank does in a variant. Processes and messages are real, only the model is a sleep.

Groups that are data-parallel run `StageExecutor`: its roles, queue, answers, all-reduce of gradients of the LoRA's true
size and an AdamW step. The model's forward and backward are sleeps within a `torch.autograd.Function`, its chains are
sleeps in `answer_chains`; their lengths are `StageCost.call_s` with the calibrated device, so times its speed.

Layer pipelines run the actions of `gear.builders.build_schedule`, one after the other: F, B and P sleep, SEND_F, SEND_B
and SEND_A send tensors of the true size by `isend`, and what an action waits for is what `gear.dependencies` says.
Receives are posted when the variant begins, so that messages travel while a rank computes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from contextlora.gear.candidates import Candidate, TaskPlan
from contextlora.gear.cost import StageCost
from contextlora.gear.dependencies import Dependencies
from contextlora.gear.devices import Fleet
from contextlora.gear.executor import Groups, StageExecutor
from contextlora.gear.plan import StagePlan
from contextlora.gear.replay import schedule_and_costs
from contextlora.gear.roles import stage_roles
from contextlora.gear.schedule import SENDS
from contextlora.gear.workload import TaskWork, Workload


@dataclass(frozen=True)
class Variant:
    """One way to train a task's batches.

    Attributes:
        fleet: calibrated devices, rank by rank, and measured links.
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
    def timed_rank(self) -> int:
        """A rank that trains in every step."""
        return [device.name for device in self.fleet.devices].index(self.candidate.train.devices[0])


def run(variant: Variant, num_first: int, num_later: int) -> list[float]:
    """Runs steps with chains, then steps with the answers kept, on this rank.

    Returns:
        When each step was over, in seconds of this rank's clock; the first number is the beginning. Empty on a rank
        that a pipeline does not use.
    """
    dist.barrier()
    began = time.perf_counter()
    runs = _run_executor if variant.candidate.train.layout == "data" else _run_schedule
    ends = runs(variant, num_first, num_later)
    return [began, *ends] if ends else []


class _Model(torch.autograd.Function):
    """A model without numbers: a loss of zero and gradients of the right size, in the right time."""

    @staticmethod
    def forward(context: Any, weights: Tensor, forward_s: float, backward_s: float) -> Tensor:
        time.sleep(forward_s)
        context.backward_s, context.like = backward_s, weights
        return weights.new_zeros(())

    @staticmethod
    def backward(context: Any, _: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(context.backward_s)
        return torch.zeros_like(context.like), None, None


@cache
def _groups() -> Groups:
    return Groups()


def _run_executor(variant: Variant, num_first: int, num_later: int) -> list[float]:
    task, workload, names = variant.task, variant.workload, [device.name for device in variant.fleet.devices]
    plan = StagePlan(workload.name, workload.batch_size, (variant.candidate,), (variant.plan,), 0.0)
    roles = stage_roles(plan, names, keeps_answers=variant.candidate.later is not None)
    cost, name = StageCost(variant.fleet, workload), names[dist.get_rank()]
    weights = nn.Parameter(torch.zeros(int(task.gradient_bytes) // 4))
    optimizer = torch.optim.AdamW([weights])

    def answer(_: str, numbers: Sequence[int]) -> Tensor:
        for _ in range(task.num_prerequisites):
            time.sleep(cost.call_s(name, task, "P", len(numbers)))
        return torch.zeros(len(numbers), task.num_prerequisites, dtype=torch.long)

    def state() -> dict[str, Any]:
        return {"weights": weights.detach(), "optimizer": optimizer.state_dict()}

    num_items, size, ends = num_first * workload.batch_size, workload.batch_size, []
    executor = StageExecutor(
        roles,
        _groups(),
        {task.task: num_items},
        {task.task: task.num_prerequisites},
        answer,
        state,
        lambda tree: optimizer.load_state_dict(tree["optimizer"]),
    )
    for step in range(num_first + num_later):
        shard = executor.shard(task.task, [(step * size + row) % num_items for row in range(size)])
        optimizer.zero_grad()
        if shard is not None:
            seconds = (cost.call_s(name, task, kind, len(shard.rows)) for kind in "FB")
            (shard.weight * _Model.apply(weights, *seconds)).backward()
            executor.reduce([weights])
            optimizer.step()
        ends.append(time.perf_counter())
    executor.collect()
    return ends


def _run_schedule(variant: Variant, num_batches: int, _: int) -> list[float]:
    names = [device.name for device in variant.fleet.devices]
    schedule, costs = schedule_and_costs(variant.fleet, variant.workload, variant.candidate, variant.task, num_batches)
    ranks = [names.index(name) for name in schedule.devices]
    if dist.get_rank() not in ranks:
        return []
    here, needs = ranks.index(dist.get_rank()), Dependencies(schedule).nodes
    action_of = {(row, place): schedule.actions[row][place] for row, place in needs}
    tags = {node: tag for tag, node in enumerate(n for n in needs if action_of[n].kind in SENDS)}

    def message(node: tuple[int, int]) -> Tensor:
        return torch.zeros(int(costs.send_bytes(action_of[node])), dtype=torch.uint8)

    ours = [node for node in tags if action_of[node].to == here]
    inbox = {node: dist.irecv(message(node), ranks[node[0]], tag=tags[node]) for node in ours}
    outbox, ends = [], [0.0] * num_batches
    for place, action in enumerate(schedule.actions[here]):
        for needed in needs[here, place]:
            if needed in inbox:
                inbox.pop(needed).wait()
        if action.kind in SENDS:
            outbox.append(dist.isend(message((here, place)), ranks[action.to], tag=tags[here, place]))
            continue
        time.sleep(costs.action_s(here, action))
        if action.kind == "B":
            ends[schedule.batch_of(action)] = time.perf_counter()
    for sent in outbox:
        sent.wait()
    return ends
