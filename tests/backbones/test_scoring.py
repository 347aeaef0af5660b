"""Scores against an oracle without padding, batches or caches: one row an option, log-softmax over every position."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import normalizers, processors

from contextlora.backbones.faults import BackboneError
from contextlora.backbones.load import Backbone, load_backbone
from contextlora.backbones.scoring import option_scores
from contextlora.tasks.prompts import Prompt

TEXTS = ("lane c1 . grip 44 . options : dry , damp . answer :", "camera , grip c2 ? answer :")


def prompts(image_path=None, options=("dry", "damp", "slick")):
    prefix = "<image> " if image_path else ""
    return [Prompt("grip", prefix + text, image_path, options, 1) for text in TEXTS]


def oracle(backbone: Backbone, prompt: Prompt) -> torch.Tensor:
    """sum of log p(option token | everything before), the text tokenised and the image processed by transformers."""
    scores = []
    for option in prompt.continuations:
        whole = f"{prompt.text} {option}"
        if prompt.image_path:
            image = Image.open(prompt.image_path)
            inputs = backbone.processor(text=whole, images=image, return_tensors="pt")
            num_given = backbone.processor(text=prompt.text, images=image, return_tensors="pt")["input_ids"].shape[1]
        else:
            inputs = backbone.tokenizer(whole, return_tensors="pt")
            num_given = len(backbone.tokenizer(prompt.text)["input_ids"])
        ids = inputs["input_ids"][0]
        log_likelihood = F.log_softmax(backbone.model(**inputs).logits[0].float(), dim=-1)
        scores.append(sum(log_likelihood[i - 1, ids[i]] for i in range(num_given, len(ids))))
    return torch.stack(scores)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gemma"])
def test_text_models_equal_the_oracle(backbone, kind):
    loaded = backbone(kind)
    batch = loaded.encode(prompts())
    assert (batch.option_ids.shape[-1] > 1) == (kind != "gemma")  # only there is a word one token
    expected = torch.stack([oracle(loaded, prompt) for prompt in prompts()])
    torch.testing.assert_close(option_scores(loaded.model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [("dry", "damp", "slick"), ("dry", "damp c2", "slick c1 c2")])
def test_images_equal_the_oracle(backbone, tmp_path, options):
    loaded = backbone("llava")
    path = tmp_path / "image.png"
    Image.effect_noise((20, 20), 90).convert("RGB").save(path)
    asked = prompts(path, options)
    asked.append(Prompt("grip", TEXTS[1], None, options, 0))  # one without an image among them
    expected = torch.stack([oracle(loaded, prompt) for prompt in asked])
    torch.testing.assert_close(option_scores(loaded.model, loaded.encode(asked)), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected[1], expected[2])  # the image does matter


def test_a_model_sees_sixteen_bits_as_eight_and_no_damaged_image(backbone, tmp_path):
    loaded, grey = backbone("llava"), np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = []
    for values in (grey, grey.astype(np.uint16) * 257, grey.astype(np.float32) / 255):
        path = tmp_path / f"{values.dtype}.tiff"
        Image.fromarray(values).save(path)
        pixels.append(loaded.encode(prompts(path)).inputs["pixel_values"])
    assert pixels[0].std() > 0.1 and torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    cut = tmp_path / "cut.tiff"
    cut.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BackboneError, match=r"image .*cut\.tiff cannot be read"):
        loaded.encode(prompts(cut))


def test_an_image_is_processed_once(backbone, tmp_path, monkeypatch):
    loaded = backbone("llava")
    path = tmp_path / "image.png"
    Image.new("RGB", (16, 16)).save(path)
    first = loaded.encode(prompts(path))
    monkeypatch.setattr(loaded, "processor", None)
    monkeypatch.setattr(loaded, "tokenizer", None)
    again = loaded.encode(prompts(path)[::-1])
    assert torch.equal(first.inputs["pixel_values"], again.inputs["pixel_values"])
    assert torch.equal(first.inputs["input_ids"].flip(0), again.inputs["input_ids"])


def test_items_with_fewer_options(backbone):
    loaded = backbone("gemma")
    few = Prompt("grip", TEXTS[0], None, ("dry", "damp"), 1)
    batch = loaded.encode([few, prompts()[0]])
    scores = option_scores(loaded.model, batch)
    assert scores.dtype == torch.float32
    assert scores[0, 2] == -torch.inf and torch.equal(scores[0, :2], scores[1, :2])
    F.cross_entropy(scores, batch.answer).backward()
    assert all(torch.isfinite(p.grad).all() for p in loaded.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gemma"])
def test_gradients_equal_the_oracle(backbone, kind):
    gradients = []
    for score in (
        lambda loaded, asked: option_scores(loaded.model.train(), loaded.encode(asked)),
        lambda loaded, asked: torch.stack([oracle(loaded, prompt) for prompt in asked]),
    ):
        loaded = backbone(kind)
        for module in loaded.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        F.cross_entropy(score(loaded, prompts()), torch.tensor([1, 1])).backward()
        gradients.append({name: weight.grad for name, weight in loaded.model.named_parameters()})
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_a_model_without_keys_and_values(backbone, monkeypatch):
    loaded = backbone("gpt2")
    batch, forward = replace(loaded.encode(prompts()), num_read=0), loaded.model.forward
    monkeypatch.setattr(loaded.model, "forward", lambda **inputs: forward(**{**inputs, "use_cache": False}))
    with pytest.raises(ValueError, match="GPT2LMHeadModel keeps no keys and values"):
        option_scores(loaded.model, batch)


def test_bfloat16_gives_nearly_the_same_scores(backbone):
    exact, rough = (
        option_scores(loaded.model, loaded.encode(prompts()))
        for loaded in (backbone("gemma"), backbone("gemma", dtype="bfloat16"))
    )
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.05, rtol=0.0)


def test_chat_template_wraps_the_prompt(backbone):
    template = (
        "{% for m in messages %}lane {{ m['content'] }} , {% endfor %}{% if add_generation_prompt %}camera{% endif %}"
    )
    loaded = backbone("gemma")
    loaded.tokenizer.chat_template, loaded.chat_template = template, True
    ids = loaded.encode(prompts()).inputs["input_ids"][1]
    ids = ids[-len(loaded.tokenizer(TEXTS[1])["input_ids"]) - 2 :]  # without the padding
    assert (
        " ".join(loaded.tokenizer.convert_ids_to_tokens(ids)) == f"lane {TEXTS[1]} , camera"
    )  # and no `<s>`, which a template writes itself


def test_chat_template_is_used_where_there_is_one(backbone, tmp_path):
    loaded = backbone("gemma")
    loaded.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert load_backbone(str(tmp_path)).chat_template
    assert not load_backbone(str(tmp_path), chat_template="off").chat_template
    assert not loaded.chat_template


def test_chat_template_with_an_image(backbone, tmp_path):
    template = "{% for part in messages[0]['content'] %}{{ part.get('text', '<image> ,') }} {% endfor %}camera"
    loaded = backbone("llava")
    loaded.processor.chat_template, loaded.chat_template = template, True
    path = tmp_path / "image.png"
    Image.new("RGB", (16, 16)).save(path)
    ids = loaded.encode(prompts(path)[:1]).inputs["input_ids"][0]
    assert loaded.tokenizer.decode(ids) == f"{'<image> ' * 4}, {TEXTS[0]} camera"


def test_prompts_are_padded_in_front_to_the_longest(backbone):
    loaded = backbone("gemma")
    asked = [Prompt("grip", ("lane " * words).strip(), None, ("a", "b"), 0) for words in (3, 7)]
    batch = loaded.encode(asked)
    assert batch.inputs["attention_mask"].tolist() == [[0] * 4 + [1] * 4, [1] * 8]  # <s> and the words
    first = loaded.encode(asked, range(1))  # a device's rows are as wide as the whole batch
    assert torch.equal(first.inputs["input_ids"], batch.inputs["input_ids"][:1])
    assert (first.rows, first.batch_size) == (range(1), 2)


def test_batch_moves_to_a_device(backbone):
    batch = backbone("gemma").encode(prompts()).to("meta")
    tensors = [*batch.inputs.values(), batch.option_ids, batch.option_mask, batch.answer]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def refused(loaded, prompt, match):
    with pytest.raises(ValueError, match=match):
        loaded.encode([prompt])


def test_prompts_that_do_not_fit(backbone, tmp_path):
    text_only, seeing = backbone("gemma"), backbone("llava")
    refused(text_only, prompts(tmp_path / "image.png")[0], "takes no images")
    refused(text_only, Prompt("grip", "lane " * 70, None, ("a", "b"), 0), "71 tokens, model .* at most 64")
    refused(text_only, Prompt("grip", "lane", None, ("sunny", "cloudy"), 0), "same tokens to different options")
    refused(seeing, prompts(tmp_path / "image.png")[0], "cannot be read: No such file")
    refused(seeing, Prompt("grip", "what is <image> ?", None, ("a", "b"), 0), "has no image")


def test_a_tokenizer_that_joins_prompt_and_option(backbone):
    loaded = backbone("gemma")
    loaded.tokenizer.backend_tokenizer.normalizer = normalizers.Replace(": dry", "wet")
    refused(loaded, prompts()[0], "does not keep the prompt's end .* apart from the option 'dry'")


PREFIXES = ("dry", "dry damp", "c1 slick")


def ended_oracle(loaded: Backbone, prompt: Prompt) -> torch.Tensor:
    """As `oracle`, with the end token behind every option."""
    scores = []
    for option in prompt.continuations:
        given = len(loaded.tokenizer(prompt.text)["input_ids"])
        ids = [*loaded.tokenizer(f"{prompt.text} {option}")["input_ids"], loaded.tokenizer.eos_token_id]
        log_likelihood = F.log_softmax(loaded.model(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)
        scores.append(sum(log_likelihood[i - 1, ids[i]] for i in range(given, len(ids))))
    return torch.stack(scores)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gemma"])
def test_options_that_begin_others_are_scored_with_an_end(backbone, kind):
    loaded = backbone(kind)
    if loaded.tokenizer.eos_token_id is None:
        loaded.tokenizer.eos_token = "<s>"
    asked = prompts(options=PREFIXES)
    expected = torch.stack([ended_oracle(loaded, prompt) for prompt in asked])
    torch.testing.assert_close(option_scores(loaded.model, loaded.encode(asked)), expected, atol=1e-5, rtol=1e-5)


def test_an_end_is_scored_only_where_an_item_needs_it(backbone):
    loaded = backbone("gemma")
    without, needing = prompts()[0], prompts(options=PREFIXES)[1]
    alone = loaded.encode([without])
    assert alone.option_ids.shape[-1] == 1  # one forward, as ever
    together = loaded.encode([without, needing])
    assert together.option_mask.sum(-1).tolist() == [[1, 1, 1], [2, 3, 3]]
    assert torch.equal(
        option_scores(loaded.model, loaded.encode([without, without]))[0], option_scores(loaded.model, alone)[0]
    )


def test_a_tokenizer_without_an_end_token_ends_answers_by_the_delimiter(backbone):
    loaded = backbone("gemma")
    assert loaded.tokenizer.eos_token_id is None
    batch = loaded.encode(prompts(options=PREFIXES)[:1])
    last = [row[mask][-1] for row, mask in zip(batch.option_ids[0], batch.option_mask[0], strict=True)]
    assert loaded.tokenizer.convert_ids_to_tokens(last) == ["."] * 3


def test_an_option_that_begins_another_can_win_and_lose(backbone):
    """Without an end the first never scores less, whatever the weights."""
    loaded = backbone("gemma")
    loaded.model.requires_grad_(True)
    batch = loaded.encode(prompts(options=("dry", "dry damp")))
    for wanted in (0, 1):
        optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=0.02)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(option_scores(loaded.model, batch), torch.tensor([wanted, wanted])).backward()
            optimizer.step()
        assert option_scores(loaded.model, batch).argmax(-1).tolist() == [wanted, wanted]


def test_options_that_stay_alike_with_an_end_are_refused(backbone):
    with pytest.raises(ValueError, match=r"no option may begin another one .* 'dry' begins 'dry \. c1'"):
        backbone("gemma").encode(prompts(options=("dry", "dry . c1")))


def test_length_normalised_scores_are_divided_by_characters(backbone):
    loaded = backbone("gpt2")
    plain = prompts()
    few = Prompt("grip", TEXTS[0], None, ("dry", "damp"), 1)
    asked = [*plain, few]
    scores = option_scores(loaded.model, loaded.encode(asked))
    normalised = option_scores(loaded.model, loaded.encode([replace(one, length_normalised=True) for one in asked]))
    torch.testing.assert_close(normalised[:2], scores[:2] / torch.tensor([3.0, 4.0, 5.0]))
    assert normalised[2, 2] == -torch.inf


def test_an_end_token_that_the_model_was_never_given_is_not_used(backbone):
    loaded = backbone("gemma")
    loaded.tokenizer.add_special_tokens({"eos_token": "<end>"})  # as some families bring one
    assert loaded.tokenizer.eos_token_id >= loaded.model.config.vocab_size
    assert option_scores(loaded.model, loaded.encode(prompts(options=PREFIXES))).isfinite().all()


def test_what_a_tokenizer_appends_to_every_text_is_left_out(backbone):
    plain, appending = backbone("gemma"), backbone("gemma")
    appending.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A <unk> <unk>", special_tokens=[("<s>", 1), ("<unk>", 0)]
    )
    assert appending.tokenizer("dry")["input_ids"][-2:] == [0, 0]
    for options in (("dry", "damp", "slick"), PREFIXES):
        asked = prompts(options=options)
        scores = [option_scores(one.model, one.encode(asked)) for one in (plain, appending)]
        assert torch.equal(*scores)
