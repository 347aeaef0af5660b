"""The values of an adapter under stable names, and version numbers that say which of them may have changed.

    <module>.lora_A.<slice>            (r, d_in)      owner  <slice>
    <module>.lora_B.<slice>            (d_out, r)     owner  <slice>
    <module>.lora_gate.<slice>-><task> ()             owner  -><task>
    <module>.lora_<parts>.<parameter>  (...)          owner  +<parts>, of `TrainableParts`

All tensors of an owner train in the same stages and have one version number: 0 for the initial values, and a new one
whenever they may have changed. Equal numbers mean equal values, so that an answer can be remembered by them.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import count

import torch
from torch import Tensor

from contextlora.adapters.config import AdapterError
from contextlora.adapters.parts import TrainableParts
from contextlora.adapters.slices import RankSlices
from contextlora.graph import SliceUse


class AdapterState:
    """Reads and writes the values of all layers.

    Args:
        layers: module name -> its slices.
        parts: what trains beside them; may grow.
    """

    def __init__(self, layers: Mapping[str, RankSlices], parts: list[TrainableParts]) -> None:
        self._layers, self._parts = layers, parts
        self._versions: Counter[str] = Counter()
        self._new_versions = count(1)

    def read(self, owners: Collection[str] | None = None) -> dict[str, Tensor]:
        """Current values of these owners, or of all, as float32 clones on the CPU."""
        with torch.inference_mode(False), torch.no_grad():  # or the clones could not be written to outside of it
            return {
                name: view.to("cpu", copy=True, memory_format=torch.contiguous_format)
                for name, view in self._views(owners).items()
            }

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Takes values over, in place also into what trains; what `state` does not name keeps its values.

        Raises:
            AdapterError: for foreign or mis-shaped tensors, before anything is changed.
        """
        views, changed = self._views({_owner(name) for name in state}), set()
        _check(views, state)
        with torch.inference_mode(False), torch.no_grad():
            for name, value in state.items():
                # Equal values keep their version, and with it the answers that are remembered by it.
                if not torch.equal(views[name].cpu(), value.cpu()):
                    views[name].copy_(value)
                    changed.add(_owner(name))
        if changed:
            for slices in self._layers.values():
                slices.read_back()
        self.touch(changed)

    @contextmanager
    def replaced(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Puts values of another time in force, and then those of now back; nothing may train meanwhile."""
        now, versions = self.read({_owner(name) for name in state}), self._versions.copy()
        self.write(state)
        try:
            yield
        finally:
            self.write(now)
            # The same values again, so the same numbers; the count goes on, and none ever stands for two values.
            self._versions = versions

    def touch(self, owners: Collection[str]) -> None:
        """Says that the values of these owners may have changed."""
        for owner in owners:
            self._versions[owner] = next(self._new_versions)

    @property
    def changed(self) -> set[str]:
        """Owners whose values may not be the initial ones."""
        return {owner for owner, version in self._versions.items() if version}

    def version(self, use: SliceUse, task: str | None) -> tuple[int, ...]:
        """Equal for equal values of all that `use` by `task` computes with, the base aside."""
        return tuple(self._versions[owner] for owner in owners_of(use, task, self._parts))

    def _views(self, owners: Collection[str] | None) -> dict[str, Tensor]:
        """Views of the storage, what trains written back."""
        views = {}
        for module, slices in self._layers.items():
            slices.write_back()
            # By owner: what a stage trained is little of a graph of 1,000 tasks.
            for name in slices.partition.ranks if owners is None else owners:
                if name in slices.partition.ranks:
                    views[f"{module}.lora_A.{name}"], views[f"{module}.lora_B.{name}"] = slices.values(name)
            for (name, task), index in slices.edge_index.items():
                if owners is None or f"->{task}" in owners:
                    views[f"{module}.lora_gate.{name}->{task}"] = slices.gates[index]
        for parts in self._parts:
            if owners is None or f"+{parts.name}" in owners:
                views |= parts.tensors()
        return views


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raises `AdapterError` for nan or infinity among values, naming the first tensor that holds one."""
    for name, value in state.items():
        if not value.isfinite().all():
            raise AdapterError(
                f"all weights must be finite, but {where} hold nan or infinity in {name}; train again with a lower "
                "training.learning_rate or model.dtype=float32"
            )


def owners_of(use: SliceUse, task: str | None, parts: Collection[TrainableParts]) -> list[str]:
    """The owners of all values that a task's use computes with."""
    return [*use.active, *([f"->{task}"] if use.prerequisites else []), *(f"+{one.name}" for one in parts)]


def _owner(name: str) -> str:
    _, _, ending = name.rpartition(".lora_")
    kind, _, rest = ending.partition(".")
    return {"A": rest, "B": rest, "gate": f"->{rest.partition('->')[2]}"}.get(kind, f"+{kind}")


def _check(views: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    if foreign := sorted(state.keys() - views.keys()):
        raise AdapterError(
            f"the state holds {len(foreign)} foreign tensors, such as {foreign[0]}; give that of the same model, graph "
            "and method, or train again"
        )
    for name, value in state.items():
        if value.shape != views[name].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(views[name].shape)}"
            raise AdapterError(
                f"tensor {name} of the adapter state has shape {shapes}; give the state of the same model and "
                "method.rank, or train again"
            )
