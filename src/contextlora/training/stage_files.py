"""The weights that each stage left: safetensors files among a run's checkpoints, never pickled.

The header names the backbone (its fingerprint) and the partition, so that the slices of another one are refused, and
how the tasks used the slices when the stage ended.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from contextlora.adapters import AdaptedModel, AdapterError
from contextlora.adapters.state import check_finite
from contextlora.files import write_atomically
from contextlora.graph import SliceUse
from contextlora.training.module import ContextLoraModule

HEADER = "contextlora"  # the entry of a file's metadata


class StageFiles:
    """Saves what a stage has trained, and puts the weights after any stage back.

    A file holds only what its stage trained, so that a graph of many tasks takes the room of one LoRA. The weights
    after a stage are the initial ones, which the seed fixes, and then those of all files up to it.

    Args:
        folder: of the files.
        module: whose weights.
    """

    def __init__(self, folder: Path, module: ContextLoraModule) -> None:
        self.folder, self.module = folder, module
        self._num_loaded = 0

    def path(self, stage: int) -> Path:
        """The file of a stage."""
        return self.folder / f"stage-{stage + 1}.safetensors"

    def save(self, stage: int, owners: set[str]) -> None:
        """Keeps the weights of these owners as they are now."""
        module = self.module
        save_slices(module.adapted, self.path(stage), module.data.backbone.fingerprint, owners, module.uses)

    def load(self, stage: int) -> None:
        """Makes weights and uses what they were after a stage, for all tasks that had been trained by then."""
        # Back in time, all files again: a later stage may have moved slices of an earlier one.
        first = self._num_loaded if self._num_loaded <= stage else 0
        for number in range(first, stage + 1):
            uses = load_slices(self.module.adapted, self.path(number), self.module.data.backbone.fingerprint)
        self.module.set_uses(uses)
        self._num_loaded = stage + 1

    def load_last(self) -> None:
        """The weights at the end of training."""
        self.load(len(self.module.plan.stages) - 1)


def save_slices(
    adapted: AdaptedModel, path: str | Path, fingerprint: str, owners: set[str] | None, uses: dict[str, SliceUse]
) -> None:
    """Writes current values; the file appears complete or not at all.

    Args:
        adapted: the model, in a stage or not.
        path: the file, replaced if it exists.
        fingerprint: of the backbone.
        owners: whose values, see `adapters.state`; None for all.
        uses: task -> how it uses the slices now.
    """
    header = _header(adapted, fingerprint)
    header["uses"] = {task: [use.own, use.prerequisites] for task, use in uses.items()}
    state = adapted.state.read(owners)
    header["checksum"] = _checksum(header, state)
    # One entry: safetensors writes several in random order, and equal weights would make unequal files.
    write_atomically(Path(path), save(state, metadata={HEADER: json.dumps(header)}))


def load_slices(adapted: AdaptedModel, path: str | Path, fingerprint: str) -> dict[str, SliceUse]:
    """Takes over what `save_slices` wrote for the same backbone and partition.

    Returns:
        The uses.

    Raises:
        AdapterError: for a missing, damaged or foreign file, or values that are not finite.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        checksum = header.pop("checksum", None)  # files of an older version have none
        if checksum is not None and checksum != _checksum(header, state):
            raise ValueError("its checksum is wrong")
        uses = {task: SliceUse(tuple(own), rest) for task, (own, rest) in header.pop("uses", {}).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(
            f"{path} is no readable slices file ({error}): is the path right and the file whole? "
            "If not, delete the folder it lies in and train again"
        ) from None
    for key, expected in _header(adapted, fingerprint).items():
        if header.get(key) != expected:
            raise AdapterError(f"{path} was written for another {key}, {header.get(key)}: this model has {expected}")
    check_finite(state, f"the values in {path}")
    adapted.state.write(state)
    return uses


def _checksum(header: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, values in sorted(state.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _header(adapted: AdaptedModel, fingerprint: str) -> dict[str, Any]:
    return {"backbone": fingerprint, "partition": dict(adapted.partition.ranks)}
