"""The rank slices of one linear layer: where their numbers live, and which of them a stage trains.

One layer's storage is one LoRA of rank R, cut into slices. Here a stage trains task `route`, whose prerequisite `grip`
has frozen ratio delta = 1/2: two of its four ranks stay frozen; which ones is a policy (freezing.py).

    storage A (R, d_in)            status     during the stage
    +---------------------+
    | hazard  0  1  2  3  |        mask       stays in the storage, neither computed nor touched
    |---------------------|
    | grip    4     6     |        freeze     constant copy; gradients flow through it to lower layers
    |            5     7  |        train      leaf A (2, d_in), group "open"
    |---------------------|
    | route   8  9 10 11  |        train      leaf A (4, d_in), group "own"
    +---------------------+

and the same for the columns of B (d_out, R). Only leaves have `requires_grad` and only they reach an optimizer, so
weight decay and momentum cannot move a frozen or masked rank: it stays bit-identical by construction, not because its
gradient happens to be zero (ranks with zero gradient still move).

When two tasks of a stage freeze different shares of one prerequisite, its ranks are cut at both shares into several
leaves. One that is open for v and frozen for v' enters the batches of v' as a constant and gets no gradient from them.

Legend: R ranks in all, r ranks of a slice, n active ranks of a task, s scale. Paper: arXiv 2507.21199, Eq. (5)-(6).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from contextlora.graph import RankPartition, SliceUse


@dataclass
class ActiveUse:
    """What is in force for the next forward; one object, shared by all layers of a model."""

    use: SliceUse | None = None
    task: str | None = None


@dataclass(frozen=True)
class Leaf:
    """Some ranks of one slice that train in the stage, from place `first` on in the slice's order of freezing."""

    slice_name: str
    first: int
    is_own: bool
    ranks: Tensor  # their indices in the storage
    A: nn.Parameter
    B: nn.Parameter


@dataclass
class StageTask:
    """What one task of the stage puts together in its forward: its frozen ranks, then the leaves of its slices."""

    use: SliceUse
    frozen_ranks: Tensor
    leaves: list[tuple[Leaf, bool]]  # True where the leaf trains for this task
    gate: nn.Parameter | None  # one scalar per prerequisite
    gate_index: Tensor  # (n,) prerequisite of each active rank; their number for a rank of an own slice
    slice_of_rank: list[int]  # (n,) place in the partition of each active rank's slice
    frozen_A: Tensor | None = None
    frozen_B: Tensor | None = None


class RankSlices(nn.Module):
    """A (R, d_in), B (d_out, R) and the gates of one layer; during a stage also the leaves.

    Args:
        d_in, d_out: input and output features of the layer.
        partition: slice -> ranks.
        edges: (slice, task) pairs that have a gate.
        scale: s = alpha / r, the same for every slice.
        active: what is in force, shared by all layers of a model.
        device: where the base layer is.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        partition: RankPartition,
        edges: Sequence[tuple[str, str]],
        scale: float,
        active: ActiveUse,
        device: torch.device,
    ):
        super().__init__()
        self.partition, self.scale = partition, scale
        self.edge_index = {edge: index for index, edge in enumerate(edges)}
        # Buffers, no parameters: they follow the model to its device, and no optimizer can get hold of them.
        self.register_buffer("A", torch.zeros(partition.total_rank, d_in, device=device))
        self.register_buffer("B", torch.zeros(d_out, partition.total_rank, device=device))
        self.register_buffer("gates", torch.zeros(len(edges), device=device))
        self.leaf_parameters = nn.ParameterDict()
        self.leaves: list[Leaf] = []
        self._stage: dict[str, StageTask] = {}
        self.active = active
        self._kept: tuple | None = None  # key and factors of the latest forward without training
        self._place = {name: place for place, name in enumerate(partition.ranks)}

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]] | None:
        """A (n, d_in), s B (d_out, n) with the gates folded in, and each rank's slice as its place in the partition.

        None for the base alone.
        """
        use, task = self.active.use, self.active.task
        if use is None:
            return None
        stage_task = self._stage.get(task)
        if stage_task is not None and stage_task.use == use:
            return self._stage_factors(stage_task, dtype)
        # Constants: kept from forward to forward, unless they train now (a fused optimizer's writes leave no trace).
        # The key leaves the deltas out: they say what trains and change no forward.
        key = (use.own, tuple(use.prerequisites), task, dtype)
        if self._kept is None or self._kept[0] != key or task in self._stage or self._trains_any_of(use):
            A, B = self.compose(use, task)
            slice_of_rank = [self._place[name] for name in use.active for _ in self.partition.indices(name)]
            self._kept = (key, (A.to(dtype), (B * self.scale).to(dtype), slice_of_rank))
        return self._kept[1]

    def _trains_any_of(self, use: SliceUse) -> bool:
        return any(leaf.slice_name in use.active for leaf in self.leaves)

    def compose(self, use: SliceUse, task: str | None) -> tuple[Tensor, Tensor]:
        """Current A (n, d_in) and B (d_out, n) of the active slices in `use.active` order, gates folded into B."""
        self.write_back()
        parts = []
        # inference_mode(False): what a validation under inference mode keeps must also serve a forward with gradients
        with torch.inference_mode(False), torch.no_grad():
            for name in use.active:
                A, B = self.values(name)
                if name in use.prerequisites and self.edge_index:
                    B = B * self.gates[self.edge_index[name, task]]  # (d_out, r) times a scalar
                parts.append((A, B))
            return _join(parts)

    def _stage_factors(self, stage_task: StageTask, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
        parts = [] if stage_task.frozen_A is None else [(stage_task.frozen_A, stage_task.frozen_B)]
        parts += [
            (leaf.A, leaf.B) if trains else (leaf.A.detach(), leaf.B.detach()) for leaf, trains in stage_task.leaves
        ]
        A, B = parts[0] if len(parts) == 1 else _join(parts)
        factor = self.scale
        if stage_task.gate is not None:
            # (prerequisites + 1): the last one is for own slices, which have no gate.
            gate_or_one = torch.cat([stage_task.gate, stage_task.gate.new_ones(1)])
            factor = gate_or_one[stage_task.gate_index] * self.scale
        # Scaled in float32 and rounded once.
        return A.to(dtype), (B * factor).to(dtype), stage_task.slice_of_rank

    def gate_parameters(self) -> list[nn.Parameter]:
        """The gates that train in the stage, one parameter per task with prerequisites."""
        return [stage_task.gate for stage_task in self._stage.values() if stage_task.gate is not None]

    def values(self, name: str) -> tuple[Tensor, Tensor]:
        """A (r, d_in) and B (d_out, r) of one slice: views of the storage, as of the latest `write_back`."""
        ranks = self.partition.indices(name)
        return self.A[ranks.start : ranks.stop], self.B[:, ranks.start : ranks.stop]

    def write_back(self) -> None:
        """Copies the leaves into the storage."""
        with torch.inference_mode(False), torch.no_grad():
            for leaf in self.leaves:
                self.A[leaf.ranks] = leaf.A
                self.B[:, leaf.ranks] = leaf.B
            for task, stage_task in self._stage.items():
                if stage_task.gate is not None:
                    self.gates[self._gates_of(task, stage_task.use)] = stage_task.gate

    def read_back(self) -> None:
        """Copies the storage into the leaves and the frozen copies: after a stage began, or new values were loaded."""
        self._kept = None
        with torch.inference_mode(False), torch.no_grad():
            for leaf in self.leaves:
                leaf.A.copy_(self.A[leaf.ranks])
                leaf.B.copy_(self.B[:, leaf.ranks])
            for task, stage_task in self._stage.items():
                if len(stage_task.frozen_ranks):
                    stage_task.frozen_A = self.A[stage_task.frozen_ranks]
                    stage_task.frozen_B = self.B[:, stage_task.frozen_ranks]
                if stage_task.gate is not None:
                    stage_task.gate.copy_(self.gates[self._gates_of(task, stage_task.use)])
                    stage_task.gate_index = stage_task.gate_index.to(self.gates.device)

    def _gates_of(self, task: str, use: SliceUse) -> list[int]:
        return [self.edge_index[name, task] for name in use.prerequisites]

    def _apply(self, fn, recurse=True):
        """Follows a move to another device but keeps float32: in bfloat16 updates of 1e-4 would vanish."""

        def keep_float32(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype != tensor.dtype else moved

        self.write_back()
        # The frozen copies are neither parameters nor buffers: read_back makes them anew where the storage is now.
        super()._apply(keep_float32, recurse)
        self.read_back()
        return self

    def begin_stage(self, uses: Mapping[str, SliceUse], orders: Mapping[str, Sequence[int]]) -> None:
        """Makes the leaves of a stage.

        Args:
            uses: task -> use, for the tasks that train together.
            orders: prerequisite slice -> its ranks 0..r-1, first to be frozen first.
        """
        ranks = {name: self._ranks(name, orders.get(name)) for use in uses.values() for name in use.active}
        with torch.inference_mode(False):  # leaves made under inference mode could not train
            for name in ranks:
                self._make_leaves(name, ranks[name], [use for use in uses.values() if name in use.active])
            for task, use in uses.items():
                self._stage[task] = self._stage_task(task, use, ranks)
        self.read_back()

    def end_stage(self) -> None:
        """Writes the leaves back and drops them."""
        self.write_back()
        self.leaf_parameters.clear()
        self.leaves, self._stage, self._kept = [], {}, None

    def _ranks(self, name: str, order: Sequence[int] | None) -> Tensor:
        """The storage indices of a slice, first to be frozen first."""
        indices = self.partition.indices(name)
        return torch.tensor([indices[rank] for rank in order] if order is not None else list(indices))

    def _make_leaves(self, name: str, ranks: Tensor, uses: Sequence[SliceUse]) -> None:
        """Cuts what is not frozen for all `uses` of a slice where the number of frozen ranks differs between them."""
        # What lies before the first cut is frozen for all and gets no leaf.
        cuts = sorted({*(use.num_frozen(name, len(ranks)) for use in uses), len(ranks)})
        for first, last in pairwise(cuts):
            A = nn.Parameter(self.A.new_empty(last - first, self.A.shape[1]))  # values come with read_back
            B = nn.Parameter(self.B.new_empty(self.B.shape[0], last - first))
            self.leaf_parameters.update({f"A:{name}:{first}": A, f"B:{name}:{first}": B})
            is_own = any(name in use.own for use in uses)
            self.leaves.append(Leaf(name, first, is_own, ranks[first:last], A, B))

    def _stage_task(self, task: str, use: SliceUse, ranks: Mapping[str, Tensor]) -> StageTask:
        leaves = [leaf for leaf in self.leaves if leaf.slice_name in use.active]
        num_fixed = {name: len(ranks[name]) for name in use.active}  # ranks that no task of the stage trains
        for leaf in leaves:
            num_fixed[leaf.slice_name] -= len(leaf.ranks)
        trains = [leaf.first >= use.num_frozen(leaf.slice_name, len(ranks[leaf.slice_name])) for leaf in leaves]

        place = {name: index for index, name in enumerate(use.prerequisites)}
        owners = [name for name in use.active for _ in range(num_fixed[name])]
        owners += [leaf.slice_name for leaf in leaves for _ in leaf.ranks]
        gate = None
        if self.edge_index and place:
            gate = self.leaf_parameters[f"gate:{task}"] = nn.Parameter(self.gates.new_empty(len(place)))
        return StageTask(
            use,
            frozen_ranks=torch.cat([ranks[name][: num_fixed[name]] for name in use.active]),
            leaves=list(zip(leaves, trains, strict=True)),
            gate=gate,
            gate_index=torch.tensor([place.get(name, len(place)) for name in owners]),
            slice_of_rank=[self._place[name] for name in owners],
        )


def _join(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([A for A, _ in parts]), torch.cat([B for _, B in parts], dim=1)
