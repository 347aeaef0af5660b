"""Tiny random backbones in Hugging Face form, made from configurations: nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from contextlora.backbones.load import Backbone, load_backbone

WORDS = "<unk> <s> <image> . , : ? dry damp slick fair wet lane c1 c2 grip camera options given answer a b c d 1 2 44"


def word_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token a word; `<s>` in front, as many real tokenizers have it."""
    vocabulary = {word: index for index, word in enumerate(WORDS.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return made


def byte_pair_tokenizer() -> hf.PreTrainedTokenizerFast:
    """GPT-2's kind: byte-level pieces, several a word, no padding token, nothing in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
    )
    tokenizer.train_from_iterator(["answer : dry damp options lane grip . , :"] * 3, trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def _save_text_model(kind: str, folder: Path) -> None:
    tokenizer = word_tokenizer() if kind == "gemma" else byte_pair_tokenizer()
    if kind == "gpt2":
        config = hf.GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2)
    else:
        make = {"qwen2": hf.Qwen2Config, "gemma": hf.GemmaConfig}[kind]
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        config = make(vocab_size=len(tokenizer), **sizes, **heads)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, save_llava: Callable[[hf.PreTrainedTokenizerFast, Path], None]
) -> Callable[[str], Path]:
    """kind -> folder of a tiny checkpoint: gpt2, qwen2, gemma or llava."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            torch.manual_seed(0)
            made[kind] = tmp_path_factory.mktemp(kind)
            if kind == "llava":
                save_llava(word_tokenizer(), made[kind])
            else:
                _save_text_model(kind, made[kind])
        return made[kind]

    return make


@pytest.fixture
def backbone(checkpoint: Callable[[str], Path]) -> Callable[..., Backbone]:
    """(kind, further arguments of load_backbone) -> freshly loaded backbone in float32."""

    def load(kind: str, dtype: str = "float32", **settings: str) -> Backbone:
        return load_backbone(str(checkpoint(kind)), dtype=dtype, **settings)

    return load
