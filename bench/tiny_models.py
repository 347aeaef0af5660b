"""Tiny random checkpoints of many families, made from their config classes: nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

WORDS = "<unk> <s> </s> . , : ? main river bridge side lane red green blue a b c first second options given answer sees"
VOCABULARY = 400

_LENGTH = {"vocab_size": VOCABULARY, "max_position_embeddings": 256}
_SIZES = _LENGTH | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE = _SIZES | {"intermediate_size": 48}
_GROUPED = _WIDE | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2}
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GPT = {"vocab_size": VOCABULARY, "n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 4}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_MAMBA = {"mamba_d_state": 4, "mamba_d_conv": 4, "mamba_dt_rank": 4}

TEXT: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "Llama": lambda: hf.LlamaConfig(**_GROUPED, **_ENDS),
    "Mistral": lambda: hf.MistralConfig(**_GROUPED, **_ENDS),
    "Qwen2": lambda: hf.Qwen2Config(**_GROUPED, **_ENDS),
    "Qwen3": lambda: hf.Qwen3Config(**_HEADS, **_ENDS),
    "Gemma": lambda: hf.GemmaConfig(**_HEADS, **_ENDS),
    "Gemma 2": lambda: hf.Gemma2Config(**_HEADS, **_ENDS),
    "Gemma 3, text": lambda: hf.Gemma3TextConfig(**_HEADS, **_ENDS),
    "Phi": lambda: hf.PhiConfig(**_WIDE, **_ENDS),
    "Phi-3": lambda: hf.Phi3Config(**_GROUPED, **_ENDS),
    "GPT-2": lambda: hf.GPT2Config(**_GPT, **_ENDS),
    "GPT-J": lambda: hf.GPTJConfig(**_GPT, rotary_dim=4, **_ENDS),
    "GPT-NeoX": lambda: hf.GPTNeoXConfig(**_WIDE, **_ENDS),
    "OPT": lambda: hf.OPTConfig(**_SIZES, ffn_dim=48, word_embed_proj_dim=32, **_ENDS),
    "BLOOM": lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **_ENDS),
    "Falcon": lambda: hf.FalconConfig(**_SIZES, **_ENDS),
    "MPT": lambda: hf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2, max_seq_len=256, **_ENDS),
    "StableLM": lambda: hf.StableLmConfig(**_GROUPED, **_ENDS),
    "Starcoder2": lambda: hf.Starcoder2Config(**_GROUPED, **_ENDS),
    "OLMo 2": lambda: hf.Olmo2Config(**_GROUPED, **_ENDS),
    "Granite": lambda: hf.GraniteConfig(**_GROUPED, **_ENDS),
    "SmolLM3": lambda: hf.SmolLM3Config(**_GROUPED, **_ENDS),
    "Cohere": lambda: hf.CohereConfig(**_GROUPED, **_ENDS),
    "Mixtral": lambda: hf.MixtralConfig(**_GROUPED, **_EXPERTS, num_local_experts=4, **_ENDS),
    "Qwen3-MoE": lambda: hf.Qwen3MoeConfig(
        **_HEADS, **_EXPERTS, num_experts=4, moe_intermediate_size=16, decoder_sparse_step=1, **_ENDS
    ),
    "GPT-OSS": lambda: hf.GptOssConfig(**_HEADS, **_EXPERTS, num_local_experts=4, sliding_window=8, **_ENDS),
    "Mamba": lambda: hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2, **_ENDS),
    "Mamba 2": lambda: hf.Mamba2Config(
        vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=1,
        **_ENDS,
    ),
    "Jamba": lambda: hf.JambaConfig(
        **_GROUPED, **_EXPERTS, **_MAMBA, num_experts=2, attn_layer_period=2, attn_layer_offset=1,
        use_mamba_kernels=False, **_ENDS,
    ),
    "LFM2": lambda: hf.Lfm2Config(**_GROUPED, layer_types=["conv", "full_attention"], **_ENDS),
    "Qwen3-Next": lambda: hf.Qwen3NextConfig(
        **_HEADS, **_EXPERTS, **_LINEAR, num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"], **_ENDS,
    ),
    "RecurrentGemma": lambda: hf.RecurrentGemmaConfig(
        **_GROUPED, lru_width=32, attention_window_size=64, block_types=("recurrent", "attention"), **_ENDS
    ),
}


def word_tokenizer(*special: str) -> hf.PreTrainedTokenizerFast:
    """One token a word, `<s>` and `</s>` as ends."""
    vocabulary = {word: index for index, word in enumerate(WORDS.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def byte_tokenizer(*special: str) -> hf.PreTrainedTokenizerFast:
    """GPT-2's kind, a word a token, for families whose tokenizers are of this kind whatever their files say."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 20,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {word}" for word in WORDS.split()] * 9, trainer)
    made = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": list(special)})
    return made


def save_text(family: str, folder: Path) -> None:
    """Writes a checkpoint of a text family."""
    model = hf.AutoModelForCausalLM.from_config(TEXT[family]())
    spread(model)
    model.save_pretrained(folder)
    (byte_tokenizer if family == "Qwen2" else word_tokenizer)().save_pretrained(folder)


@torch.no_grad()
def spread(model: hf.PreTrainedModel) -> None:
    """Weights large enough that what a token sees moves its logits: with the usual ones errors would hide."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "A_log" not in name:
            weight.normal_(0, weight.shape[-1] ** -0.5)
