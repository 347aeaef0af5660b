"""`model.quantization`: a base of 8 or 4 bits, by bitsandbytes."""

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from contextlora.backbones.faults import BackboneError
from contextlora.limits import shown


def few_bits(quantization: str, dtype: torch.dtype, device: str | torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a base of few bits; none for an ordinary one."""
    if quantization == "none":
        return {}
    if quantization not in ("8bit", "4bit"):
        raise BackboneError(f"model quantization must be none, 8bit or 4bit, got {shown(quantization)}")
    if not find_spec("bitsandbytes"):
        raise BackboneError(
            f"model.quantization={quantization} needs bitsandbytes: .venv/bin/pip install -e '.[quantization]'"
        )
    bits = {"load_in_8bit": True}
    if quantization == "4bit":
        bits = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    # bitsandbytes moves weights as it loads them, and never again.
    return {"quantization_config": BitsAndBytesConfig(**bits), "device_map": {"": device}}
