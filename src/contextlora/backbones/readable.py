"""Whether a model can read what its tokenizer makes of prompts."""

import inspect
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from transformers import PreTrainedModel

from contextlora.backbones.faults import BackboneError
from contextlora.backbones.load import Backbone
from contextlora.errors import tail


def check_length(backbone: Backbone, prompts: Sequence[int], options: Sequence[int]) -> None:
    """Raises `BackboneError` for a batch that takes more tokens than the model has positions.

    Args:
        backbone: which would read it.
        prompts, options: numbers of tokens of each prompt, and of the longest of its options.
    """
    most = _most_tokens(backbone)
    # An option's last token is predicted, never read.
    needed = max(sum(lengths) for lengths in zip(prompts, options, strict=True)) - 1
    if most and counts_padding(backbone):
        needed = max(prompts) + max(options) - 1
    if most and needed > most:
        raise BackboneError(
            f"a prompt takes {needed} tokens, model {tail(backbone.name)} at most {most}; "
            "shorten the template, questions or options, or take a model with a longer context"
        )


def counts_padding(backbone: Backbone) -> bool:
    """Whether the columns of a batch must fit the model, those in which a row has no token included."""
    if not takes_position_ids(backbone):
        return True
    # GPT-Neo cuts its masks by columns out of one of this size.
    most = _most_tokens(backbone)
    return any(buffer.shape[-2:] == (most, most) for buffer in backbone.model.buffers())


def takes_position_ids(backbone: Backbone) -> bool:
    """Whether positions are one number a token; models with several (M-RoPE) derive them from the mask themselves."""
    return has_position_ids(backbone.model) and not derives_positions(backbone.model)


def has_position_ids(model: PreTrainedModel) -> bool:
    """Whether a model's forward takes any."""
    return "position_ids" in inspect.signature(model.forward).parameters


def derives_positions(model: PreTrainedModel) -> bool:
    """Whether a model makes positions of several numbers (M-RoPE) itself, of tokens and mask."""
    inner = getattr(model, "model", None)  # classes with a head wrap what has the method
    return any(hasattr(module, "get_rope_index") for module in (model, inner))


def _most_tokens(backbone: Backbone) -> int | None:
    return getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)


def check_tokens(backbone: Backbone, rows: Sequence[Sequence[int]]) -> None:
    """Raises `BackboneError` for a token that the model does not know, as a tokenizer of another model makes them."""
    most = getattr(backbone.model.config.get_text_config(), "vocab_size", None)
    # The image's own may lie behind the others: the model puts features in its place.
    image = backbone.tokenizer.convert_tokens_to_ids(backbone.image_token) if backbone.image_token else None
    highest = max((token for token in chain.from_iterable(rows) if token != image), default=0)
    if most and highest >= most:
        word = backbone.tokenizer.convert_ids_to_tokens(highest)
        raise BackboneError(
            f"the tokenizer of model {tail(backbone.name)} gives {word!r} the number {highest}, its config.json has "
            f"vocab_size={most}: put the tokenizer of this very model beside it"
        )


def packs(backbone: Backbone, inputs: Mapping[str, torch.Tensor], num_columns: int) -> bool:
    """Whether a batch's options can be packed behind its prompts, see `contextlora.backbones.packing`."""
    if not backbone.packs_options or counts_padding(backbone) or num_columns > backbone.window:
        return False
    # All that has a value for each column must be known to go on behind the prompts: not so types of image tokens.
    shape = inputs["input_ids"].shape
    known = {"input_ids", "attention_mask", "position_ids"}
    return {name for name, value in inputs.items() if value.shape == shape} == known
