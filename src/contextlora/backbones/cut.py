"""Runs single stages of a Hugging Face model whose layers several devices share.

    first stage    the model up to its last layer here: embeddings, image tower, layers
    between        the same with the received hidden states put in front of its first layer
    last stage     the whole model with the received ones in front of its first layer: layers, norm, head

The model itself is never taken apart: blocks that a stage does not run hand their input on, and its first block takes
what was received instead of what the model's own beginning made. So nothing needs to be known of a family's embeddings
(GPT-2 adds positions to them, Gemma scales them), masks or rotary embeddings. `CutModel.check` compares with the whole
model, and refuses one that this does not fit.

Letters: B prompts, T tokens, h hidden size, K options.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from contextlora.adapters.layer import RankSliceLinear
from contextlora.adapters.targets import decoder_blocks
from contextlora.backbones.load import BackboneError
from contextlora.backbones.scoring import OptionBatch, option_scores

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
            hidden: (B, T, h) from the stage before, None in the first.

        Returns:
            (B, T, h) hidden states, or in the last stage (B, K) log-likelihoods of the options.
        """
        inputs = batch.inputs if hidden is None else _inputs_behind(batch, hidden)
        with self._only(layers, hidden) as seen:
            if layers.stop is None:
                return option_scores(self.model, replace(batch, inputs=inputs))
            self.model.base_model(**inputs, use_cache=False)
        return seen[0]

    def item(self, batch: OptionBatch) -> Tensor:
        """Hidden states of one prompt of a batch as a meta tensor, (T, h).

        Raises:
            BackboneError: options of several tokens, which would need the keys and values of all stages.
        """
        if batch.option_ids.shape[-1] > 1:
            raise BackboneError(
                f"a layer pipeline needs options of one token: those of task {batch.task} have up to "
                f"{batch.option_ids.shape[-1]}; set taskset.answer_format=letter or gear.layouts=[data]"
            )
        size = self.model.config.get_text_config().hidden_size
        return torch.empty(batch.inputs["input_ids"].shape[1], size, dtype=self.model.dtype, device="meta")

    def parameters(self, layers: slice) -> list[nn.Parameter]:
        """What trains in a stage; what stands before the blocks belongs to the first one, a head to the last."""
        ours = {id(p) for block in self.blocks[layers] for p in block.parameters()}
        in_blocks, in_base = ({id(p) for p in part.parameters()} for part in (self.blocks, self.model.base_model))
        if not layers.start:
            ours |= in_base - in_blocks
        if layers.stop is None:
            ours |= {id(p) for p in self.model.parameters()} - in_base
        return [p for p in self.model.parameters() if p.requires_grad and id(p) in ours]

    def skip_dropout(self, layers: slice, batch: OptionBatch) -> None:
        """Draws the dropout masks of the blocks before a stage, so that its own are those of the whole model."""
        num_rows, length = batch.inputs["input_ids"].shape
        if batch.shard is not None:
            num_rows = batch.shard.batch_size
        for block in self.blocks[: layers.start]:
            for layer in block.modules():
                if isinstance(layer, RankSliceLinear):
                    layer.skip_dropout(num_rows * length)

    def check(self, batch: OptionBatch, stages: Sequence[slice]) -> None:
        """Compares the stages, run one after the other on this device, with the whole model.

        Raises:
            BackboneError: they differ, in scores or in the random numbers that they draw.
        """
        kind = type(self.model).__name__
        refused = f"{kind} cannot be run as a layer pipeline (%s); set gear.layouts=[data]"
        self.item(batch)
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            expected, drawn = option_scores(self.model, batch), torch.get_rng_state()
            hidden = None
            try:
                for layers in stages:
                    torch.manual_seed(0)
                    self.skip_dropout(layers, batch)
                    hidden = self.run(batch, layers, hidden)
            except Exception as error:  # whatever a family's forward may raise when it is led astray
                reason = (str(error).splitlines() or [""])[0]
                raise BackboneError(refused % f"{type(error).__name__}: {reason}") from error
            same_draws = torch.equal(torch.get_rng_state(), drawn)
        tolerance = TOLERANCE.get(self.model.dtype, HALF_TOLERANCE)
        if not torch.allclose(hidden, expected, rtol=tolerance, atol=tolerance):
            off = float((hidden - expected).nan_to_num(posinf=0, neginf=0).abs().max())
            raise BackboneError(refused % f"its stages give other scores than the whole, by up to {off:.2g}")
        if not same_draws:
            raise BackboneError(refused % "it draws random numbers of its own, such as for dropout")

    @contextmanager
    def _only(self, layers: slice, hidden: Tensor | None) -> Iterator[list[Tensor]]:
        """Lets the model run these blocks only; the list gets what the last of them gives."""
        seen: list[Tensor] = []
        stages = range(len(self.blocks))[layers]
        for number, block in enumerate(self.blocks):
            own = block.forward
            if number not in stages:
                block.forward = _hand_on
            elif number in (stages[0], stages[-1]):
                received = hidden if number == stages[0] else None
                block.forward = _Edge(own, received, seen if number == stages[-1] else None)
        try:
            yield seen
        finally:
            for block in self.blocks:
                block.__dict__.pop("forward", None)  # the class has its own


class _Edge:
    """A block at an end of a stage."""

    def __init__(self, forward: Any, received: Tensor | None, seen: list[Tensor] | None) -> None:
        self.forward, self.received, self.seen = forward, received, seen

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = self.forward(hidden_states if self.received is None else self.received, *args, **kwargs)
        if self.seen is not None:
            self.seen.append(found)
        return found


def _hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _inputs_behind(batch: OptionBatch, hidden: Tensor) -> dict[str, Tensor]:
    """Arguments of the model's forward behind the first stage: masks and positions, and no image."""
    shape = batch.inputs["input_ids"].shape
    kept = {name: value for name, value in batch.inputs.items() if value.shape == shape and name != "input_ids"}
    return kept | {"inputs_embeds": hidden.detach()}
