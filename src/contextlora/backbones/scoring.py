"""Scores the options of an item by their log-likelihood given the prompt, as lm-evaluation-harness does.

    score(option) = sum_l log p(token_l | prompt, token_1 .. token_{l-1})        length-normalised: / characters

Where one option of an item begins another in tokens (`main` and `main bridge`), every option of the item ends with one
more token, the tokenizer's end token or ` .` where it has none; otherwise the longer option could never win.

The prompt is read once, options of several tokens packed behind it where the model can do so (`packing`). Else these
need a second forward, which continues from the prompt's keys and values with one row an option, or whole rows where a
model can do neither (`continuing`). Only positions that
predict option tokens get logits, so that a wide vocabulary costs little. Shapes: B prompts, K options, T prompt and L
option tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from contextlora.backbones.encoding import OptionBatch
from contextlora.backbones.faults import BackboneError
from contextlora.backbones.packing import packed_inputs, packed_scores, predicting_columns

# As an index, not the number 1: of the last position's hidden states it makes a tensor of their own. In a slice of all
# positions the head would be multiplied row by row, with a copy of its weights for each.
LAST_POSITION = torch.tensor([-1])


def option_scores(model: nn.Module, batch: OptionBatch) -> torch.Tensor:
    """Log-likelihood of every option; differentiable, so that their cross-entropy is the training loss.

    Args:
        model: a Hugging Face model, on the batch's device.
        batch: encoded prompts.

    Returns:
        (B, K) float32, -inf where an item has fewer than K options.

    Raises:
        BackboneError: options of several tokens, and a model without a key-value cache.
    """
    if batch.num_read:
        inputs = packed_inputs(batch, next(model.parameters()).dtype)
        read = model(**inputs, logits_to_keep=predicting_columns(batch), use_cache=False)
        return scores_of(batch, read.logits, None)
    if batch.own_rows:
        return _finished(batch, _row_scores(model, batch))
    several = batch.option_ids.shape[-1] > 1
    read = model(**batch.inputs, logits_to_keep=LAST_POSITION, use_cache=several)
    continued = None
    if several:
        cache = repeated_cache(model, read, batch)
        continued = model(**continued_inputs(batch), past_key_values=cache, use_cache=True).logits
    return scores_of(batch, read.logits, continued)


def repeated_cache(model: nn.Module, read: object, batch: OptionBatch) -> Any:
    """The prompts' keys and values that a forward left, once for every option.

    Raises:
        BackboneError: it left none.
    """
    cache = getattr(read, "past_key_values", None)
    if cache is None:
        raise BackboneError(
            f"{type(model).__name__} keeps no keys and values, which options of several tokens need; "
            "set taskset.answer_format=letter"
        )
    num_prompts, num_options = batch.option_ids.shape[:2]
    rows = torch.arange(num_prompts, device=batch.option_ids.device).repeat_interleave(num_options)
    cache.reorder_cache(rows)  # states of recurrent layers cannot be repeated otherwise
    return cache


def continued_inputs(batch: OptionBatch) -> dict[str, torch.Tensor]:
    """Arguments of the second forward: (B K, L - 1) tokens of every option but its last, behind the prompts."""
    num_options = batch.option_ids.shape[1]
    ids, mask = batch.option_ids.flatten(0, 1), batch.option_mask.flatten(0, 1)  # (B K, L)
    given, is_given = ids[:, :-1], mask[:, :-1].long()
    inputs = {}
    for name, value in batch.inputs.items():
        if value.shape != batch.inputs["input_ids"].shape:
            continue  # of the image, which the keys and values hold already
        if name == "input_ids":
            inputs[name] = given
        elif name == "attention_mask":
            inputs[name] = torch.cat([value.repeat_interleave(num_options, dim=0), is_given], dim=1)
        elif name == "position_ids":
            inputs[name] = value[:, -1:].repeat_interleave(num_options, dim=0) + is_given.cumsum(dim=1)
        else:
            inputs[name] = torch.zeros_like(given)  # token types and the like: 0 for text
    return inputs


def scores_of(batch: OptionBatch, read: torch.Tensor, continued: torch.Tensor | None) -> torch.Tensor:
    """Option scores from logits.

    Args:
        batch: encoded prompts.
        read: (B, 1, V) behind the prompts; (B, 1 + M, V) of `packing.predicting_columns` where options are packed.
        continued: (B K, L - 1, V) behind each token of the options but the last; None where they have one.

    Returns:
        (B, K) as `option_scores`.
    """
    # In float32: bfloat16 keeps two to three digits, too few to tell close options apart.
    if batch.num_read:
        return _finished(batch, packed_scores(batch, read))
    scores = F.log_softmax(read[:, -1].float(), dim=-1).gather(1, batch.option_ids[..., 0])
    if continued is not None:
        ids, mask = batch.option_ids.flatten(0, 1), batch.option_mask.flatten(0, 1)
        # (B K, L - 1): the score of token l + 1 stands behind token l.
        token_scores = F.log_softmax(continued.float(), dim=-1).gather(2, ids[:, 1:, None])[..., 0]
        scores = scores + (token_scores * mask[:, 1:]).sum(dim=1).unflatten(0, (-1, batch.option_ids.shape[1]))
    return _finished(batch, scores)


def _row_scores(model: nn.Module, batch: OptionBatch) -> torch.Tensor:
    """(B, K) sums of log-likelihoods where every option stands in a row of its own, behind its prompt."""
    ids, mask = batch.option_ids.flatten(0, 1), batch.option_mask.flatten(0, 1)  # (B K, L)
    length, width = ids.shape[1], batch.inputs["input_ids"].shape[1]
    places = torch.arange(length, device=ids.device)
    logits = model(**batch.inputs, logits_to_keep=width - length + places, use_cache=False).logits.float()
    # Rows are padded on the left: n tokens are predicted in the last n columns.
    columns = (length - mask.sum(dim=1, keepdim=True) + places).clamp(max=length - 1)
    scores = F.log_softmax(logits, dim=-1).gather(1, columns[..., None].expand(-1, -1, logits.shape[-1]))
    scores = scores.gather(2, ids[..., None])[..., 0]
    return (scores * mask).sum(dim=1).unflatten(0, batch.option_ids.shape[:2])


def _finished(batch: OptionBatch, scores: torch.Tensor) -> torch.Tensor:
    """Sums of log-likelihoods as the scores that are compared."""
    if batch.option_lengths is not None:
        scores = scores / batch.option_lengths
    return scores.masked_fill(~batch.option_mask[..., 0], -torch.inf)
