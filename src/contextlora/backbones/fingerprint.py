"""What tells backbones apart."""

import hashlib
import json

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

_PART = 1 << 22  # values at a time: their copies as integers stay small


def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits from the model's class, and every weight's name, shape and some of its values.

    Values are compared in bfloat16, so that a checkpoint has one fingerprint in float32 and bfloat16. In float16 it may
    have another: tiny values are lost there.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 32)][:32]
        digest.update(json.dumps([name, list(weight.shape)]).encode())
        digest.update(_bits(sample).tobytes())
    return digest.hexdigest()[:16]


def part_fingerprints(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    processor: ProcessorMixin | None,
    chat_template: str | None,
) -> dict[str, str]:
    """Part -> 16 hex digits: of all weights, and of what makes tokens and pixels of a prompt.

    Beside `fingerprint`, by which files of older versions know their backbone.

    Args:
        model: in bfloat16 as there.
        tokenizer, processor: as loaded: use leaves its padding in a tokenizer.
        chat_template: where it is used.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # Python's tokenizers have no serialisation; their rules are code.
    words = backend.to_str() if backend else json.dumps(sorted(tokenizer.get_vocab().items()))
    images = getattr(processor, "image_processor", None)
    # Of integers, and so the same in any order of summation.
    sums = {
        name: sum(int(_bits(part).sum(dtype="int64")) for part in weight.detach().flatten().split(_PART))
        for name, weight in model.state_dict().items()
    }
    parts = {
        "base weights": json.dumps(sums, sort_keys=True),
        "tokenizer": words + json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str),
        "chat template": json.dumps(chat_template),
        "image processor": images.to_json_string() if images else "",
    }
    return {part: hashlib.sha256(text.encode()).hexdigest()[:16] for part, text in parts.items()}


def _bits(values: torch.Tensor) -> np.ndarray:
    return values.to("cpu", torch.bfloat16).view(torch.int16).numpy()  # which has no bfloat16
