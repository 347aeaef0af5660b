"""Prompts that cannot become tensors are refused by name."""

import pytest
from PIL import Image
from tokenizers import processors

from contextlora.backbones.errors import BackboneError
from contextlora.tasks.prompts import Prompt


def test_an_image_that_the_processor_refuses_is_named(backbone, tmp_path, monkeypatch):
    Image.new("RGB", (300, 1)).save(tmp_path / "thin.png")
    loaded = backbone("llava")

    def refuse(*_, **__):
        raise ValueError("absolute aspect ratio must be smaller than 200, got 300.0")

    monkeypatch.setattr(type(loaded.processor.image_processor), "preprocess", refuse)
    with pytest.raises(BackboneError, match=r"takes no image .*thin.png of 300 x 1 pixels: absolute aspect ratio"):
        loaded.encode([Prompt("grip", "<image> ? answer :", tmp_path / "thin.png", ("dry", "damp"), 0)])


def test_a_tokenizer_that_ends_every_text_is_refused_with_what_helps(backbone, monkeypatch):
    loaded = backbone("gemma")
    end = processors.TemplateProcessing("$A <unk>", special_tokens=[("<unk>", 0)])
    loaded.tokenizer.backend_tokenizer.post_processor = end
    monkeypatch.setattr("contextlora.backbones.encoding._num_appended", lambda _: 0)  # as where it does not show
    with pytest.raises(BackboneError, match=r"behind it; let its tokenizer_config\.json set add_eos_token=false"):
        loaded.encode([Prompt("grip", "answer :", None, ("dry", "damp"), 0)])
