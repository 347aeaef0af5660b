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
        vocab_size=VOCABULARY,
        hidden_size=32,
        state_size=4,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        **_ENDS,
    ),
    "Jamba": lambda: hf.JambaConfig(
        **_GROUPED,
        **_EXPERTS,
        **_MAMBA,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        use_mamba_kernels=False,
        **_ENDS,
    ),
    "LFM2": lambda: hf.Lfm2Config(**_GROUPED, layer_types=["conv", "full_attention"], **_ENDS),
    "Qwen3-Next": lambda: hf.Qwen3NextConfig(
        **_HEADS,
        **_EXPERTS,
        **_LINEAR,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"],
        **_ENDS,
    ),
    "RecurrentGemma": lambda: hf.RecurrentGemmaConfig(
        **_GROUPED, lru_width=32, attention_window_size=64, block_types=("recurrent", "attention"), **_ENDS
    ),
}


IMAGE_TOKEN, FEATURES = "<image>", {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
_TOWER = FEATURES | {"hidden_size": 16, "intermediate_size": 24}
_SQUARE = {"height": 32, "width": 32}


def _clip(**settings: object) -> hf.CLIPImageProcessorPil:
    return hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=_SQUARE, **settings)


def _llava(tokenizer: hf.PreTrainedTokenizerFast, text: hf.PretrainedConfig) -> tuple:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_TOWER),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
    )
    select = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return config, hf.LlavaProcessor(_clip(), tokenizer, **select)


def _llava_next(tokenizer: hf.PreTrainedTokenizerFast, text: hf.PretrainedConfig) -> tuple:
    grid = [[32, 64], [64, 32], [64, 64]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**_TOWER),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        image_grid_pinpoints=grid,
    )
    images = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=_SQUARE, image_grid_pinpoints=grid)
    select = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return config, hf.LlavaNextProcessor(images, tokenizer, **select)


def _idefics3(tokenizer: hf.PreTrainedTokenizerFast, text: hf.PretrainedConfig) -> tuple:
    config = hf.Idefics3Config(
        vision_config=hf.Idefics3VisionConfig(**_TOWER).to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        scale_factor=2,
        pad_token_id=0,
    )
    images = hf.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return config, hf.Idefics3Processor(images, tokenizer, image_seq_len=4)


def _gemma3(tokenizer: hf.PreTrainedTokenizerFast, text: hf.PretrainedConfig) -> tuple:
    ids = tokenizer.convert_tokens_to_ids
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**_TOWER).to_dict(),
        text_config=hf.Gemma3TextConfig(**_HEADS, **_ENDS).to_dict(),
        mm_tokens_per_image=4,
        image_token_index=ids("<img>"),
        boi_token_index=ids("<boi>"),
        eoi_token_index=ids("<eoi>"),
    )
    images = hf.Gemma3ImageProcessorPil(size=_SQUARE)
    return config, hf.Gemma3Processor(images, tokenizer, image_seq_length=4)


def _paligemma(tokenizer: hf.PreTrainedTokenizerFast, text: hf.PretrainedConfig) -> tuple:
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**_TOWER, vision_use_head=False).to_dict(),
        text_config=hf.GemmaConfig(**_HEADS, **_ENDS).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        projection_dim=32,
    )
    images = hf.SiglipImageProcessorPil(size=_SQUARE)
    images.image_seq_length = 16
    return config, hf.PaliGemmaProcessor(images, tokenizer)


class QwenProcessor:
    """What those of Qwen-VL make of images; the real ones also read videos, for which they need torchvision."""

    image_token, chat_template = "<|image_pad|>", None

    def __init__(self, tokenizer: hf.PreTrainedTokenizerFast, patch_size: int) -> None:
        self.tokenizer = tokenizer
        limits = {"shortest_edge": 256, "longest_edge": 4096}
        self.image_processor = hf.Qwen2VLImageProcessorPil(patch_size=patch_size, size=limits)

    def __call__(self, text: list[str], images: list, return_tensors: str = "pt", **settings: bool) -> dict:
        """One prompt with one image."""
        features = self.image_processor(images=images, return_tensors="pt")
        number = int(features["image_grid_thw"][0].prod()) // 4
        text = text[0].replace(self.image_token, self.image_token * number)
        ids = torch.tensor([self.tokenizer(text, **settings)["input_ids"]])
        types = (ids == self.tokenizer.convert_tokens_to_ids(self.image_token)).long()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **features}


def _qwen2_5_vl(tokenizer: hf.PreTrainedTokenizerFast, _: hf.PretrainedConfig) -> tuple:
    tower = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 8}
    tower |= {"window_size": 32, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = hf.Qwen2_5_VLConfig(
        vision_config=tower, text_config=_GROUPED | _ENDS | {"rope_parameters": rope}, **_qwen_tokens(tokenizer)
    )
    return config, QwenProcessor(tokenizer, 8)


def _qwen3_vl(tokenizer: hf.PreTrainedTokenizerFast, _: hf.PretrainedConfig) -> tuple:
    tower = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 8}
    tower |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0, "mrope_interleaved": True}
    config = hf.Qwen3VLConfig(
        vision_config=tower, text_config=_HEADS | _ENDS | {"rope_parameters": rope}, **_qwen_tokens(tokenizer)
    )
    return config, QwenProcessor(tokenizer, 8)


def _qwen_tokens(tokenizer: hf.PreTrainedTokenizerFast) -> dict[str, int]:
    words = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    words |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(word) for name, word in words.items()}


VISION = {
    "Qwen2.5-VL": _qwen2_5_vl,
    "Qwen3-VL": _qwen3_vl,
    "LLaVA": _llava,
    "LLaVA-Next": _llava_next,
    "Idefics3": _idefics3,
    "Gemma 3": _gemma3,
    "PaliGemma": _paligemma,
}
_SPECIAL = {
    "PaliGemma": (IMAGE_TOKEN, "\n"),
    "Qwen2.5-VL": ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    "Qwen3-VL": ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    "Gemma 3": ("<boi>", "<eoi>", "<img>"),
    "Idefics3": (IMAGE_TOKEN, "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
}


def save_vision(family: str, folder: Path) -> None:
    """Writes a checkpoint of an image-and-text family."""
    tokenizer = word_tokenizer(*_SPECIAL.get(family, (IMAGE_TOKEN,)))
    if family == "Gemma 3":
        tokenizer.init_kwargs |= {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"}
        for name, word in (("boi", "<boi>"), ("eoi", "<eoi>"), ("image", "<img>")):
            setattr(tokenizer, f"{name}_token", word)
            setattr(tokenizer, f"{name}_token_id", tokenizer.convert_tokens_to_ids(word))
    config, processor = VISION[family](tokenizer, hf.LlamaConfig(**_GROUPED, **_ENDS))
    model = hf.AutoModelForImageTextToText.from_config(config)
    spread(model)
    model.save_pretrained(folder)
    (tokenizer if isinstance(processor, QwenProcessor) else processor).save_pretrained(folder)


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
