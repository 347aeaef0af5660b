"""What tells backbones apart."""

import hashlib
import json

import numpy as np
import torch
from transformers import PreTrainedModel

_PART = 1 << 22  # values at a time: their copies as integers stay small


def fingerprint(model: PreTrainedModel) -> str:
    """16 hex digits from the model's class, and every weight's name, shape, some of its values and the sum of all.

    Values are compared in bfloat16, so that a checkpoint has one fingerprint in float32 and bfloat16. In float16 it may
    have another: tiny values are lost there.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 32)][:32]
        # Of integers, and so the same in any order of summation.
        total = sum(int(_bits(part).sum(dtype="int64")) for part in flat.split(_PART))
        digest.update(json.dumps([name, list(weight.shape), total]).encode())
        digest.update(_bits(sample).tobytes())
    return digest.hexdigest()[:16]


def _bits(values: torch.Tensor) -> np.ndarray:
    return values.to("cpu", torch.bfloat16).view(torch.int16).numpy()  # which has no bfloat16
