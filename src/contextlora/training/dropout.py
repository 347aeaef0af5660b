"""Dropout whose masks depend on seed, step and layer only, and that costs little on a CPU.

A mask is drawn for the whole batch, from a generator of its own, and each process takes what belongs to its rows: the
masks are the same whoever computes which rows or layers, in micro-batches or at once, and whatever was drawn before.

On a CPU torch draws one Bernoulli number per element, serially; at (1856, 192) that takes over 2 ms on one core, and
with dropout on every adapted layer it is a third of a training step of the bundled model. Four decisions from each
64-bit random number, and numpy's fastest generator for these, take 0.2 ms.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from contextlora.adapters.model import AdaptedModel

_BITS = 16  # of each decision: the probability is rounded to 1 / 65536
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element


@dataclass
class StepMasks:
    """What the masks of the next forwards depend on besides the layer; one object for all layers.

    Attributes:
        seed: of the run.
        step: the gradient step.
        rows: the rows that are computed here, of a batch of `batch_size` items.
    """

    seed: int
    step: int = 0
    rows: range = range(1)
    batch_size: int = 1


class StepDropout(nn.Dropout):
    """`nn.Dropout` with the same distribution from other random numbers: (N, d) -> (N, d).

    Args:
        p: probability that an element is dropped.
        layer: number that tells layers apart.
        masks: of the step; the N tokens are those of its rows, row after row.
    """

    def __init__(self, p: float, layer: int, masks: StepMasks) -> None:
        super().__init__(p)
        self.layer, self.masks = layer, masks

    def forward(self, x: Tensor) -> Tensor:
        """Zeroes each element with probability p and divides the others by 1 - p, in training mode."""
        if not self.training:
            return x
        masks = self.masks
        row_size = x.numel() // len(masks.rows)
        first = row_size * masks.rows.start
        # The size of a row tells the prompts' pass through a layer from the options' behind them.
        # Hashes of integers, unlike those of strings, are the same in every process.
        key = hash((masks.seed, masks.step, self.layer, row_size)) % 2**32
        decisions = _draw(row_size * masks.batch_size, key, x.device)[first : first + x.numel()].view(x.shape)
        threshold = round(self.p * 2**_BITS) - 2 ** (_BITS - 1)  # decisions are signed
        # Integers of x's size, 0 or the bits of 1 / (1 - p): comparing into them and multiplying them takes a third of
        # the time of the same with x's own type, and an eighth of converting booleans.
        whole = _INTEGERS[x.element_size()]
        factor = torch.tensor(1 / (1 - self.p), dtype=x.dtype).view(whole).item()
        keep = torch.ge(decisions, threshold, out=torch.empty(x.shape, dtype=whole, device=x.device))
        return x * keep.mul_(factor).view(x.dtype)


def share_masks(adapted: AdaptedModel, seed: int) -> StepMasks:
    """Puts `StepDropout` in the place of the layers' dropout, and gives what they all look at."""
    masks = StepMasks(seed)
    for number, layer in enumerate(adapted.layers().values()):
        if isinstance(layer.lora_dropout, nn.Dropout):
            layer.lora_dropout = StepDropout(layer.lora_dropout.p, number, masks)
    return masks


def _draw(size: int, key: int, device: torch.device) -> Tensor:
    """So many decisions, int16, the same for the same key."""
    num_words = -(-size // (64 // _BITS))
    if device.type == "cpu":
        # Half the time of torch's generator, which is worth most with several threads: drawing is serial.
        return torch.from_numpy(np.random.SFC64(key).random_raw(num_words).view(np.int16))
    generator = torch.Generator(device).manual_seed(key)
    # Without an upper bound all 64 bits are random.
    words = torch.empty(num_words, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)
