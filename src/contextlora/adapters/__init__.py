"""Rank slices of one LoRA on any Hugging Face model; the only importer of peft."""

from contextlora.adapters.config import AdapterConfig, AdapterError
from contextlora.adapters.export import export_adapter, write_merged
from contextlora.adapters.model import AdaptedModel

__all__ = ["AdaptedModel", "AdapterConfig", "AdapterError", "export_adapter", "write_merged"]
