"""Trees of tensors and plain values as bytes, and back: a safetensors file whose header holds the tree as JSON.

    {"state": {0: tensor, "lr": 0.1}, "ends": (1, None)}
    -> {"dict": [["state", {"dict": [[0, {"tensor": "0"}], ["lr", 0.1]]}], ["ends", {"tuple": [1, null]}]]}

Reading them runs no code, whoever wrote them.
"""

import json
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

_KEY = "tree"


def to_bytes(tree: Any) -> bytes:
    """A tree of dicts, lists, tuples, tensors, numbers, text and None.

    Raises:
        TypeError: it holds something else.
    """
    tensors: dict[str, Tensor] = {}

    def encode(part: Any) -> Any:
        if part is None or isinstance(part, bool | int | float | str):
            return part
        if isinstance(part, Tensor):
            # A copy: safetensors takes no two tensors that share memory.
            tensors[str(len(tensors))] = part.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(part, dict):
            return {"dict": [[encode(key), encode(value)] for key, value in part.items()]}
        if isinstance(part, list):
            return [encode(value) for value in part]
        if isinstance(part, tuple):
            return {"tuple": [encode(value) for value in part]}
        raise TypeError(f"only tensors and plain values can be sent or kept: got {type(part).__qualname__}")

    text = json.dumps(encode(tree))
    return safetensors.torch.save(tensors, {_KEY: text})


def from_bytes(content: bytes) -> Any:
    """The tree again, with its tensors on the CPU.

    Raises:
        Exception: of many types, where the content is damaged or holds no tree.
    """
    tensors = safetensors.torch.load(content)
    # safetensors reads its header's metadata from files only: eight bytes of length, then JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])

    def decode(part: Any) -> Any:
        if isinstance(part, list):
            return [decode(value) for value in part]
        if not isinstance(part, dict):
            return part
        ((kind, value),) = part.items()
        if kind == "tensor":
            return tensors[value]
        if kind == "tuple":
            return tuple(decode(value))
        return {decode(key): decode(entry) for key, entry in value}

    text = header.get("__metadata__", {}).get(_KEY)
    if text is None:
        raise ValueError("a safetensors file with no tree in it")
    return decode(json.loads(text))
