"""Export: a task's active slices as an ordinary PEFT adapter."""

from pathlib import Path

from contextlora.adapters.model import AdaptedModel
from contextlora.graph import SliceUse


def export_adapter(
    adapted: AdaptedModel, task: str | None, use: SliceUse, folder: str | Path, base_model_name_or_path: str
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, which unmodified PEFT and vLLM read; atomically."""
    raise NotImplementedError
