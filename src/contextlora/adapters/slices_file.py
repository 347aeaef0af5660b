"""All slices and gates of a model in one safetensors file, never pickled.

The header names the backbone (its fingerprint) and the partition, so that the slices of another one are refused.
"""

import json
import os
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from contextlora.adapters.config import AdapterError
from contextlora.adapters.model import AdaptedModel


def save_slices(adapted: AdaptedModel, path: str | Path, fingerprint: str) -> None:
    """Writes the current values of every slice and gate; the file appears complete or not at all.

    Args:
        adapted: the model, in a stage or not.
        path: the file, replaced if it exists.
        fingerprint: of the backbone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        new = Path(scratch, "new")
        save_file(adapted.adapter_state(), new, metadata=_header(adapted, fingerprint))
        os.replace(new, path)


def load_slices(adapted: AdaptedModel, path: str | Path, fingerprint: str) -> None:
    """Takes over what `save_slices` wrote for the same backbone and partition.

    Raises:
        AdapterError: for a missing, damaged or foreign file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path} is no readable slices file ({error}): is the path right and the file whole?"
        ) from None
    for key, expected in _header(adapted, fingerprint).items():
        if header.get(key) != expected:
            raise AdapterError(f"{path} was written for another {key}, {header.get(key)}: this model has {expected}")
    adapted.load_adapter_state(state)


def _header(adapted: AdaptedModel, fingerprint: str) -> dict[str, str]:
    return {"backbone": fingerprint, "partition": json.dumps(dict(adapted.partition.ranks))}
