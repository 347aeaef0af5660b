"""Whether a model can read what its tokenizer makes of prompts."""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch

from contextlora.backbones.errors import BackboneError
from contextlora.backbones.load import Backbone
from contextlora.errors import tail


def check_length(backbone: Backbone, num_tokens: int) -> None:
    """Raises `BackboneError` for more tokens than positions."""
    most = getattr(backbone.model.config.get_text_config(), "max_position_embeddings", None)
    if most and num_tokens > most:
        raise BackboneError(
            f"a prompt takes {num_tokens} tokens, model {tail(backbone.name)} at most {most}; "
            "shorten the template or questions, or take a model with a longer context"
        )


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


def takes_more_columns(inputs: Mapping[str, torch.Tensor]) -> bool:
    """Whether all that has a value for each column is known to go on behind the prompts: no types of image tokens."""
    shape = inputs["input_ids"].shape
    known = {"input_ids", "attention_mask", "position_ids"}
    return {name for name, value in inputs.items() if value.shape == shape} == known
