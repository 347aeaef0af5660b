"""Tiny random models of every supported architecture, and a plan that uses all of a stage's possibilities."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
)

from contextlora.adapters import AdaptedModel, AdapterConfig
from contextlora.graph import RankPartition, SliceUse, TrainingPlan

VOCABULARY, IMAGE_TOKEN = 48, 5


def _text(config_class):
    """A decoder of two blocks, 32 wide, grouped-query attention."""
    return config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _llava():
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_text(Qwen3Config),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=4,
    )
    return LlavaForConditionalGeneration(config)


def _gpt2():
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config)


ARCHITECTURES = {
    "llava": _llava,
    "llama": lambda: LlamaForCausalLM(_text(LlamaConfig)),
    "qwen2": lambda: Qwen2ForCausalLM(_text(Qwen2Config)),
    "gemma": lambda: GemmaForCausalLM(_text(GemmaConfig)),
    "gemma2": lambda: Gemma2ForCausalLM(_text(Gemma2Config)),
    "gpt2": _gpt2,
}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return request.param


@pytest.fixture
def tiny_model():
    """architecture -> the same random model each time."""

    def make(architecture="llama", dtype=torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return ARCHITECTURES[architecture]().to(dtype)

    return make


@pytest.fixture
def inputs():
    """architecture -> model inputs of 3 sequences of 10 tokens, with an image each where the model takes one."""

    def make(architecture="llama"):
        generator = torch.Generator().manual_seed(1)
        batch = {"input_ids": torch.randint(6, VOCABULARY, (3, 10), generator=generator)}
        if architecture == "llava":
            batch["input_ids"][:, 1:5] = IMAGE_TOKEN
            batch["pixel_values"] = torch.randn(3, 3, 16, 16, generator=generator)
        return batch

    return make


@pytest.fixture
def plan():
    """Roots a, b and the bystander x; child c needs a (half frozen) and b (all frozen), child d a (3/4 frozen)."""
    uses = {
        "a": SliceUse(("a",)),
        "b": SliceUse(("b",)),
        "x": SliceUse(("x",)),
        "c": SliceUse(("c",), {"a": 0.5, "b": 1.0}),
        "d": SliceUse(("d",), {"a": 0.75}),
    }
    ranks = {"a": 4, "b": 2, "x": 3, "c": 4, "d": 2}
    return TrainingPlan(RankPartition(ranks), uses, (("a", "b", "x"), ("c", "d")))


@pytest.fixture
def adapt(plan, tiny_model):
    """An adapted tiny model whose slices and gates all have random values, as after some training."""

    def make(architecture="llama", dtype=torch.float32, random_values=True, partition=None, **settings):
        config = AdapterConfig(alpha=8, r_reference=4, **settings)
        model = tiny_model(architecture, dtype)
        adapted = AdaptedModel(model, partition or plan.partition, config, plan.edges)
        if random_values:
            generator = torch.Generator().manual_seed(2)
            state = adapted.state.read()
            values = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in state.items()}
            adapted.state.write(values)
        return adapted.eval()

    return make


@pytest.fixture
def loss_of():
    """The language-modelling loss of a batch, written out."""

    def compute(model, batch):
        logits = model(**batch).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"][:, 1:].flatten())

    return compute


@pytest.fixture
def train(loss_of):
    """Runs optimizer steps, one batch of one task each, tasks taking turns."""

    def run(adapted, uses, optimizer, batch, steps):
        tasks = list(uses)
        for step in steps:
            task = tasks[step % len(tasks)]
            with adapted.active(uses[task], task):
                optimizer.zero_grad()
                loss_of(adapted, batch).backward()
                optimizer.step()

    return run
