"""The bundled backbone's architecture: previous-token heads, named patch positions, plain transformers form."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from contextlora.backbones.pretraining.architecture import build_model, make_config
from contextlora.backbones.pretraining.batches import make_batch
from contextlora.backbones.pretraining.build import save_backbone
from contextlora.backbones.pretraining.pretrain import PretrainConfig, SkillModel, normalise, pretrain, skill_test
from contextlora.backbones.pretraining.vocabulary import WORDS


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built, _ = build_model(make_config(num_layers=2, num_vision_layers=1))
    built.set_attn_implementation("eager")
    return built.eval()


@torch.inference_mode()
def test_layer_0_looks_one_two_and_three_tokens_back(model):
    ids = torch.randint(4, len(WORDS), (2, 90))
    attention = model(input_ids=ids, output_attentions=True).attentions[0]  # (batch, heads, to, from)
    for head, distance in enumerate((1, 1, 2, 2, 3, 3)):
        seen = attention[:, head].diagonal(offset=-distance, dim1=-2, dim2=-1)
        assert seen.min() > 0.999


def test_the_fixed_heads_do_not_train():
    torch.manual_seed(0)
    built, fixed = build_model(make_config(num_layers=1, num_vision_layers=1))
    assert len(fixed) == 4 and not any(parameter.requires_grad for parameter in fixed)
    assert sum(parameter.requires_grad for parameter in built.parameters()) > 20


@torch.inference_mode()
def test_induction_heads_work_from_the_start(model):
    """A sequence said twice: at its second saying, head 0 of layer 1 looks at what followed the first saying."""
    said = torch.stack([torch.randperm(len(WORDS) - 10)[:20] + 10 for _ in range(8)])
    attention = model(input_ids=torch.cat((said, said), dim=1), output_attentions=True).attentions[1][:, 0]
    followed = attention[:, 20:39].diagonal(offset=1, dim1=-2, dim2=-1)  # from 20 + i to 1 + i
    assert followed.mean() > 0.5  # uniform attention would give 1/30


def test_number_words_begin_in_order(model):
    """The nearer two numbers, the more alike their embeddings; the random share keeps neighbours apart."""
    words = model.model.language_model.embed_tokens.weight
    numbers = words[[WORDS.index(str(n)) for n in range(100)]]
    alike = torch.nn.functional.cosine_similarity(numbers[:, None], numbers[None], dim=-1)
    near, far = (alike.diagonal(offset).mean() for offset in (1, 60))
    assert 0.6 < near < 0.9 and far < near - 0.3
    others = words[[WORDS.index(word) for word in ("apple", "river", "c1", "car")]]
    torch.testing.assert_close(numbers.std(), others.std(), rtol=0.1, atol=0)  # no louder than other words


def test_patch_positions_are_spoken_in_words(model):
    words = model.model.language_model.embed_tokens.weight
    positions = model.model.vision_tower.embeddings.position_embedding.weight
    expected = words[WORDS.index("c3")] + words[WORDS.index("r2")]
    assert torch.equal(positions[1 + 1 * 4 + 2], expected)  # after the class token; row 2, column 3


@torch.inference_mode()
def test_skill_model_equals_the_transformers_forward(model):
    batch = make_batch(1, num_image_rows=3, num_text_rows=2, length=96)
    hidden, patches = SkillModel(model)(batch.input_ids, normalise(batch.pixels))
    assert patches.shape == (3, 16, 192)
    with_image = model(input_ids=batch.input_ids[:3], pixel_values=normalise(batch.pixels)).logits
    text_only = model(input_ids=batch.input_ids[3:]).logits
    torch.testing.assert_close(model.lm_head(hidden), torch.cat((with_image, text_only)), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_saved_checkpoint_loads_with_plain_transformers(model, tmp_path):
    from PIL import Image

    torch.manual_seed(1)
    source, _ = build_model(make_config(num_layers=1, num_vision_layers=1))
    save_backbone(source, tmp_path / "backbone", {"config": {}})
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "backbone", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "backbone")
    batch = make_batch(1, num_image_rows=1, num_text_rows=0, length=96)
    image = Image.fromarray(batch.pixels[0].permute(1, 2, 0).numpy())
    inputs = processor(text=["<image> what is at c1 r2 ?"], images=[image], return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 16 + 6)
    torch.testing.assert_close(inputs["pixel_values"], normalise(batch.pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(loaded(**inputs).logits, source.float()(**inputs).logits, atol=2e-3, rtol=1e-3)
    assert not list(tmp_path.glob(".*partial*"))


def test_pretraining_learns_and_measures():
    config = PretrainConfig(num_steps=6, num_image_rows=2, num_text_rows=4, length=96, warmup_steps=2)
    states = list(pretrain(config, num_layers=2, compile_model=False))
    assert states[-1]["loss"] < states[0]["loss"]
    skills = skill_test(states[-1]["model"].eval(), num_batches=1)
    assert {"name", "lookup", "rule", "options_words"} <= skills.keys()
    assert all(0 <= skill["accuracy"] <= 1 and skill["n"] > 0 for skill in skills.values())
