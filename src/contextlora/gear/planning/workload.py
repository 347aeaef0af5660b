"""The work of a training stage, as plain numbers that need no model in memory.

Per task v of a stage (T_t), each item costs one forward and backward, t = train_ratio * f for a forward f, and before
that n forward-only passes (FP(T_f)): one for each ancestor of v that an earlier stage trained.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contextlora.errors import ConfigError
from contextlora.gear.planning.model_size import ModelSize, activation_bytes
from contextlora.graph.plan import TrainingPlan
from contextlora.graph.task_graph import TaskGraph

# Forward and backward over forward with LoRA on a frozen base: 2.05 to 2.45 were measured, since almost no weight
# gradients are computed. A profiled device brings its own.
TRAIN_RATIO = 2.25
ANSWER_BYTES = 8  # one answer crosses a link as an int64
_FLOAT32_BYTES = 4  # LoRA, its gradients and both AdamW moments


@dataclass(frozen=True)
class TaskWork:
    """One trained task of a stage; all figures are per item unless they say otherwise.

    Attributes:
        task: its name.
        steps: gradient steps in the stage.
        epoch_items: training items of the task.
        num_prerequisites: n, forward-only passes before an item can be trained.
        forward_flops: one forward of an item of this task (f_T).
        prerequisite_flops: one forward-only pass, the mean over the chain (f_F).
        boundary_bytes, prerequisite_boundary_bytes: activations between two layers, for its own prompt and the chain's.
        answer_bytes: what the answers of a whole chain take on a link.
        gradient_bytes: LoRA gradients of one step.
        train_activation_bytes: what a layer keeps for the backward.
        forward_activation_bytes: working set of a forward-only pass; layers follow each other, so one counts.
    """

    task: str
    steps: int
    epoch_items: int
    num_prerequisites: int
    forward_flops: float
    prerequisite_flops: float
    boundary_bytes: float
    prerequisite_boundary_bytes: float
    answer_bytes: float
    gradient_bytes: float
    train_activation_bytes: float
    forward_activation_bytes: float

    def __hash__(self) -> int:
        return hash(self.task)  # the key of many look-ups

    def first_epoch_steps(self, batch_size: int) -> int:
        """Steps after which every answer is known."""
        return min(self.steps, math.ceil(self.epoch_items / batch_size))


@dataclass(frozen=True)
class Workload:
    """A stage: its tasks, and what they share.

    Attributes:
        name: for people.
        tasks: trained in turn, a batch each.
        batch_size: B, items per gradient step over all devices; planning never changes it.
        layer_flops_shares: share of a forward's FLOPs in each layer; sum 1. What stands before the first layer counts
            with the first, what stands behind the last with the last.
        layer_bytes: frozen weights of each layer, likewise.
        adapter_bytes: all slices of the LoRA.
        optimizer_bytes: gradients and moments of what the stage trains.
        train_ratio: forward + backward over forward, where a device has no measured one.
        whole_model: whether the devices of a layer pipeline hold all weights, adapters and moments, as those do that
            train today: a stage then saves activations only.
    """

    name: str
    tasks: tuple[TaskWork, ...]
    batch_size: int
    layer_flops_shares: tuple[float, ...]
    layer_bytes: tuple[float, ...]
    adapter_bytes: float
    optimizer_bytes: float
    train_ratio: float = TRAIN_RATIO
    whole_model: bool = False

    @property
    def num_layers(self) -> int:
        """Layers that cuts may separate."""
        return len(self.layer_bytes)

    @property
    def base_bytes(self) -> float:
        """All frozen weights."""
        return sum(self.layer_bytes)


def estimate_workloads(
    model: ModelSize,
    graph: TaskGraph,
    plan: TrainingPlan,
    *,
    tokens: Mapping[str, int],
    images: Mapping[str, bool],
    num_items: Mapping[str, int],
    batch_size: int,
    steps_per_task: int,
    answers_needed: bool = True,
    bytes_per_number: int = 2,
) -> tuple[Workload, ...]:
    """Estimates the work of every stage of a training plan.

    Args:
        model: sizes of the language model.
        graph: whose ancestors make the chain of an item.
        plan: stages, and the slices that each task trains.
        tokens: tokens of an item of each task, image included; batches are padded.
        images: whether a task's items show an image.
        num_items: training items of each task.
        batch_size: items per gradient step.
        steps_per_task: gradient steps of each task in its stage.
        answers_needed: whether prompts hold the model's own answers; else n = 0.
        bytes_per_number: of the frozen weights and activations.

    Raises:
        ConfigError: a batch size or number of steps below 1.
    """
    for key, value in (("training.batch_size", batch_size), ("training.steps_per_task", steps_per_task)):
        if value < 1:
            raise ConfigError(f"{key} must be at least 1, got {value}")
    flops = {task: model.forward_flops(tokens[task], _active_rank(plan, task), images[task]) for task in plan.uses}
    workloads, trained = [], set()
    for number, stage in enumerate(plan.stages, start=1):
        tasks = []
        for task in stage:
            ancestors = graph.prerequisites(task, "ancestors") if answers_needed else ()
            chain = tuple(name for name in ancestors if name in trained)
            gradient_bytes = _FLOAT32_BYTES * model.lora_parameters(_trained_rank(plan, task))
            per_item = _per_item(model, task, chain, tokens, flops, bytes_per_number)
            tasks.append(TaskWork(task, steps_per_task, num_items[task], gradient_bytes=gradient_bytes, **per_item))
        # Only now: tasks of one stage give each other no answers of their own.
        trained.update(stage)
        shared = _per_stage(model, plan, stage, tokens, images, bytes_per_number)
        workloads.append(Workload(f"stage {number}", tuple(tasks), batch_size, **shared))
    return tuple(workloads)


def _per_stage(
    model: ModelSize,
    plan: TrainingPlan,
    stage: Sequence[str],
    tokens: Mapping[str, int],
    images: Mapping[str, bool],
    bytes_per_number: int,
) -> dict[str, Any]:
    """The figures of a `Workload` that its tasks share."""
    num_trained = sum(status["train"] for status in plan.statuses(stage).values())
    return {
        "layer_flops_shares": model.layer_flops_shares(max(tokens[v] for v in stage), any(images[v] for v in stage)),
        "layer_bytes": tuple(bytes_per_number * count for count in model.layer_parameters()),
        "adapter_bytes": _FLOAT32_BYTES * model.lora_parameters(plan.partition.total_rank),
        "optimizer_bytes": 3 * _FLOAT32_BYTES * model.lora_parameters(num_trained),
    }


def _per_item(
    model: ModelSize,
    task: str,
    chain: tuple[str, ...],
    tokens: Mapping[str, int],
    flops: Mapping[str, float],
    bytes_per_number: int,
) -> dict[str, float]:
    """The figures of a `TaskWork` that one item makes."""
    boundary = {name: tokens[name] * model.hidden_size * bytes_per_number for name in (*chain, task)}
    kept = {
        name: activation_bytes(tokens[name], model.hidden_size, model.num_heads, bytes_per_number)
        for name in (*chain, task)
    }
    mean = 1 / max(1, len(chain))
    return {
        "num_prerequisites": len(chain),
        "forward_flops": flops[task],
        "prerequisite_flops": mean * sum(flops[name] for name in chain),
        "boundary_bytes": boundary[task],
        "prerequisite_boundary_bytes": mean * sum(boundary[name] for name in chain),
        "answer_bytes": ANSWER_BYTES * len(chain),
        "train_activation_bytes": kept[task],
        "forward_activation_bytes": max(kept.values()),
    }


def _active_rank(plan: TrainingPlan, task: str) -> int:
    return sum(plan.partition.ranks[name] for name in plan.uses[task].active)


def _trained_rank(plan: TrainingPlan, task: str) -> int:
    use, ranks = plan.uses[task], plan.partition.ranks
    # Frozen ranks are in the forward but have no gradient.
    return sum(ranks[name] - use.num_frozen(name, ranks[name]) for name in use.active)
