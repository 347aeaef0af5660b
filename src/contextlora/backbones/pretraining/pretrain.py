"""Pretrains the bundled backbone on generic skills (never on a task's questions) and measures them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import LlavaForConditionalGeneration

from contextlora.backbones.pretraining.architecture import build_model, make_config
from contextlora.backbones.pretraining.batches import NUM_PATCHES, PATCH_WORD_IDS, Batch, make_batch
from contextlora.backbones.pretraining.vocabulary import IMAGE, WORDS

# Beyond the seeds of training batches, see `_BatchStream`.
_SKILL_SEEDS = {"validation": 2**40, "test": 2**41}


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of one build; the defaults make the bundled checkpoint.

    Attributes:
        seed: fixes initialisation and data.
        num_steps: optimizer steps.
        num_image_rows: rows a batch that begin with an image.
        num_text_rows: rows a batch of text alone.
        length: words a row, image tokens included.
        matrix_learning_rate: peak rate of Muon, for the matrices of the transformer blocks.
        learning_rate: peak rate of AdamW, for embeddings, head, norms and biases.
        warmup_steps: linear warm-up.
        constant_share: share of the steps before the cosine decay begins.
        focus_share: share of the steps in which every row only looks things up, in plain wording.
        plain_share: share of the steps after which rows ask in all wordings and forms; until then one plain wording.
        mixing_share: length of the linear passage from each of these to the next, as a share of the steps.
    """

    seed: int = 0
    num_steps: int = 10_000
    num_image_rows: int = 24
    num_text_rows: int = 18
    length: int = 96
    matrix_learning_rate: float = 2e-3
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    constant_share: float = 0.4
    focus_share: float = 0.025
    plain_share: float = 0.12
    mixing_share: float = 0.025


class _BatchStream(Dataset):
    """Batch number -> batch, a pure function of seed and number."""

    def __init__(self, config: PretrainConfig):
        self.config = config

    def __len__(self) -> int:
        return self.config.num_steps

    def __getitem__(self, step: int) -> Batch:
        config = self.config
        return make_batch(
            config.seed * 1_000_003 + step,  # more than a build has steps: no two seeds share a batch
            num_image_rows=config.num_image_rows,
            num_text_rows=config.num_text_rows,
            length=config.length,
            focus=_falling(config.focus_share, config, step),
            plain=_falling(config.plain_share, config, step),
        )


def _falling(share: float, config: PretrainConfig, step: int) -> float:
    """1 until this share of the steps, then falling linearly to 0 within `mixing_share`."""
    return min(1.0, max(0.0, 1.0 - (step / config.num_steps - share) / config.mixing_share))


class SkillModel(nn.Module):
    """The backbone with static shapes for `torch.compile`: hidden states of image rows followed by text rows."""

    def __init__(self, model: LlavaForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, length), (image rows, 3, 64, 64) -> hidden states (rows, length, d), patches (image rows, 16, d)."""
        inner = self.model.model
        embedded = inner.language_model.embed_tokens(input_ids)
        # Without the class token, as LLaVA's strategy `default` leaves it out.
        patches = inner.multi_modal_projector(inner.vision_tower(pixels).last_hidden_state[:, 1:])
        rows = pixels.shape[0]
        # Images come first in their rows: slices of fixed size, where LLaVA looks for image tokens by a mask.
        with_image = torch.cat((patches.to(embedded.dtype), embedded[:rows, NUM_PATCHES:]), dim=1)
        embedded = torch.cat((with_image, embedded[rows:]), dim=0)
        return inner.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state, patches

    def loss(self, batch: Batch, hidden: torch.Tensor, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of the asked words, and of naming what each patch shows.

        A patch, as the language model sees it, must be nearest to the word embedding of what is drawn there: the same
        circuits then look things up in images as in texts.
        """
        asked = batch.labels >= 0
        answers = nn.functional.cross_entropy(self.model.lm_head(hidden[asked]).float(), batch.labels[asked])
        words = self.model.model.language_model.embed_tokens.weight[PATCH_WORD_IDS]
        # (image rows x 16, kinds)
        names = (patches.float() @ words.T / math.sqrt(words.shape[1])).flatten(0, 1)
        return answers, nn.functional.cross_entropy(names, batch.patch_labels.flatten())


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels -> the model's input range, as the saved image processor does (mean 0.5, deviation 0.25)."""
    return (pixels.float() / 255.0 - 0.5) / 0.25


def pretrain(config: PretrainConfig, *, num_layers: int = 6, compile_model: bool = True) -> Iterator[dict]:
    """Builds and trains a backbone.

    Yields:
        After every step a dict of `step`, `loss` (answers), `patch_loss`, `model` (float32, in training).
    """
    torch.manual_seed(config.seed)
    model, _ = build_model(make_config(num_layers))
    model.config._attn_implementation = "eager"  # twice as fast as SDPA on CPUs at these lengths
    skill_model = SkillModel(model)
    # The loss is left out: how many words are asked differs from batch to batch, each a compilation of its own.
    forward = torch.compile(skill_model, dynamic=False) if compile_model else skill_model
    optimizers = _optimizers(skill_model, config)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(config)) for optimizer in optimizers]
    loader = DataLoader(_BatchStream(config), batch_size=None, shuffle=False, num_workers=1, prefetch_factor=8)
    for step, batch in enumerate(loader):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = forward(batch.input_ids, normalise(batch.pixels))
            loss, patch_loss = skill_model.loss(batch, *outputs)
        (loss + patch_loss).backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        yield {"step": step, "loss": loss.item(), "patch_loss": patch_loss.item(), "model": model}


def _optimizers(model: nn.Module, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # Muon makes a matrix's update orthogonal: for maps between layers, not for embeddings or the head.
            embedding = "embed_tokens" in name or "position_embedding" in name
            in_block = parameter.ndim == 2 and not embedding and "lm_head" not in name
            (matrices if in_block else others).append(parameter)
    # match_rms_adamw: updates as large as AdamW's, so that both rates are of one order.
    muon = torch.optim.Muon(matrices, lr=config.matrix_learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def _rate(config: PretrainConfig):
    """Linear warm-up, constant, cosine to zero."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        decay_start = config.constant_share * config.num_steps
        if step < decay_start:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - decay_start) / (config.num_steps - decay_start))))

    return factor


@torch.inference_mode()
def skill_test(
    model: LlavaForConditionalGeneration, *, split: str = "test", num_batches: int = 100, held_out: bool = True
) -> dict[str, dict]:
    """Accuracy per skill and form on scenes and texts never trained on; greedy over the whole vocabulary.

    Args:
        model: the backbone.
        split: "validation" or "test": two fixed sets of scenes and texts.
        num_batches: 42-row batches, about 170 questions each.
        held_out: ask in wordings that never occur in pretraining.

    Returns:
        skill -> {"accuracy", "n", "open", "words", "letters"}; "options_words" and
        "options_letters" pool every question with options.
    """
    skill_model = SkillModel(model)
    tallies: dict[str, dict[str, list[bool]]] = {}
    image = WORDS.index(IMAGE)
    for index in range(num_batches):
        batch = make_batch(
            _SKILL_SEEDS[split] + index, num_image_rows=24, num_text_rows=18, length=96, held_out=held_out
        )
        assert (batch.input_ids[:24, :NUM_PATCHES] == image).all()
        with torch.autocast("cpu", torch.bfloat16):
            hidden, _ = skill_model(batch.input_ids, normalise(batch.pixels))
            predicted = model.lm_head(hidden).argmax(-1)
        for row, position, skill, form in batch.asked:
            right = bool(predicted[row, position] == batch.labels[row, position])
            for name in (skill, *([f"options_{form}"] if form != "open" else [])):
                tallies.setdefault(name, {}).setdefault(form, []).append(right)
    return {name: _summary(forms) for name, forms in sorted(tallies.items())}


def _summary(forms: dict[str, list[bool]]) -> dict:
    every = [right for rights in forms.values() for right in rights]
    means = {form: sum(rights) / len(rights) for form, rights in sorted(forms.items())}
    return {"accuracy": sum(every) / len(every), "n": len(every), **means}
