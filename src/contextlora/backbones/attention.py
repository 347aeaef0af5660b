"""`model.attn_implementation=auto`: the attention that a first batch is read fastest with.

Which one that is depends on model, processor and dtype: on CPUs eager attention is up to twice as fast for the bundled
model and takes 2.7 times as long for Gemma 3 in bfloat16 (docs/decisions.md). Both are exact; their last digits differ.
"""

import time
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from contextlora.backbones.scoring import option_scores

if TYPE_CHECKING:
    from contextlora.backbones.encoding import OptionBatch

# What sdpa must save to be taken: runs of one command should choose alike, though times vary.
_LEAST_SAVING = 1.25
_ROUNDS = 4


@torch.no_grad()
def choose_attention(model: PreTrainedModel, batch: "OptionBatch") -> str:
    """Sets eager attention or, where it is a quarter faster, PyTorch's `sdpa`, and gives the name.

    Args:
        model: in eval mode; on a GPU it gets `sdpa` unmeasured.
        batch: of a few prompts, on the model's device.
    """
    if batch.answer.device.type != "cpu":
        model.set_attn_implementation("sdpa")
        return "sdpa"
    seconds = {"eager": [], "sdpa": []}
    for _ in range(_ROUNDS):
        for name, found in seconds.items():
            model.set_attn_implementation(name)
            began = time.perf_counter()
            option_scores(model, batch)
            found.append(time.perf_counter() - began)
    # The least: what else the machine does only adds.
    chosen = "sdpa" if min(seconds["eager"]) > _LEAST_SAVING * min(seconds["sdpa"]) else "eager"
    model.set_attn_implementation(chosen)
    return chosen
