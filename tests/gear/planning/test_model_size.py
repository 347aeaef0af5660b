"""Sizes from config.json: exact where a checkpoint or a published figure says so, else written out by hand."""

import json
import math
import struct
from pathlib import Path

import pytest

from contextlora.errors import ConfigError
from contextlora.gear.planning.model_size import ModelSize

BUNDLED = Path(__file__).parents[3] / "src/contextlora/backbones/bundled"


def shapes(path):
    """Tensor shapes from a safetensors file: 8 bytes of length, then a JSON header."""
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def test_parameters_of_the_bundled_checkpoint_are_exact():
    size = ModelSize.from_config(json.loads((BUNDLED / "config.json").read_text()))
    counts = {name: math.prod(shape) for name, shape in shapes(BUNDLED / "model.safetensors").items()}
    text = sum(count for name, count in counts.items() if name.startswith("language_model."))
    assert size.num_text_parameters == text
    assert size.vision.num_parameters == sum(counts.values()) - text
    assert sum(size.layer_parameters()) == sum(counts.values())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # GPT-2 small has 124,439,808 parameters, its published 124 M.
        ({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}, 124_439_808),
        # TinyLlama 1.1B: 1,100,048,384 (its model card's safetensors).
        (
            {
                "model_type": "llama",
                "hidden_size": 2048,
                "intermediate_size": 5632,
                "num_hidden_layers": 22,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "vocab_size": 32000,
            },
            1_100_048_384,
        ),
        # Qwen2-0.5B: 494,032,768 (its model card's safetensors); biases on query, key and value, tied embeddings.
        (
            {
                "model_type": "qwen2",
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
                "vocab_size": 151936,
                "tie_word_embeddings": True,
            },
            494_032_768,
        ),
    ],
)
def test_parameters_of_public_models(config, expected):
    assert ModelSize.from_config(config).num_text_parameters == expected


TINY = {
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 10,
}


def test_flops_by_hand():
    size = ModelSize.from_config(TINY)
    # query 4x4, key and value 4x2, output 4x4, three of 4x6
    weights = 16 + 8 + 8 + 16 + 3 * 24
    # 3 tokens, 2 FLOPs a weight and token; scores and their sum: 4 T^2 with 2 heads of 2; logits of one position
    assert size.forward_flops(3, rank=0) == 2 * (2 * 3 * weights + 4 * 9 * 4) + 2 * 4 * 10
    # a LoRA rank adds d_in + d_out to every matrix: 8, 6, 6, 8, 10, 10, 10
    assert size.forward_flops(3, rank=2) - size.forward_flops(3, rank=0) == 2 * 2 * 3 * 2 * 58
    assert size.lora_parameters(2) == 2 * 2 * 58


def test_shares_add_up_and_put_the_head_last():
    size = ModelSize.from_config(TINY)
    first, last = size.layer_flops_shares(3)
    assert first + last == pytest.approx(1)
    assert (last - first) * size.forward_flops(3, 0) == pytest.approx(2 * 4 * 10)


def test_activations_follow_korthikanti():
    # T h (34 + 5 a T / h) with T = 3, h = 4, a = 2; twice that with 4-byte numbers
    assert ModelSize.from_config(TINY).activation_bytes(3) == 3 * 4 * (34 + 5 * 2 * 3 / 4)
    assert ModelSize.from_config(TINY).activation_bytes(3, 4) == 2 * 3 * 4 * (34 + 5 * 2 * 3 / 4)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "intermediate_size"])
def test_a_missing_dimension_is_named(key):
    config = {name: value for name, value in TINY.items() if name != key}
    with pytest.raises(ConfigError, match=rf"here/config\.json: {key} must be .* got None"):
        ModelSize.from_config(config, "here/config.json")
