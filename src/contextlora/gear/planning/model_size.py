"""How large a language model is and what its forward costs, from its config.json alone.

Letters: h hidden size, i intermediate size, L layers, a heads of d numbers, a_kv key and value heads, V vocabulary,
T tokens. A block has these matrices (inputs x outputs):

    query h x a d, key and value h x a_kv d, output a d x h, and the MLP's two (GPT-2) or three (gated) of h x i

A forward of one item costs 2 FLOPs for each token and weight of the blocks, 4 T^2 a d in each block for the attention
scores and their sum, and 2 h V for the logits of the one answer position. Images add the vision tower (CLIP's form).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from contextlora.errors import ConfigError

# What a config.json leaves out where it equals the default of its class in transformers.
_TIED_BY_DEFAULT = ("gpt2", "gemma", "gemma2", "gemma3_text", "smollm3")
_QKV_BIAS = ("gpt2", "qwen2", "qwen2_vl_text", "qwen2_5_vl_text")
_HEAD_NORMS = ("qwen3", "qwen3_vl_text", "gemma3_text")
_FOUR_NORMS = ("gemma2", "gemma3_text")
# GPT-2 has names of its own.
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
}


@dataclass(frozen=True)
class VisionSize:
    """A vision tower in CLIP's form with its projector.

    Attributes:
        num_tokens: patches of an image and the class token.
        num_parameters: of tower and projector.
        flops: of one image.
        num_image_tokens: what an image takes in the language model's prompt.
    """

    num_tokens: int
    num_parameters: int
    flops: float
    num_image_tokens: int


@dataclass(frozen=True)
class ModelSize:
    """Dimensions of a decoder-only language model.

    Attributes:
        hidden_size, num_layers, num_heads, vocab_size: h, L, a, V.
        adapted: (inputs, outputs) of the linear layers of a block, all of which LoRA adapts.
        attention_width: a d, numbers that a token's heads hold together.
        block_parameters: of one block, biases and norms included.
        embedding_parameters: token embeddings, and positions where they are learned.
        head_parameters: final norm, and the output matrix where it is not tied to the embeddings.
        vision: None for text-only models.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    adapted: tuple[tuple[int, int], ...]
    attention_width: int
    block_parameters: int
    embedding_parameters: int
    head_parameters: int
    vision: VisionSize | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> "ModelSize":
        """Reads a Hugging Face config.json: Llama and its relatives, GPT-2, or a multimodal one with `text_config`.

        Raises:
            ConfigError: it does not give the dimensions.
        """
        text = config.get("text_config", config)
        kind = str(text.get("model_type", ""))
        hidden, layers, heads = (
            _dimension(text, key, where) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        )
        inner = (
            4 * hidden if kind == "gpt2" and not text.get("n_inner") else _dimension(text, "intermediate_size", where)
        )
        vocab = _dimension(text, "vocab_size", where)
        head = text.get("head_dim") or hidden // heads
        wide, narrow = heads * head, (text.get("num_key_value_heads") or heads) * head
        attention = ((hidden, wide), (hidden, narrow), (hidden, narrow), (wide, hidden))
        mlp = (
            ((hidden, inner), (inner, hidden))
            if kind == "gpt2"
            else ((hidden, inner), (hidden, inner), (inner, hidden))
        )
        tied = bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", kind in _TIED_BY_DEFAULT)))
        norm = 2 * hidden if kind == "gpt2" else hidden
        positions = hidden * text.get("n_positions", 1024) if kind == "gpt2" else 0
        return cls(
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            vocab_size=vocab,
            # GPT-2 holds query, key and value in one matrix.
            adapted=((hidden, 3 * wide), attention[3], *mlp) if kind == "gpt2" else (*attention, *mlp),
            attention_width=wide,
            block_parameters=_block_parameters(text, kind, attention, mlp, head, norm),
            embedding_parameters=vocab * hidden + positions,
            head_parameters=norm + (0 if tied else vocab * hidden),
            vision=_vision_size(config, hidden),
        )

    @property
    def num_text_parameters(self) -> int:
        """Of the language model, without a vision tower."""
        return self.embedding_parameters + self.num_layers * self.block_parameters + self.head_parameters

    def lora_parameters(self, rank: int) -> int:
        """Of a LoRA of this rank on every linear layer of the blocks: rank (d_in + d_out) each."""
        return rank * self.num_layers * sum(inputs + outputs for inputs, outputs in self.adapted)

    def forward_flops(self, num_tokens: int, rank: int, has_image: bool = False) -> float:
        """One forward of one item with logits at one position, `rank` LoRA ranks active."""
        vision = self.vision.flops if has_image and self.vision else 0.0
        return vision + self.num_layers * self._block_flops(num_tokens, rank) + self._head_flops()

    def layer_flops_shares(self, num_tokens: int, has_image: bool = False) -> tuple[float, ...]:
        """Share of a forward's FLOPs in each block, vision tower and logits with the first and last; sum 1."""
        flops = [self._block_flops(num_tokens, 0)] * self.num_layers
        flops[0] += self.vision.flops if has_image and self.vision else 0.0
        flops[-1] += self._head_flops()
        return tuple(part / sum(flops) for part in flops)

    def layer_parameters(self) -> tuple[int, ...]:
        """Numbers in each block; embeddings and vision tower count with the first, the head with the last."""
        counts = [self.block_parameters] * self.num_layers
        counts[0] += self.embedding_parameters + (self.vision.num_parameters if self.vision else 0)
        counts[-1] += self.head_parameters
        return tuple(counts)

    def activation_bytes(self, num_tokens: int, bytes_per_number: int = 2) -> float:
        """What a block keeps of one item for its backward: T h (34 + 5 a T / h) bytes with 2-byte numbers.

        Source: Korthikanti et al. 2022, arXiv 2205.05198, Eq. (2).
        """
        numbers = num_tokens * self.hidden_size * (34 + 5 * self.num_heads * num_tokens / self.hidden_size)
        return numbers * bytes_per_number / 2

    def _block_flops(self, num_tokens: int, rank: int) -> float:
        weights = sum(inputs * outputs + rank * (inputs + outputs) for inputs, outputs in self.adapted)
        return 2 * num_tokens * weights + 4 * num_tokens**2 * self.attention_width

    def _head_flops(self) -> float:
        return 2 * self.hidden_size * self.vocab_size


def _dimension(text: Mapping[str, Any], key: str, where: str) -> int:
    value = text.get(key, text.get(_GPT2_NAMES.get(key, key)))
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"{where}: {key} must be a whole number of at least 1, got {value!r}; planning knows models in Llama's or "
            "GPT-2's form, with or without a vision tower"
        )
    return value


def _block_parameters(
    text: Mapping[str, Any],
    kind: str,
    attention: tuple[tuple[int, int], ...],
    mlp: tuple[tuple[int, int], ...],
    head: int,
    norm: int,
) -> int:
    weights = sum(inputs * outputs for inputs, outputs in (*attention, *mlp))
    qkv, output = sum(outputs for _, outputs in attention[:3]), attention[3][1]
    biases = qkv if kind in _QKV_BIAS or text.get("attention_bias") else 0
    biases += output if kind == "gpt2" or text.get("attention_bias") else 0
    biases += sum(outputs for _, outputs in mlp) if kind == "gpt2" or text.get("mlp_bias") else 0
    head_norms = 2 * head if kind in _HEAD_NORMS else 0
    return weights + biases + head_norms + (4 if kind in _FOUR_NORMS else 2) * norm


def _vision_size(config: Mapping[str, Any], text_hidden: int) -> VisionSize | None:
    vision = config.get("vision_config")
    if not vision or "patch_size" not in vision or "hidden_size" not in vision:
        return None
    hidden, inner = vision["hidden_size"], vision.get("intermediate_size", 4 * vision["hidden_size"])
    layers = vision.get("num_hidden_layers", vision.get("depth", 1))
    pixels = vision.get("num_channels", 3) * vision["patch_size"] ** 2
    patches = (vision.get("image_size", 224) // vision["patch_size"]) ** 2
    tokens = patches + 1
    block = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    projector = (hidden + 1) * text_hidden + (text_hidden + 1) * text_hidden
    # patch embedding, class token, positions, norms before and after
    tower = pixels * hidden + hidden + tokens * hidden + 4 * hidden + layers * block
    flops = 2 * patches * pixels * hidden + 2 * patches * projector
    flops += layers * (2 * tokens * (4 * hidden * hidden + 2 * hidden * inner) + 4 * tokens**2 * hidden)
    return VisionSize(tokens, tower + projector, flops, config.get("image_seq_length") or patches)
