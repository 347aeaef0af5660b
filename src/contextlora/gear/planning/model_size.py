"""How large a language model is and what its forward costs, as plain numbers; `backbones.size` counts them.

Letters: h hidden size, a heads of d numbers, T tokens, W the weights of a block that a token is multiplied by, r ranks.

    forward of one item = sum over blocks of 2 T (W + r (d_in + d_out of all adapted layers)) + 4 T^2 a d
                          + 2 (weights of the output head), for the logits of the one answer position

W leaves out embeddings, norms and biases, and of a mixture of experts it holds the share that each token uses. The
second term is the attention scores and their sum, over all pairs of tokens: a sliding window that is shorter than the
prompt would save some. An image adds its vision tower and projector.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockSize:
    """One transformer block.

    Attributes:
        num_parameters: all of them, all experts included.
        active_weights: W, weights that a token is multiplied by.
        lora_width: d_in + d_out summed over the layers that LoRA adapts, so its parameters per rank.
        active_lora_width: the same, over those that a token passes.
        attention_width: a d, the numbers that a token's heads hold together; 0 in a block without attention.
    """

    num_parameters: int
    active_weights: float
    lora_width: int
    active_lora_width: float
    attention_width: float

    def forward_flops(self, num_tokens: int, rank: int) -> float:
        """Of one item of so many tokens, `rank` LoRA ranks active."""
        # A multiplication and an addition for each weight, and for each rank in A and in B.
        per_token = 2 * (self.active_weights + rank * self.active_lora_width)
        # Attention: T^2 scores and T^2 weighted values, 2 a d operations each.
        return num_tokens * per_token + 4 * num_tokens**2 * self.attention_width


@dataclass(frozen=True)
class VisionSize:
    """A vision tower with its projector.

    Attributes:
        num_parameters: of both.
        flops: of one image.
        num_image_tokens: what an image takes in the language model's prompt.
    """

    num_parameters: int
    flops: float
    num_image_tokens: int


@dataclass(frozen=True)
class ModelSize:
    """A decoder-only language model, with or without a vision tower.

    Attributes:
        hidden_size, num_heads: h, a.
        blocks: in their order; they may differ.
        parameters_before: embeddings, and whatever else stands before the blocks.
        parameters_behind: final norm, and the output head where it is not tied to the embeddings.
        head_weights: of the output head, tied or not.
        outer_lora_width: d_in + d_out summed over the adapted layers outside of the blocks.
        vision: None for text-only models.
    """

    hidden_size: int
    num_heads: int
    blocks: tuple[BlockSize, ...]
    parameters_before: int
    parameters_behind: int
    head_weights: int
    outer_lora_width: int = 0
    vision: VisionSize | None = None

    @property
    def num_text_parameters(self) -> int:
        """Of the language model, without a vision tower."""
        return self.parameters_before + sum(block.num_parameters for block in self.blocks) + self.parameters_behind

    @property
    def num_parameters(self) -> int:
        """All of them; tied ones count once."""
        return self.num_text_parameters + (self.vision.num_parameters if self.vision else 0)

    def lora_parameters(self, rank: int) -> int:
        """Of a LoRA of this rank: rank (d_in + d_out) for each adapted layer."""
        return rank * (sum(block.lora_width for block in self.blocks) + self.outer_lora_width)

    def forward_flops(self, num_tokens: int, rank: int, has_image: bool = False) -> float:
        """One forward of one item with logits at one position, `rank` LoRA ranks active."""
        return sum(self._layer_flops(num_tokens, rank, has_image))

    def layer_flops_shares(self, num_tokens: int, has_image: bool = False) -> tuple[float, ...]:
        """Share of a forward's FLOPs in each block, vision tower and logits with the first and last; sum 1."""
        # Without LoRA: its rank differs from task to task, and a stage has one answer for all.
        flops = self._layer_flops(num_tokens, 0, has_image)
        return tuple(part / sum(flops) for part in flops)

    def layer_parameters(self) -> tuple[int, ...]:
        """Numbers in each block; embeddings and vision tower count with the first, the head with the last."""
        counts = [block.num_parameters for block in self.blocks]
        counts[0] += self.parameters_before + (self.vision.num_parameters if self.vision else 0)
        counts[-1] += self.parameters_behind
        return tuple(counts)

    def _layer_flops(self, num_tokens: int, rank: int, has_image: bool) -> list[float]:
        flops = [block.forward_flops(num_tokens, rank) for block in self.blocks]
        flops[0] += self.vision.flops if has_image and self.vision else 0.0
        flops[-1] += 2 * self.head_weights
        return flops


def activation_bytes(num_tokens: int, hidden_size: int, num_heads: int, bytes_per_number: int = 2) -> float:
    """What a block keeps of one item for its backward: T h (34 + 5 a T / h) bytes with 2-byte numbers.

    The low-rank path adds little to that. Source: Korthikanti et al. 2022, arXiv 2205.05198, Eq. (2).
    """
    return num_tokens * hidden_size * (34 + 5 * num_heads * num_tokens / hidden_size) * bytes_per_number / 2
