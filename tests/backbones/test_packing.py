"""Options packed behind the prompts score as options in rows of their own; the reference is the second forward."""

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
import transformers as hf
from PIL import Image

from contextlora.backbones.faults import BackboneError
from contextlora.backbones.packing import can_pack
from contextlora.backbones.scoring import option_scores
from contextlora.tasks.prompts import IMAGE_PLACEHOLDER, Prompt

OPTIONS = (("dry", "damp c2 lane", "slick c1"), ("fair", "wet lane"))  # unlike in number and length


def prompts(image=None):
    texts = ("lane c1 . grip 44 . answer :", "camera grip c2 ? answer :")
    seen = f"{IMAGE_PLACEHOLDER} " if image else ""
    return [
        Prompt("grip", seen + texts[0], image, OPTIONS[0], 1),
        Prompt("grip", texts[1], None, OPTIONS[1], 1),
    ]


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gemma", "llava"])
def test_scores_and_gradients_are_those_of_a_second_forward(backbone, kind, tmp_path):
    loaded = backbone(kind)
    assert loaded.packs_options
    Image.effect_noise((20, 20), 90).convert("RGB").save(tmp_path / "image.png")
    batch = loaded.encode(prompts(tmp_path / "image.png" if kind == "llava" else None))
    assert batch.num_read == max(int(row[..., 1:].sum()) for row in batch.option_mask) > 0
    weight = loaded.model.get_input_embeddings().weight.requires_grad_()
    found = {}
    for way in (batch, replace(batch, num_read=0)):
        scores = option_scores(loaded.model, way)
        weight.grad = None
        (-scores.log_softmax(dim=1)[:, 1]).sum().backward()
        found[way.num_read] = scores.detach(), weight.grad.clone()
    (scores, gradients), (expected, expected_gradients) = found.values()
    assert scores[1, 2] == expected[1, 2] == -torch.inf
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-5, rtol=1e-4)


def test_some_rows_are_as_wide_as_in_the_whole_batch(backbone):
    loaded = backbone("qwen2")
    whole, part = loaded.encode(prompts()), loaded.encode(prompts(), range(1, 2))
    assert part.num_read == whole.num_read > int(part.option_mask[..., 1:].sum())
    torch.testing.assert_close(option_scores(loaded.model, part), option_scores(loaded.model, whole)[1:])


def test_a_row_needs_no_positions_for_the_options_of_others(backbone):
    """GPT-2 has 64 positions, and would look for one that it lacks."""
    loaded = backbone("gpt2")
    for number in range(64):  # the longest prompt that fits
        asked = Prompt("grip", "a " * number + "answer :", None, ("ab", "c"), 0)
        with suppress(BackboneError):
            loaded.encode([asked])
            full = asked
    batch = loaded.encode([full, *prompts()])
    assert int(batch.inputs["attention_mask"][0].sum() + batch.option_mask[0].sum(dim=1).max()) - 1 in (63, 64)
    assert batch.inputs["input_ids"].shape[1] + batch.num_read > 64
    alone = option_scores(loaded.model, loaded.encode([full]))
    torch.testing.assert_close(option_scores(loaded.model, batch)[:1, :2], alone, atol=1e-5, rtol=1e-5)


def test_options_of_one_token_and_windows_too_small_are_not_packed(backbone):
    loaded = backbone("gemma")
    assert loaded.encode([Prompt("grip", "lane answer :", None, ("dry", "damp"), 0)]).num_read == 0
    assert loaded.encode(prompts()).num_read
    assert replace(loaded, window=10).encode(prompts()).num_read == 0


def test_a_model_that_lets_options_see_one_another_does_not_pack(backbone, monkeypatch):
    model = backbone("qwen2").model
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda attention_mask=None, **inputs: forward(**inputs))
    assert not can_pack(model)


def test_a_model_without_attention_does_not_pack():
    sizes = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 32}
    assert not can_pack(hf.AutoModelForCausalLM.from_config(hf.MambaConfig(**sizes)).eval())
