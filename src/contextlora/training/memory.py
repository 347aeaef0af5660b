"""What training and evaluation need of memory: counted on steps of one and two items, and extrapolated to a batch.

A step's memory is all that its operations allocate and its backward still needs. It grows by the same bytes with every
item of a batch of one width, whatever the model is made of, so that nothing needs to be known of layers, vocabulary,
caches or attention. The items are the longest ones of the data.
"""

import resource
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from contextlora.backbones.encoding import OptionBatch
from contextlora.backbones.scoring import option_scores
from contextlora.tasks.order import lengths_of
from contextlora.training.module import ContextLoraModule

# Batches of other widths leave gaps that glibc cannot fill: 1.2 for SmolLM2-135M with 4 to 24 items of real text.
_HELD_ON_CPU = 1.2


@dataclass(frozen=True)
class Growth:
    """Bytes that a pass needs: some, and as many more for every item."""

    fixed_bytes: int
    item_bytes: int

    def of(self, num_items: int) -> int:
        """Bytes for a batch."""
        return self.fixed_bytes + num_items * self.item_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run needs on its device; on a CPU with Python and its libraries.

    Attributes:
        loaded_bytes: what is there before the first step: base and slices, on a CPU the process with all libraries.
        optimizer_bytes: gradients, both AdamW moments and the best values of the stage that trains most.
        training: of a step, forward and backward.
        evaluation: of a forward without a backward.
        held: how many times what is in use the allocator holds.
    """

    loaded_bytes: int
    optimizer_bytes: int
    training: Growth
    evaluation: Growth
    held: float = 1.0

    def total_bytes(self, train_items: int, eval_items: int) -> int:
        """The peak, with so many items at once."""
        step = max(self.training.of(train_items), self.evaluation.of(eval_items))
        return self.loaded_bytes + self.optimizer_bytes + int(self.held * step)

    def fitting_items(self, batch_size: int, available_bytes: int) -> int:
        """The most items of a batch, halved as often as needed, whose training step fits; at least 1."""
        size = batch_size
        while size > 1 and self.optimizer_bytes + self.held * self.training.of(size) > available_bytes:
            size = (size + 1) // 2
        return size

    def describe(self, train_items: int, eval_items: int) -> str:
        """For the dry run."""
        return (
            f"memory: about {_mib(self.total_bytes(train_items, eval_items))} in all: {_mib(self.loaded_bytes)} before "
            f"the first step, {_mib(self.optimizer_bytes)} gradients and optimizer, "
            f"{_mib(self.training.of(train_items))} a training step of {train_items} items "
            f"({_mib(self.evaluation.of(eval_items))} an evaluation of {eval_items})"
        )


def estimate_memory(module: ContextLoraModule) -> MemoryEstimate:
    """Runs steps of one and two of the longest items, on a module before or between its stages; no weight changes.

    Raises:
        UserError: the model cannot read these items.
    """
    device = next(module.adapted.parameters()).device
    task, (one, two) = _widest(module)
    loaded = _loaded_bytes(device)
    stages = [{name: module.plan.uses[name] for name in stage} for stage in module.plan.stages]
    adapted = module.adapted.train()
    adapted.begin_stage(next(stage for stage in stages if task in stage))

    def train(batch: OptionBatch) -> None:
        module.masks.rows, module.masks.batch_size = batch.rows, batch.batch_size
        with adapted.active(module.plan.uses[task], task):
            F.cross_entropy(option_scores(adapted.model, batch), batch.answer).backward()

    def evaluate(batch: OptionBatch) -> None:
        with torch.no_grad(), adapted.active(module.plan.uses[task], task):
            option_scores(adapted.model, batch)

    try:
        train(one)  # gradients, which each step has from the one before
        training = _growth(train, one, two)
        adapted.eval()
        evaluation = _growth(evaluate, one, two)
        # What libraries take at their first backward; on a CPU the most that was resident, less what was counted.
        loaded = max(loaded, (peak_memory_bytes() if device.type == "cpu" else 0) - training.of(2))
    finally:
        adapted.end_stage()
    held = _HELD_ON_CPU if device.type == "cpu" else 1.0
    # Float32 each: gradient, two moments, and the best values so far.
    return MemoryEstimate(loaded, 4 * 4 * max(map(adapted.num_trainable, stages)), training, evaluation, held)


def _widest(module: ContextLoraModule) -> tuple[str, tuple[OptionBatch, OptionBatch]]:
    """The task with the widest of all items, and batches that hold this item once and twice."""
    data, device = module.data, next(module.adapted.parameters()).device

    def batch(task: str, times: int) -> OptionBatch:
        items = data.taskset.items(task, "train")
        item = items[int(lengths_of(items).argmax())]
        return data.encode_items(task, [item] * times, [data.right_context(task, item)] * times)

    def width(task: str) -> int:
        found = batch(task, 1)
        return found.inputs["input_ids"].numel() + found.num_read

    task = max(data.taskset.graph.tasks, key=width)
    return task, (batch(task, 1).to(device), batch(task, 2).to(device))


def _growth(run: Callable[[OptionBatch], None], one: OptionBatch, two: OptionBatch) -> Growth:
    first, second = (_peak_bytes(run, batch) for batch in (one, two))
    return Growth(max(0, 2 * first - second), second - first)


def _peak_bytes(run: Callable[[OptionBatch], None], batch: OptionBatch) -> int:
    """Most bytes that were allocated at once while `run` ran, beyond those that were before."""
    device = batch.answer.device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run(batch)
        return torch.cuda.max_memory_allocated(device) - before
    with _Counted() as counted:
        run(batch)
    return counted.peak_bytes


class _Counted(TorchDispatchMode):
    """Counts the bytes of tensors that operations inside make, until nobody holds them any more."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = self._bytes = 0
        self._storages = WeakIdKeyDictionary(ref_type=weakref.ref)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for storage in _storages([args, kwargs]):  # a view of a weight is no new tensor
            self._storages.setdefault(storage, None)
        found = func(*args, **kwargs)
        for storage in _storages(found):
            if storage not in self._storages:
                self._storages[storage] = None
                self._bytes += storage.nbytes()
                self.peak_bytes = max(self.peak_bytes, self._bytes)
                weakref.finalize(storage, self._free, storage.nbytes())
        return found

    def _free(self, num_bytes: int) -> None:
        self._bytes -= num_bytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def available_bytes(device: torch.device) -> int | None:
    """What may still be allocated on a device; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    limits = [address_space - _loaded_bytes(device)] if address_space != resource.RLIM_INFINITY else []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        # A container's own limit.
        most, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        limits += [int(most) - int(used)] if most.isdecimal() else []
    except (OSError, ValueError):  # another system, or no container
        pass
    return min(limits, default=None)


def _loaded_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:  # macOS has no such file
        return peak_memory_bytes()


def peak_memory_bytes() -> int:
    """Most resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
