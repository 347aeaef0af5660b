"""Prompts that cannot become tensors are refused by name."""

import pytest
from PIL import Image

from contextlora.backbones.load import BackboneError
from contextlora.tasks.prompts import Prompt


def test_an_image_that_the_processor_refuses_is_named(backbone, tmp_path, monkeypatch):
    Image.new("RGB", (300, 1)).save(tmp_path / "thin.png")
    loaded = backbone("llava")

    def refuse(*_, **__):
        raise ValueError("absolute aspect ratio must be smaller than 200, got 300.0")

    monkeypatch.setattr(type(loaded.processor.image_processor), "preprocess", refuse)
    with pytest.raises(BackboneError, match=r"takes no image .*thin.png of 300 x 1 pixels: absolute aspect ratio"):
        loaded.encode([Prompt("grip", "<image> ? answer :", tmp_path / "thin.png", ("dry", "damp"), 0)])
