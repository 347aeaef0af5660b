"""Builds the bundled backbone: pretrain from scratch, measure on held-out wordings, save in Hugging Face form.

make backbone                      # one seed, replaces nothing: writes to runs/backbone/
make backbone ARGS="seeds=0,1,2"   # several seeds, the best on the validation skill test is kept
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from contextlora.backbones.pretrain import PretrainConfig, pretrain, skill_test
from contextlora.backbones.vocabulary import END, IMAGE, PAD, UNKNOWN, WORDS
from contextlora.tasks.renderers import CELL, IMAGE_SIZE

# The floor of each skill on the held-out test, in the wordings of `wordings.HELD_OUT`.
SKILL_FLOORS = {
    "name": 0.98,
    "locate": 0.98,
    "count": 0.98,
    "read": 0.98,
    "compare": 0.98,
    "lookup": 0.97,
    "rule": 0.97,
    "options_words": 0.98,
}


def build_backbone(
    folder: Path,
    config: PretrainConfig,
    *,
    seeds: Sequence[int] = (0,),
    progress: Callable[[str], None] = print,
) -> dict:
    """Trains one backbone per seed, keeps the best on the validation skill test and saves it.

    Args:
        folder: where the checkpoint goes; replaced only once the new one is whole.
        config: training settings, its seed replaced by each of `seeds`.
        seeds: seeds to try.
        progress: receives one line every 100 steps and per finished seed.

    Returns:
        The content of the checkpoint's `skills.json`: settings, duration in seconds, and the held-out test per skill.
    """
    best_margin, best = -1.0, None
    for seed in seeds:
        start = time.perf_counter()
        model = _train(replace(config, seed=seed), progress)
        margin = _margin(skill_test(model, split="validation"))
        progress(f"seed {seed}: smallest margin over a skill's floor on validation {margin:+.3f}")
        if best is None or margin > best_margin:
            best_margin, best = margin, (model, seed, time.perf_counter() - start)
    model, seed, seconds = best
    card = {
        "config": asdict(replace(config, seed=seed)),
        "seeds_tried": list(seeds),
        "train_seconds": round(seconds),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held_out_skills": skill_test(model, split="test"),
    }
    save_backbone(model, folder, card)
    return card


def save_backbone(model: LlavaForConditionalGeneration, folder: Path, card: dict) -> None:
    """Writes model (float16 safetensors), processor and `skills.json`; the folder appears whole or not at all."""
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(torch.float16).save_pretrained(partial)
    make_processor().save_pretrained(partial)
    (partial / "skills.json").write_text(json.dumps(card, indent=1) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


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
    images = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return LlavaProcessor(
        images,
        fast,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
    )


def _train(config: PretrainConfig, progress: Callable[[str], None]) -> LlavaForConditionalGeneration:
    start, losses = time.perf_counter(), []
    for state in pretrain(config):
        losses.append(state["loss"])
        if len(losses) % 100 == 0:
            recent = sum(losses[-100:]) / 100
            elapsed = time.perf_counter() - start
            left = elapsed / len(losses) * (config.num_steps - len(losses))
            progress(
                f"seed {config.seed} step {len(losses)}/{config.num_steps} loss {recent:.3f} {left / 60:.0f} min left"
            )
    return state["model"].eval()


def _margin(skills: dict[str, dict]) -> float:
    return min(skills[name]["accuracy"] - floor for name, floor in SKILL_FLOORS.items())
