"""Runs single stages of a Hugging Face model whose layers several devices share.

    first stage    the model up to its last layer here: embeddings, image tower, layers
    between        the same with the received hidden states put in front of its first layer
    last stage     the whole model with the received ones in front of its first layer: layers, norm, head

The model itself is never taken apart: blocks that a stage does not run hand their input on, and its first block takes
what was received instead of what the model's own beginning made. So nothing needs to be known of a family's embeddings
(GPT-2 adds positions to them, Gemma scales them), masks or rotary embeddings. `CutModel.check` compares with the whole
model, and refuses one that this does not fit.

Letters: B prompts, T tokens, K options, L tokens of the longest option, h hidden size. Hidden states of a batch are
(B, T + K (L - 1), h): those of the prompts, then of every token of the options but the last, which continue from the
keys and values that each stage keeps of its own layers; (B, T + M, h) where options are packed behind the prompts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from contextlora.adapters.targets import decoder_blocks
from contextlora.backbones.faults import BackboneError
from contextlora.backbones.packing import packed_inputs, predicting_columns
from contextlora.backbones.scoring import (
    LAST_POSITION,
    OptionBatch,
    continued_inputs,
    option_scores,
    repeated_cache,
    scores_of,
)
from contextlora.errors import first_line

TOLERANCE = {torch.float32: 1e-4}  # between whole and cut, of log-likelihoods; in half precision:
HALF_TOLERANCE = 2e-2


class CutModel:
    """A model in stages.

    Args:
        model: whole, on this device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.blocks = model, decoder_blocks(model)

    def run(self, batch: OptionBatch, layers: slice, hidden: Tensor | None) -> Tensor:
        """One stage's forward.

        Args:
            batch: encoded prompts; every stage has them.
            layers: of the stage.
            hidden: (B, T + K (L - 1), h) from the stage before, None in the first.

        Returns:
            Hidden states likewise, or in the last stage (B, K) log-likelihoods of the options.
        """
        (num_rows, length), option_length = batch.inputs["input_ids"].shape, batch.option_ids.shape[-1]
        several, is_last = option_length > 1 and not batch.num_read, layers.stop is None
        # Only the last stage needs the head. The final norm runs in every stage; `behind` is filled in front of it.
        call = self.model if is_last else self.model.base_model
        inputs = packed_inputs(batch, self.model.dtype) if batch.num_read else batch.inputs
        columns = predicting_columns(batch) if batch.num_read else LAST_POSITION
        keep = {"logits_to_keep": columns} if is_last else {}
        prompts = None if hidden is None else hidden[:, : length + batch.num_read]
        with self._only(layers, prompts) as behind:
            read = call(**_inputs(inputs, prompts), use_cache=several, **keep)
        found, continued = behind[0], None
        if several:
            # Aligned after repeating: a layer that stands in for others would be repeated once for each of them.
            cache = self._aligned(repeated_cache(self.model, read, batch), layers)
            # (B K, L - 1, h): one row an option, as in the cache.
            options = None if hidden is None else hidden[:, length:].reshape(-1, option_length - 1, hidden.shape[-1])
            with self._only(layers, options) as behind:
                continued = call(**_inputs(continued_inputs(batch), options), past_key_values=cache, use_cache=True)
            found = torch.cat([found, behind[0].reshape(num_rows, -1, found.shape[-1])], dim=1)
        return scores_of(batch, read.logits, continued and continued.logits) if is_last else found

    def item(self, batch: OptionBatch) -> Tensor:
        """Hidden states of one prompt of a batch as a meta tensor, (T + K (L - 1), h)."""
        behind = batch.num_read or batch.option_ids[0, :, 1:].numel()
        num_tokens = batch.inputs["input_ids"].shape[1] + behind
        size = self.model.config.get_text_config().hidden_size
        return torch.empty(num_tokens, size, dtype=self.model.dtype, device="meta")

    def parameters(self, layers: slice) -> list[nn.Parameter]:
        """What trains in a stage; what stands before the blocks belongs to the first one, a head to the last."""
        ours = {id(p) for block in self.blocks[layers] for p in block.parameters()}
        in_blocks, in_base = ({id(p) for p in part.parameters()} for part in (self.blocks, self.model.base_model))
        if not layers.start:
            ours |= in_base - in_blocks
        if layers.stop is None:
            ours |= {id(p) for p in self.model.parameters()} - in_base
        return [p for p in self.model.parameters() if p.requires_grad and id(p) in ours]

    def check(self, batch: OptionBatch, stages: Sequence[slice]) -> None:
        """Compares the stages, run one after the other on this device, with the whole model.

        Raises:
            BackboneError: their scores differ, or the model draws random numbers, which stages would draw differently.
        """
        refused = f"{type(self.model).__name__} cannot be run as a layer pipeline (%s); set gear.layouts=[data]"
        if batch.own_rows:
            raise BackboneError(refused % "it reads every option in a row of its own")
        # Training must draw the same numbers whether or not the model was checked before.
        with torch.no_grad(), torch.random.fork_rng():
            before = torch.get_rng_state()
            expected, hidden = option_scores(self.model, batch), None
            draws = not torch.equal(torch.get_rng_state(), before)
            try:
                for layers in stages:
                    hidden = self.run(batch, layers, hidden)
            except Exception as error:  # whatever a family's forward may raise when it is led astray
                raise BackboneError(refused % f"{type(error).__name__}: {first_line(error)}") from error
        tolerance = TOLERANCE.get(self.model.dtype, HALF_TOLERANCE)
        if not torch.allclose(hidden, expected, rtol=tolerance, atol=tolerance):
            # Items with fewer options score -inf, and -inf minus -inf is nan.
            off = float((hidden - expected).nan_to_num(posinf=0, neginf=0).abs().max())
            raise BackboneError(refused % f"its stages give other scores than the whole, by up to {off:.2g}")
        if draws:
            raise BackboneError(refused % "it draws random numbers of its own, such as for dropout")

    def _aligned(self, cache: Any, layers: slice) -> Any:
        """Keys and values in which other stages' layers are as long as ours: models look at some layer's length."""
        ours = range(len(self.blocks))[layers]
        for number, layer in enumerate(cache.layers):
            if number not in ours:
                # A sliding window keeps fewer keys than full attention, so a layer of the same kind where there is one.
                alike = [n for n in ours if type(cache.layers[n]) is type(layer)]
                cache.layers[number] = cache.layers[alike[0] if alike else ours[0]]
        return cache

    @contextmanager
    def _only(self, layers: slice, hidden: Tensor | None) -> Iterator[list[Tensor]]:
        """Lets the model run these blocks only; the list gets what the last of them gives."""
        behind: list[Tensor] = []
        ours = range(len(self.blocks))[layers]
        for number, block in enumerate(self.blocks):
            if number not in ours:
                block.forward = _hand_on
            elif number in (ours[0], ours[-1]):  # the same block in a stage of one
                received = hidden if number == ours[0] else None
                block.forward = _Edge(block.forward, received, behind if number == ours[-1] else None)
        try:
            yield behind
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)  # the class has its own


class _Edge:
    """A block at an end of a stage."""

    def __init__(self, forward: Any, received: Tensor | None, behind: list[Tensor] | None) -> None:
        self.forward, self.received, self.behind = forward, received, behind

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = self.forward(hidden_states if self.received is None else self.received, *args, **kwargs)
        if self.behind is not None:
            self.behind.append(found)
        return found


def _hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _inputs(inputs: dict[str, Tensor], hidden: Tensor | None) -> dict[str, Tensor]:
    """Arguments of the model's forward; behind the first stage masks and positions, and no image."""
    if hidden is None:
        return inputs
    shapes = (inputs["input_ids"].shape, inputs["attention_mask"].shape)
    kept = {name: value for name, value in inputs.items() if value.shape in shapes and name != "input_ids"}
    # Only for shape and dtype: the stage's first block takes `hidden` itself, and gradients reach it there.
    return kept | {"inputs_embeds": hidden.detach()}
