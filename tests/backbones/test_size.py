"""Sizes counted from configurations against real models, published figures and torch's own counter of FLOPs."""

import json
import math
import struct
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from contextlora.adapters import AdaptedModel, AdapterConfig, AdapterError
from contextlora.adapters.targets import decoder_blocks
from contextlora.backbones.load import auto_class
from contextlora.backbones.size import _vision_size, model_size
from contextlora.errors import ConfigError, tail
from contextlora.graph import RankPartition, SliceUse

BUNDLED = Path(__file__).parents[2] / "src/contextlora/backbones/bundled"
COMMON = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
COMMON |= {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64}
GROUPED = COMMON | {"intermediate_size": 40, "num_key_value_heads": 2}
WIDE_HEADS = GROUPED | {"head_dim": 16}
EXPERTS = {"num_experts_per_tok": 2}


def llava():
    vision = hf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8
    )
    text = hf.Qwen3Config(**WIDE_HEADS)
    return hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5, vision_feature_layer=-1)


CONFIGS = {
    "llama": hf.LlamaConfig(**GROUPED),
    "llama with biases": hf.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "qwen2": hf.Qwen2Config(**GROUPED),
    "qwen3, tied": hf.Qwen3Config(**WIDE_HEADS, tie_word_embeddings=True),
    "gemma": hf.GemmaConfig(**WIDE_HEADS),
    "gemma3": hf.Gemma3TextConfig(**WIDE_HEADS),
    "gpt2": hf.GPT2Config(vocab_size=48, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "opt": hf.OPTConfig(**COMMON, ffn_dim=40, word_embed_proj_dim=32),
    "opt, projected": hf.OPTConfig(**COMMON, ffn_dim=40, word_embed_proj_dim=16),
    "starcoder2": hf.Starcoder2Config(**GROUPED),
    "mixtral": hf.MixtralConfig(**GROUPED, **EXPERTS, num_local_experts=4),
    "qwen3 moe": hf.Qwen3MoeConfig(**WIDE_HEADS, **EXPERTS, num_experts=8, moe_intermediate_size=12),
    # blocks that differ
    "lfm2": hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
    "phi3": hf.Phi3Config(**GROUPED),
    "mistral": hf.MistralConfig(**GROUPED),
    "smollm3": hf.SmolLM3Config(**GROUPED),
    "llava": llava(),
}


def build(config, **settings):
    return auto_class(config).from_config(config, attn_implementation="eager", **settings)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_counts_are_those_of_the_real_model(config):
    size, model = model_size(config), build(config)
    blocks = [sum(p.numel() for p in block.parameters()) for block in decoder_blocks(model)]
    assert [block.num_parameters for block in size.blocks] == blocks
    assert size.num_parameters == sum(size.layer_parameters()) == sum(p.numel() for p in model.parameters())
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert size.parameters_before >= embeddings.numel()
    assert size.head_weights == head.numel()
    assert (size.parameters_behind > head.numel()) == (head is not embeddings)
    language = model.get_decoder()
    text = {id(p): p.numel() for p in (*language.parameters(), head)}
    assert size.num_text_parameters == sum(text.values())
    assert (size.vision is None) == (config.model_type != "llava")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_lora_parameters_are_those_of_the_adapted_model(config):
    size = model_size(config)
    adapted = AdaptedModel(build(config), RankPartition({"v": 3}), AdapterConfig())
    assert size.lora_parameters(3) == adapted.num_parameters()
    per_block, factors = [0] * len(size.blocks), adapted.composed(SliceUse(("v",)))
    blocks = list(decoder_blocks(adapted.model))
    for name, layer in adapted.layers().items():
        block = next(i for i, block in enumerate(blocks) if any(layer is module for module in block.modules()))
        per_block[block] += sum(value.numel() for value in factors[name]) // 3
    assert [block.lora_width for block in size.blocks] == per_block


def test_other_target_modules_count_wherever_they_are():
    config = CONFIGS["llama"]
    adapted = AdaptedModel(build(config), RankPartition({"v": 3}), AdapterConfig(target_modules=r".*q_proj|lm_head"))
    size = model_size(config, r".*q_proj|lm_head")
    assert size.lora_parameters(3) == adapted.num_parameters()
    assert size.outer_lora_width == 32 + 48
    with pytest.raises(AdapterError, match="matches no module"):
        model_size(config, "nothing")


def test_the_bundled_checkpoint_is_counted_exactly():
    file = (BUNDLED / "model.safetensors").read_bytes()  # 8 bytes of length, then a JSON header
    header = json.loads(file[8 : 8 + struct.unpack("<Q", file[:8])[0]])
    counts = {name: math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    text = sum(count for name, count in counts.items() if name.startswith("language_model."))
    size = model_size(BUNDLED)
    assert size.num_text_parameters == text
    assert size.vision.num_parameters == sum(counts.values()) - text
    assert size.vision.num_image_tokens == 16


LLAMA_3_2_3B = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24}
LLAMA_3_2_3B |= {"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}
TINYLLAMA = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4}
QWEN2 = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
QWEN2 |= {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # The number of parameters of the safetensors on their model cards.
        (hf.GPT2Config(), 124_439_808),
        (hf.LlamaConfig(**TINYLLAMA), 1_100_048_384),
        (hf.Qwen2Config(**QWEN2), 494_032_768),
        (hf.LlamaConfig(**LLAMA_3_2_3B), 3_212_749_824),
        (hf.MixtralConfig(), 46_702_792_704),  # 8x7B
        (hf.OPTConfig(), 125_239_296),  # OPT-125m
    ],
    ids=["gpt2", "TinyLlama-1.1B", "Qwen2-0.5B", "Llama-3.2-3B", "Mixtral-8x7B", "opt-125m"],
)
def test_parameters_of_public_models(config, expected):
    assert model_size(config).num_text_parameters == expected


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3", "starcoder2", "phi3", "mixtral", "qwen3 moe"])
def test_flops_are_those_of_torchs_counter(name):
    config, num_tokens = CONFIGS[name], 24
    # The plain loop over experts: the counter does not know grouped products.
    model = build(config, experts_implementation="eager") if "num_experts_per_tok" in vars(config) else build(config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.randint(3, 48, (1, num_tokens)), logits_to_keep=1, use_cache=False)
    assert model_size(config).forward_flops(num_tokens, 0) == counter.get_total_flops()  # tolerance: none


def test_image_flops_and_tokens_are_those_of_the_real_tower():
    model = build(CONFIGS["llava"]).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = model.get_image_features(torch.rand(1, 3, 64, 64)).pooler_output
    vision = model_size(CONFIGS["llava"]).vision
    # A class token goes through the tower besides 64 patches, and meets 65 tokens.
    assert vision.flops == pytest.approx(counter.get_total_flops(), rel=2 / 64)
    assert vision.num_image_tokens == features[0].shape[-2]


def test_blocks_that_differ_are_counted_one_by_one():
    convolution, attention = model_size(CONFIGS["lfm2"]).blocks
    assert (convolution.attention_width, attention.attention_width) == (0, 32)
    settings = WIDE_HEADS | EXPERTS | {"num_experts": 8, "moe_intermediate_size": 12}
    dense, mixture = model_size(hf.Qwen3MoeConfig(**settings, mlp_only_layers=[0])).blocks
    # three matrices of 32x40; eight experts of three of 32x12, two of them active, and a router of 32x8
    assert mixture.num_parameters - dense.num_parameters == 8 * 3 * 32 * 12 + 32 * 8 - 3 * 32 * 40
    assert mixture.active_weights - dense.active_weights == 2 * 3 * 32 * 12 + 32 * 8 - 3 * 32 * 40


def test_a_vision_tower_in_another_form_is_refused():
    config = llava()
    config.vision_config = hf.PvtV2Config()  # stages of several depths and patch sizes
    with pytest.raises(ConfigError, match="vision_config must give patch_size"):
        _vision_size(config, [], "here")


def test_a_mixture_that_does_not_say_what_a_token_uses_is_refused():
    config = hf.DeepseekV2Config(**COMMON, n_routed_experts=4)  # its num_experts_per_tok is None
    with pytest.raises(ConfigError, match=r"DeepseekV2Config: it must say how many experts .* got 4 and None; give"):
        model_size(config)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[]", "transformers cannot build a language model from it"),
        ("{", "transformers cannot build a language model from it"),
        ('{"hidden_size": 4}', "model_type"),
        ('{"model_type": "no-such-model"}', "no-such-model"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
        ('{"model_type": "t5"}', "T5Config"),
        ('{"model_type": "bert"}', "BertLMHeadModel has no list of transformer blocks; name a decoder-only"),
        ('{"model_type": "mamba"}', "num_attention_heads must be whole numbers, got 768 and None"),
    ],
)
def test_what_cannot_be_counted_is_refused_in_one_line(tmp_path, written, said):
    (tmp_path / "config.json").write_text(written)
    with pytest.raises(ConfigError) as refused:
        model_size(tmp_path)
    assert str(refused.value).startswith(f"{tail(tmp_path / 'config.json')}: ")
    assert said in str(refused.value) and "name a" in str(refused.value)
    assert "\n" not in str(refused.value)
