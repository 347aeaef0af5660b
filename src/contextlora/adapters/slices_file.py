"""All slices in one safetensors file, never pickled."""

from pathlib import Path

from contextlora.adapters.model import AdaptedModel


def save_slices(adapted: AdaptedModel, path: str | Path, fingerprint: str) -> None:
    """Writes every slice and gate, with the backbone's fingerprint and the partition; atomically."""
    raise NotImplementedError


def load_slices(adapted: AdaptedModel, path: str | Path, fingerprint: str) -> None:
    """Takes a file of `save_slices` over into a model of the same backbone and partition."""
    raise NotImplementedError
