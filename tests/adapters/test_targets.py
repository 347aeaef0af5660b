import re

import pytest
import transformers as hf
from torch import nn
from transformers.pytorch_utils import Conv1D

from contextlora.adapters import AdaptedModel, AdapterConfig, AdapterError
from contextlora.adapters.targets import resolve_targets
from contextlora.graph import RankPartition

ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
EXPECTED = {
    "llava": ("model.language_model.layers", ATTENTION + MLP),
    "gpt2": ("transformer.h", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
}


def matches(model, pattern):
    return {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}


def test_language_linear_is_every_linear_layer_of_the_blocks_and_nothing_else(architecture, tiny_model):
    model = tiny_model(architecture)
    path, layers = EXPECTED.get(architecture, ("model.layers", ATTENTION + MLP))
    expected = {f"{path}.{block}.{layer}" for block in range(2) for layer in layers}
    assert matches(model, resolve_targets(model, "language-linear")) == expected
    others = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and n not in expected]
    assert all("vision" in name or "multi_modal" in name or name == "lm_head" for name in others)


def test_a_regular_expression_is_taken_as_it_is(tiny_model, adapt):
    pattern = r".*\.(q|v)_proj"
    assert resolve_targets(tiny_model(), pattern) == pattern
    layers = adapt(target_modules=pattern).layers()
    assert set(layers) == {f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"}


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("q_proj", "matches no module; linear layers are model.layers.0.self_attn.q_proj"),
        (r".*norm", "matches model.layers.0.input_layernorm .*match linear layers only"),
        ("(", "no regular expression"),
    ],
)
def test_refuses_patterns_that_hit_nothing_or_something_else(pattern, words, tiny_model):
    with pytest.raises(AdapterError, match=words):
        resolve_targets(tiny_model(), pattern)


def test_the_blocks_are_the_longest_list_of_the_decoder():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.adapters = nn.ModuleList([nn.Linear(2, 2)])
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))

        def get_decoder(self):
            return self

    decoder = Decoder()
    assert matches(decoder, resolve_targets(decoder, "language-linear")) == {f"layers.{i}.0" for i in range(3)}


def test_a_model_without_blocks_needs_a_pattern():
    class Blockless(nn.Module):
        def get_decoder(self):
            return self

    with pytest.raises(AdapterError, match="Blockless has no list of transformer blocks"):
        resolve_targets(Blockless(), "language-linear")


@pytest.mark.parametrize("pattern", [r".*_proj", r"model\.layers\.0\.self_attn\.q_proj"])
def test_a_pattern_that_peft_reads_otherwise_is_refused(pattern):
    """Of a Qwen3-MoE whose first block has no experts, PEFT adapts other layers than those that match."""
    config = hf.Qwen3MoeConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=2,
        num_experts_per_tok=1,
        mlp_only_layers=[0],
    )
    with pytest.raises(AdapterError, match=r"PEFT reads model\.target_modules=.* otherwise in Qwen3MoeForCausalLM"):
        AdaptedModel(hf.Qwen3MoeForCausalLM(config), RankPartition({"v": 2}), AdapterConfig(target_modules=pattern))


def test_a_weight_that_is_tied_to_another_is_refused(tiny_model):
    model = tiny_model()
    assert resolve_targets(model, r".*(q_proj|lm_head)")
    model.lm_head.weight = model.get_input_embeddings().weight
    with pytest.raises(AdapterError, match="matches lm_head, whose weight is tied to another module's"):
        resolve_targets(model, r".*(q_proj|lm_head)")
    assert resolve_targets(model, r".*q_proj")
