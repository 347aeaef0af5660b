"""Scores the options of an item by their log-likelihood given the prompt, as lm-evaluation-harness does.

    score(option) = sum_l log p(token_l | prompt, token_1 .. token_{l-1})

Only the positions that predict option tokens get logits. Shapes: B prompts, K options, T prompt and L option tokens.
"""

import torch
import torch.nn.functional as F
from torch import nn

from contextlora.backbones.encoding import OptionBatch, encode

__all__ = ["OptionBatch", "encode", "option_scores"]


def option_scores(model: nn.Module, batch: OptionBatch) -> torch.Tensor:
    """Log-likelihood of every option; differentiable, so that their cross-entropy is the training loss.

    Args:
        model: a Hugging Face model, on the batch's device.
        batch: encoded prompts.

    Returns:
        (B, K) float32, -inf where an item has fewer than K options.
    """
    if batch.option_ids.shape[-1] == 1:
        logits = model(**batch.inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
        scores = F.log_softmax(logits.float(), dim=-1).gather(1, batch.option_ids[..., 0])
    else:
        scores = torch.stack([_score_option(model, batch, k) for k in range(batch.option_ids.shape[1])], dim=1)
    return scores.masked_fill(~batch.option_mask[..., 0], -torch.inf)


def _score_option(model: nn.Module, batch: OptionBatch, option: int) -> torch.Tensor:
    """(B,) log-likelihoods of one option of each item: one row an item, its tokens behind the prompt's."""
    ids, mask = batch.option_ids[:, option], batch.option_mask[:, option]
    num_tokens = ids.shape[1]
    given, is_given = ids[:, :-1], mask[:, :-1].long()
    prompts = batch.inputs["input_ids"]
    inputs = {}
    for name, value in batch.inputs.items():
        if name == "input_ids":
            value = torch.cat([value, given], dim=1)
        elif name == "attention_mask":
            value = torch.cat([value, is_given], dim=1)
        elif name == "position_ids":
            value = torch.cat([value, value[:, -1:] + is_given.cumsum(1)], dim=1)
        elif value.shape == prompts.shape:  # a feature of each token, 0 for text
            value = torch.cat([value, torch.zeros_like(given)], dim=1)
        inputs[name] = value
    logits = model(**inputs, logits_to_keep=num_tokens, use_cache=False).logits[:, -num_tokens:]
    token_scores = F.log_softmax(logits.float(), dim=-1).gather(2, ids[..., None])[..., 0]
    return (token_scores * mask).sum(dim=1)
