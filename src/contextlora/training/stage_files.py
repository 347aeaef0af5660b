"""The weights that each stage left: safetensors files among a run's checkpoints, never pickled.

The header names the backbone (its fingerprint), the partition, the stage and what the run was made of, so that the
slices of another one are refused, and how the tasks used the slices when the stage ended.

A file that is missing or damaged is written again from a checkpoint of the run, where nothing has moved since that it
held: after the last stage always, earlier where no later stage trains the same slices.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from contextlora.adapters import AdaptedModel, AdapterError
from contextlora.adapters.state import check_finite
from contextlora.errors import first_line, squeezed, tail
from contextlora.files import check_ordinary, write_atomically
from contextlora.graph import SliceUse
from contextlora.limits import shown
from contextlora.training.checkpoint import (
    KEY,
    LAST,
    PREVIOUS,
    CheckpointError,
    check_identity,
    load_checkpoint,
    newest_whole,
)
from contextlora.training.module import ContextLoraModule

HEADER = "contextlora"  # the entry of a file's metadata
# Of what a run was made of (`assembly.provenance.identity`): what its weights come from or only make sense with, and
# what they may be measured without, which is said. The rest is free in an evaluation.
FIXED = ("base weights", "tokenizer", "image processor", "setting seed", "setting method.", "setting training.")
SAID = ("task set", "chat template")
Slices = tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, SliceUse]]  # a file's header, values and uses


class DamagedSlicesError(AdapterError):
    """A slices file that is missing, or whose bytes are not those that were written."""


class StageFiles:
    """Saves what a stage has trained, and puts the weights after any stage back.

    A file holds only what its stage trained, so that a graph of many tasks takes the room of one LoRA. The weights
    after a stage are the initial ones, which the seed fixes, and then those of all files up to it.

    Args:
        folder: of the files.
        module: whose weights.
        say: told of each file that was written again.
    """

    def __init__(self, folder: Path, module: ContextLoraModule, say: Callable[[str], None] = print) -> None:
        self.folder, self.module, self.say = folder, module, say
        self._num_loaded = 0
        self._said: dict[str, str] = {}  # SAID parts of the files so far, which must be one run's

    def path(self, stage: int) -> Path:
        """The file of a stage."""
        return self.folder / f"stage-{stage + 1}.safetensors"

    def save(self, stage: int, owners: set[str]) -> None:
        """Keeps the weights of these owners as they are now."""
        module = self.module
        origin = _origin(stage, module.identity)
        save_slices(module.adapted, self.path(stage), module.data.backbone.fingerprint, owners, module.uses, origin)

    def load(self, stage: int) -> None:
        """Makes weights and uses what they were after a stage, for all tasks that had been trained by then."""
        # Back in time, all files again: a later stage may have moved slices of an earlier one.
        first = self._num_loaded if self._num_loaded <= stage else 0
        for number in range(first, stage + 1):
            uses = self._load_one(number)
        self.module.set_uses(uses)
        self._num_loaded = stage + 1

    def load_last(self) -> None:
        """The weights at the end of training."""
        self.load(len(self.module.plan.stages) - 1)

    def mend(self) -> None:
        """Sees to it, before training goes on, that all stages that are done have whole files.

        Raises:
            DamagedSlicesError: one has not, and no checkpoint holds what it held.
            CheckpointError: the checkpoint is not this run's; nothing has been written.
            AdapterError: a file is another stage's or run's.
        """
        found = newest_whole(self.folder / LAST, say=lambda _: None)  # whoever continues it says so
        if found:
            check_identity(found[1][KEY]["identity"], self.module.identity)
            self._take_note(self.module.identity)
        for stage in range(found[1][KEY]["progress"]["stage"] if found else 0):
            try:
                self._read(stage)
            except DamagedSlicesError as damage:
                self._rebuild(stage, damage)

    def _load_one(self, stage: int) -> dict[str, SliceUse]:
        try:
            found = self._read(stage)
        except DamagedSlicesError as damage:
            self._rebuild(stage, damage)
            found = self._read(stage)
        return load_slices(self.module.adapted, self.path(stage), self.module.data.backbone.fingerprint, found)

    def _read(self, stage: int) -> Slices:
        """A stage's file, if it is whole and of this stage and run; files of an older version do not say."""
        path = self.path(stage)
        found = read_slices(path)
        number, made_with = found[0].get("stage", stage + 1), found[0].get("identity", {})
        if number != stage + 1:
            raise AdapterError(
                f"{tail(path)} must hold weights of stage {stage + 1}, holds those of stage {number}: put the right "
                "file there, or train again"
            )
        if part := self._foreign_part(made_with):
            theirs, ours = squeezed(made_with[part]), squeezed((self.module.identity | self._said)[part])
            raise AdapterError(
                f"{tail(path)} must be of this run: its {part} is {theirs}, not {ours}; put the run's own file there, "
                "restore what was changed, or train again"
            )
        self._take_note(made_with)
        return found

    def _foreign_part(self, made_with: Mapping[str, str]) -> str:
        """The first part in which a file or a checkpoint shows that it is of another run, or nothing."""
        ours = {part: value for part, value in self.module.identity.items() if part.startswith(FIXED)} | self._said
        return next((part for part, value in ours.items() if made_with.get(part, value) != value), "")

    def _take_note(self, made_with: Mapping[str, str]) -> None:
        """Remembers what the first file was made with, and says what has changed since: measuring may go on."""
        if self._said:
            return
        self._said = {part: made_with[part] for part in SAID if part in made_with}
        for part, value in self._said.items():
            if self.module.identity.get(part, value) != value:
                print(f"contextlora: the {part} is no longer the one that the run was trained on", file=sys.stderr)

    def _rebuild(self, stage: int, damage: DamagedSlicesError) -> None:
        path, module = self.path(stage), self.module
        for name in (LAST, PREVIOUS):
            try:
                checkpoint = load_checkpoint(self.folder / name)
            except CheckpointError:
                continue
            state = self._state_after(stage, checkpoint)
            if state is not None:
                uses = checkpoint[KEY]["progress"]["uses"]
                header = _header(module.adapted, module.data.backbone.fingerprint)
                write_slices(path, header | _origin(stage, checkpoint[KEY]["identity"]), uses, state)
                self.say(f"{path.name} was missing or damaged: written again from {name}")
                return
        what = "missing" if not path.exists() else "damaged"
        raise DamagedSlicesError(
            f"A stage file must be whole: {tail(path)} is {what}, and no checkpoint beside it holds its weights any "
            "more. Restore the file from a copy, or train again."
        ) from damage

    def _state_after(self, stage: int, checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor] | None:
        """What the file of a stage must hold, if nothing of it had moved when the checkpoint was taken."""
        adapted, plan, method = self.module.adapted, self.module.plan, self.module.method
        progress, held = checkpoint[KEY]["progress"], checkpoint["state_dict"]
        fingerprint, made_with = self.module.data.backbone.fingerprint, checkpoint[KEY]["identity"]
        is_foreign = made_with.get("backbone", fingerprint) != fingerprint or self._foreign_part(made_with)
        if progress["stage"] <= stage or is_foreign:
            return None
        has_moved = progress["interval"] > 0 or bool(progress["losses"])  # in the stage that was in force
        if method.changes_uses:
            # Nobody knows what each stage trained: all values together are right as long as nothing has moved.
            return dict(held) if progress["stage"] == stage + 1 and not has_moved else None
        stages = plan.stages[stage : progress["stage"] + has_moved]
        owners, *later = (adapted.owners_trained_with({task: plan.uses[task] for task in tasks}) for tasks in stages)
        expected = adapted.state.read(owners)
        fits = all(name in held and held[name].shape == values.shape for name, values in expected.items())
        return {name: held[name] for name in expected} if fits and owners.isdisjoint(set().union(*later)) else None


def save_slices(
    adapted: AdaptedModel,
    path: str | Path,
    fingerprint: str,
    owners: set[str] | None,
    uses: dict[str, SliceUse],
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Writes current values; the file appears complete or not at all.

    Args:
        adapted: the model, in a stage or not.
        path: the file, replaced if it exists.
        fingerprint: of the backbone.
        owners: whose values, see `adapters.state`; None for all.
        uses: task -> how it uses the slices now.
        origin: goes into the header.
    """
    plain = {task: [use.own, use.prerequisites] for task, use in uses.items()}
    write_slices(path, _header(adapted, fingerprint) | dict(origin or {}), plain, adapted.state.read(owners))


def write_slices(
    path: str | Path, header: dict[str, Any], uses: Mapping[str, Any], state: dict[str, torch.Tensor]
) -> None:
    """Writes values, with the uses as `Progress.uses` holds them."""
    header = header | {"uses": dict(uses)}
    header["checksum"] = _checksum(header, state)
    # One entry: safetensors writes several in random order, and equal weights would make unequal files.
    write_atomically(Path(path), save(state, metadata={HEADER: json.dumps(header)}))


def load_slices(adapted: AdaptedModel, path: str | Path, fingerprint: str, found: Slices) -> dict[str, SliceUse]:
    """Takes over what `read_slices` found in a file that `save_slices` wrote for the same backbone and partition.

    Returns:
        The uses.

    Raises:
        AdapterError: for a foreign file, or values that are not finite.
    """
    header, state, uses = found
    for key, expected in _header(adapted, fingerprint).items():
        if header.get(key) != expected:
            found, here = (one if isinstance(one, str) else shown(one) for one in (header.get(key), expected))
            raise AdapterError(
                f"{tail(path)} was written for another {key}, {found}: this model has {here}; restore what it was "
                "trained with, or train again"
            )
    check_finite(state, f"the values in {tail(path)}")
    adapted.state.write(state)
    return uses


def read_slices(path: str | Path) -> Slices:
    """What a file holds, whole: header, values and uses.

    Raises:
        DamagedSlicesError: for a missing or damaged file.
    """
    try:
        check_ordinary(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        checksum = header.pop("checksum", None)  # files of an older version have none
        if checksum is not None and checksum != _checksum(header, state):
            raise ValueError("its checksum is wrong")
        uses = {task: SliceUse(tuple(own), rest) for task, (own, rest) in header.pop("uses", {}).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedSlicesError(
            f"{tail(path)} is no readable slices file ({first_line(error, but=path)}): is the path right and the file "
            "whole? If not, delete the folder it lies in and train again"
        ) from None
    return header, state, uses


def _checksum(header: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, values in sorted(state.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _header(adapted: AdaptedModel, fingerprint: str) -> dict[str, Any]:
    return {"backbone": fingerprint, "partition": dict(adapted.partition.ranks)}


def _origin(stage: int, identity: Mapping[str, str]) -> dict[str, Any]:
    # Sorted: a file that is written again must have the same bytes.
    return {"stage": stage + 1, "identity": dict(sorted(identity.items()))}
