"""This process's stage of a layer pipeline, over `torch.distributed.pipelining`.

    stage 0 (process 2)   embeddings, layers 0-3    0F0  0F1   .   0B0  0F2  0B1 ...
                                                   |    |    ^         |           (k, W, h): hidden states down,
                                                   v    |    |         |           their gradients up
    stage 1 (process 0)   layers 4-, norm, head      .    1F0  1B0  1F1  1B1 ...      (1F1B)

What a stage computes is the caller's function `run(part, layers, hidden)`; it makes nothing of `part` but hand it on:

    first stage     hidden is None                -> (k, T, h) hidden states behind its last layer
    between         hidden (k, T, h)              -> likewise
    last stage      hidden (k, T, h)              -> what is wanted: a loss, scores

Every message has the shape that its schedule was made with, or the peer's process would abort. So hidden states travel
padded with zeros to k items and to a multiple of `LENGTH_STEP` tokens, and each such shape has a schedule of its own.
Nothing is computed on the padding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from contextlora.gear.planning.roles import Pipeline

LENGTH_STEP = 8
Run = Callable[[Any, slice, Tensor | None], Tensor]  # (part, layers, hidden states) -> see the module's head


class PipelineExecutor:
    """This process's stage.

    Args:
        pipeline: which processes, and their layers.
        process: this one.
        group: process group of the pipeline's processes.
        device: where this process computes.
    """

    def __init__(self, pipeline: Pipeline, process: int, group: Any, device: torch.device) -> None:
        self.pipeline, self.group, self.device = pipeline, group, device
        self.stage = pipeline.processes.index(process)
        self._made: dict[tuple, tuple[_Stage, PipelineStage, Any]] = {}

    def train(self, parts: Sequence[Any], sizes: Sequence[int], run: Run, item: Tensor) -> Tensor:
        """Forward and backward of a batch; gradients are added to those that are there.

        Args:
            parts: micro-batches.
            sizes: items of each; all but the last have as many as the first.
            run: gives the loss of a part in the last stage; the parts' losses add up to the batch's.
            item: hidden states of one item, (T, h), as a meta tensor.

        Returns:
            The batch's loss in the last stage, 0 in the others.
        """
        module = self._step(parts, sizes, run, item, trains=True)
        losses = module.outputs
        module.outputs = []
        return sum((loss.detach() for loss in losses), torch.zeros((), device=self.device))

    def forward(self, parts: Sequence[Any], sizes: Sequence[int], run: Run, item: Tensor, output: Tensor) -> Tensor:
        """Forward only; every process of the group gets the last stage's outputs.

        Args:
            parts, sizes, run, item: as for `train`; in the last stage `run` gives (k, ...) outputs.
            output: of one item, as a meta tensor.

        Returns:
            (items, ...) on the CPU.
        """
        with torch.no_grad():
            module = self._step(parts, sizes, run, item, trains=False)
        found = torch.empty(sum(sizes), *output.shape, dtype=output.dtype)
        if module.outputs:
            found.copy_(torch.cat(module.outputs))
        module.outputs = []
        found = found.to(self.device)
        dist.broadcast(found, self.pipeline.processes[-1], group=self.group)
        return found.cpu()

    def _step(self, parts: Sequence[Any], sizes: Sequence[int], run: Run, item: Tensor, trains: bool) -> "_Stage":
        length = -(-item.shape[0] // LENGTH_STEP) * LENGTH_STEP
        key = (trains, len(parts), sizes[0], length, item.shape[1:], item.dtype)
        if key not in self._made:
            wire = torch.empty(sizes[0], length, *item.shape[1:], dtype=item.dtype, device="meta", requires_grad=trains)
            self._made[key] = self._make(wire, len(parts), trains)
        module, stage, schedule = self._made[key]
        module.parts, module.sizes, module.run, module.length = parts, sizes, run, item.shape[0]
        # Schedules cut tensors along their first dimension: this makes each call know the number of its micro-batch.
        numbers = torch.arange(len(parts))
        first = (numbers,) if self.stage == 0 else ()
        try:
            schedule.step(*first, number=numbers, target=numbers if trains else None, return_outputs=False)
        except RuntimeError as error:
            raise (error.__cause__ or error) from None  # torch wraps what `run` raises into a page of its own
        stage.clear_runtime_states()  # it would keep a batch's hidden states until the next one
        module.parts, module.run = (), None
        return module

    def _make(self, wire: Tensor, num_micro: int, trains: bool) -> tuple["_Stage", PipelineStage, Any]:
        processes = self.pipeline.processes
        is_last = self.stage == len(processes) - 1
        module = _Stage(self.pipeline.layers(self.stage), wire.shape, is_last)
        # With the shapes of both sides torch runs no forward of its own to find them.
        stage = PipelineStage(
            module,
            self.stage,
            len(processes),
            self.device,
            input_args=torch.empty(1, dtype=torch.long, device="meta") if self.stage == 0 else wire,
            output_args=torch.empty((), device="meta", requires_grad=trains) if is_last else wire,
            group=self.group,
        )
        # Process groups sort their processes; the plan does not.
        in_group = sorted(processes)
        stage.stage_index_to_group_rank = {index: in_group.index(process) for index, process in enumerate(processes)}
        # With fewer micro-batches than stages 1F1B never gets to alternate, and torch's refuses them.
        kind = (
            Schedule1F1B if self.pipeline.layout == "1f1b" and num_micro >= len(processes) and trains else ScheduleGPipe
        )
        # Parts come weighted by their share of the batch: torch must not divide by their number too.
        return module, stage, kind(stage, num_micro, loss_fn=_loss if trains else None, scale_grads=False)


def _loss(output: Tensor, target: Tensor) -> Tensor:
    # `run` has made the loss; schedules run backwards only where they are given a loss function.
    return output


class _Stage(nn.Module):
    """One micro-batch between two wires; `parts`, `sizes`, `run` and `length` are those of the batch underway."""

    def __init__(self, layers: slice, wire: torch.Size, is_last: bool) -> None:
        super().__init__()
        self.layers, self.wire, self.is_last = layers, wire, is_last
        self.parts: Sequence[Any] = ()
        self.sizes: Sequence[int] = ()
        self.run: Run | None = None
        self.length = 0
        self.outputs: list[Tensor] = []

    def forward(self, received: Tensor, number: Tensor) -> Tensor:
        index = int(number)
        size = self.sizes[index]
        hidden = received[:size, : self.length] if self.layers.start else None
        found = self.run(self.parts[index], self.layers, hidden)
        if self.is_last:
            self.outputs.append(found)
            return found
        # F.pad counts from the last dimension: nothing for h, then tokens, then items.
        missing = [0, 0] * (found.dim() - 2) + [0, self.wire[1] - self.length, 0, self.wire[0] - size]
        return (F.pad(found, missing) if any(missing) else found).contiguous()
