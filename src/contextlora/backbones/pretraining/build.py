"""Builds the bundled backbone: pretrain from scratch, measure on held-out wordings, save in Hugging Face form."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from contextlora.backbones.pretraining.pretrain import PretrainConfig, pretrain, skill_test
from contextlora.backbones.pretraining.vocabulary import END, IMAGE, PAD, UNKNOWN, WORDS
from contextlora.files import replace_folder
from contextlora.tasks.renderers import CELL, IMAGE_SIZE

# What each skill should reach on the held-out test (scenes and wordings that never occur in pretraining).
SKILL_TARGETS = {
    "name": 0.98,
    "locate": 0.98,
    "count": 0.98,
    "read": 0.98,
    "compare": 0.98,
    "lookup": 0.97,
    "rule": 0.97,
    "options_words": 0.98,
}


def build_backbone(folder: Path, config: PretrainConfig, progress: Callable[[int, float], None]) -> dict:
    """Trains a backbone, measures it and saves it.

    Args:
        folder: where the checkpoint goes; replaced only once the new one is whole.
        config: training settings.
        progress: receives (steps done, loss) after every step.

    Returns:
        The content of the checkpoint's `skills.json`: settings, duration in seconds, and the held-out test per skill.
    """
    start = time.perf_counter()
    for state in pretrain(config):
        progress(state["step"] + 1, state["loss"])
    model = state["model"].eval()
    card = {
        "config": asdict(config),
        "train_seconds": round(time.perf_counter() - start),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "skills": {split: skill_test(model, split=split) for split in ("validation", "test")},
    }
    save_backbone(model, folder, card)
    return card


def save_backbone(model: LlavaForConditionalGeneration, folder: Path, card: dict) -> None:
    """Writes model (float16 safetensors), processor and `skills.json`; the folder appears whole or not at all."""
    with replace_folder(folder) as scratch:
        # Half the size in git; what loads it converts to bfloat16 or float32.
        model.to(torch.float16).save_pretrained(scratch)
        make_processor().save_pretrained(scratch)
        (scratch / "skills.json").write_text(json.dumps(card, indent=1) + "\n")


def make_processor() -> LlavaProcessor:
    """Word-level tokenizer (lower case, punctuation apart) and the image processor of 64 x 64 RGB images."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=512,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    # The variant that needs no torchvision; mean and deviation are those of `pretrain.normalise`.
    images = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return LlavaProcessor(
        images,
        fast,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy leaves out again
        image_token=IMAGE,
    )
