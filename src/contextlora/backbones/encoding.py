"""Turns prompts into tensors: token ids, processed images, and the ids of every option.

Letters of the shapes: B prompts, K options at most, T columns, L tokens of the longest option.

Prompts are tokenised and images processed once and then remembered by the backbone. A batch is padded on the left to
its own longest prompt, so that the answer comes right after the last column for every row:

    input_ids   pad pad  <image> <image> lane c2 ... answer :      | option_ids (K, L)   dry | damp | fair | slick
                pad <image> <image> grip c1 34 ...   answer :      |
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from contextlora.backbones.endings import ended
from contextlora.backbones.faults import BackboneError, errors_of
from contextlora.backbones.load import Backbone
from contextlora.backbones.readable import check_length, check_tokens, packs, takes_position_ids
from contextlora.backbones.seeing import SeenImage, joined_features, prompt_end, seen_image
from contextlora.errors import tail
from contextlora.tasks.faults import label, shown
from contextlora.tasks.prompts import IMAGE_PLACEHOLDER, Prompt


@dataclass(frozen=True)
class OptionBatch:
    """Encoded prompts of one task.

    Attributes:
        inputs: arguments of the model's forward; `input_ids` and `attention_mask` are (B, T), padded on the left.
        option_ids: (B, K, L) token ids of the options, 0 where there is none.
        option_mask: (B, K, L) bool, True where there is a token.
        answer: (B,) index of the right option.
        task: name of the task.
        rows: which rows of a batch of `batch_size` prompts these are.
        num_read: tokens of options that the longest row of the whole batch reads where they are packed behind the
            prompts, see `contextlora.backbones.packing`; 0 where they are not.
        own_rows: whether `inputs` have a row for every option, its prompt included, (B K, T + L - 1); see
            `contextlora.backbones.continuing`.
        option_lengths: (B, K) characters by which the options' scores are divided; None leaves them as they are.
    """

    inputs: dict[str, torch.Tensor]
    option_ids: torch.Tensor
    option_mask: torch.Tensor
    answer: torch.Tensor
    task: str
    rows: range
    batch_size: int
    num_read: int = 0
    own_rows: bool = False
    option_lengths: torch.Tensor | None = None

    def to(self, device: torch.device | str, **kwargs: Any) -> "OptionBatch":
        """The same batch on another device."""
        return replace(
            self,
            inputs={name: tensor.to(device, **kwargs) for name, tensor in self.inputs.items()},
            option_ids=self.option_ids.to(device, **kwargs),
            option_mask=self.option_mask.to(device, **kwargs),
            answer=self.answer.to(device, **kwargs),
            option_lengths=None if self.option_lengths is None else self.option_lengths.to(device, **kwargs),
        )


@dataclass(frozen=True)
class _Encoded:
    """One prompt's token ids, those of each option behind it, and which of the prompt's ids stand for the image."""

    ids: list[int]
    options: list[list[int]]
    image_start: int | None


def encode(backbone: Backbone, prompts: Sequence[Prompt], rows: range | None = None) -> OptionBatch:
    """Encodes prompts of one task.

    Args:
        backbone: which reads them.
        prompts: at least one.
        rows: the prompts wanted; they are padded as in the whole batch. None wants all.

    Raises:
        BackboneError: a prompt does not fit the backbone: an image for a text-only model, more tokens than positions,
            options whose tokens are the same or cannot be told from the prompt's or from another option's.
    """
    _tokenise_new(backbone, prompts)
    encoded = [backbone.encodings.prompts[_key(prompt)] for prompt in prompts]
    # Of the whole batch, whichever rows are wanted: dropout masks go by the size of a row.
    width = max(len(row.ids) for row in encoded)
    num_options = max(len(row.options) for row in encoded)
    longest = [max(map(len, row.options)) for row in encoded]
    length = max(longest)
    check_length(backbone, [len(row.ids) for row in encoded], longest)
    rows_width = max(len(row.ids) + most - 1 for row, most in zip(encoded, longest, strict=True))
    # An option's last token is predicted, never read.
    num_read = max(sum(len(option) - 1 for option in row.options) for row in encoded)
    batch_size, rows = len(prompts), range(len(prompts)) if rows is None else rows
    prompts, encoded = prompts[rows.start : rows.stop], encoded[rows.start : rows.stop]
    images = [seen_image(backbone, prompt.image_path) if prompt.image_path else None for prompt in prompts]
    # One tensor of nested lists: a tensor for each row takes longer than all else that a batch needs.
    options = [_filled(row.options, num_options) for row in encoded]
    option_ids = torch.tensor([[ids + [0] * (length - len(ids)) for ids in row] for row in options])
    lengths = torch.tensor([[len(ids) for ids in row] for row in options])
    option_mask = torch.arange(length) < lengths[..., None]
    inputs = _pad_prompts(backbone, encoded, images, width)
    num_read = num_read if packs(backbone, inputs, width + num_read) else 0
    own_rows = length > 1 and not num_read and not backbone.continues
    if own_rows:
        # An option's last token is predicted, never read.
        encoded = [replace(row, ids=row.ids + ids[:-1]) for row in encoded for ids in _filled(row.options, num_options)]
        images = [image for image in images for _ in range(num_options)]
        inputs = _pad_prompts(backbone, encoded, images, rows_width)
    answer = torch.tensor([prompt.answer for prompt in prompts])
    characters = None
    if prompts[0].length_normalised:
        words = [[len(word) for word in prompt.continuations] for prompt in prompts]
        # 1, not 0, where there is no option: -inf / 0 would be no number.
        characters = torch.tensor([row + [1] * (num_options - len(row)) for row in words])
    return OptionBatch(
        inputs, option_ids, option_mask, answer, prompts[0].task, rows, batch_size, num_read, own_rows, characters
    )


def _filled(options: list[list[int]], number: int) -> list[list[int]]:
    return options + [[]] * (number - len(options))


def _key(prompt: Prompt) -> tuple[str, Path | None, tuple[str, ...]]:
    return prompt.text, prompt.image_path, prompt.continuations


def _tokenise_new(backbone: Backbone, prompts: Sequence[Prompt]) -> None:
    """Tokenises, in one call, the prompts that the backbone has not met yet."""
    known = backbone.encodings.prompts
    new = list({_key(prompt): prompt for prompt in prompts if _key(prompt) not in known}.values())
    if not new:
        return
    texts = []
    for prompt in new:
        text = _model_text(backbone, prompt)
        # Prompts end without a space; a chat template may bring white space of its own.
        separator = "" if text[-1:].isspace() else " "
        texts += [text, *(text + separator + option for option in prompt.continuations)]
    # A chat template writes the special tokens itself.
    special = not backbone.chat_template
    appended = _num_appended(backbone) if special else 0
    # Not verbose: too long a prompt is refused by name where its length is checked.
    with errors_of(backbone.name, "tokenizer"):
        rows = backbone.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
    check_tokens(backbone, rows)
    ids = iter([row[: len(row) - appended] for row in rows])
    for prompt in new:
        prompt_ids = list(next(ids))
        if not prompt_ids:
            part = "chat template" if backbone.chat_template else "tokenizer"
            raise BackboneError(f"the {part} of model {backbone.name} makes nothing of a prompt; mend or replace it")
        options = [_continuation(backbone, prompt, word, prompt_ids, next(ids)) for word in prompt.continuations]
        if len({tuple(option) for option in options}) < len(options):
            raise BackboneError(
                f"the tokenizer of model {tail(backbone.name)} gives the same tokens to different options of "
                f"{shown(prompt.continuations)} (task {label(prompt.task)}): it lacks these words; take "
                "MODEL=smollm2-135m, rename them or set taskset.answer_format=letter"
            )
        known[_key(prompt)] = _with_image(backbone, prompt, prompt_ids, ended(backbone, prompt, options))


def _num_appended(backbone: Backbone) -> int:
    """How many tokens, such as an end token, the tokenizer puts behind any text: an option could not follow them."""
    bare = backbone.tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = backbone.tokenizer("a")["input_ids"]
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return len(whole) - starts[0] - len(bare) if bare and starts else 0


def _model_text(backbone: Backbone, prompt: Prompt) -> str:
    """The prompt with the model's own image token and, where the backbone wants it, its chat template."""
    if prompt.image_path and not backbone.is_multimodal:
        raise BackboneError(f"model {tail(backbone.name)} takes no images; set taskset.image=text or auto")
    if not backbone.chat_template:
        if not prompt.image_path:
            return prompt.text
        return prompt.text.replace(IMAGE_PLACEHOLDER, backbone.image_token) + prompt_end(backbone)
    writer = backbone.processor or backbone.tokenizer
    content: Any = prompt.text
    if backbone.is_multimodal:
        words = {"type": "text", "text": prompt.text.replace(IMAGE_PLACEHOLDER, "").strip()}
        content = [{"type": "image"}, words] if prompt.image_path else [words]
    turn = [{"role": "user", "content": content}]
    with errors_of(backbone.name, "chat template"):
        return writer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def _continuation(
    backbone: Backbone, prompt: Prompt, option: str, prompt_ids: list[int], whole: Sequence[int]
) -> list[int]:
    """Ids of the option: what follows the prompt's when both are encoded together, as in lm-evaluation-harness."""
    start = len(prompt_ids)
    if len(whole) <= start or list(whole[:start]) != prompt_ids:
        # No template changes what a tokenizer puts behind every text.
        appends = prompt_ids and prompt_ids[-1] in backbone.tokenizer.all_special_ids
        mend = "let its tokenizer_config.json set add_eos_token=false" if appends else "end the template differently"
        raise BackboneError(
            f"the tokenizer of model {tail(backbone.name)} does not keep the prompt's end {prompt.text[-20:]!r} apart "
            f"from the option {shown(option)} behind it; {mend}"
        )
    return list(whole[start:])


def _with_image(backbone: Backbone, prompt: Prompt, ids: list[int], options: list[list[int]]) -> _Encoded:
    """Puts the ids that stand for the image in the place of the one image token."""
    if not backbone.is_multimodal:
        return _Encoded(ids, options, None)
    token_id = backbone.tokenizer.convert_tokens_to_ids(backbone.image_token)
    if ids.count(token_id) != (1 if prompt.image_path else 0):
        raise BackboneError(
            f"a prompt of task {label(prompt.task)} holds {ids.count(token_id)} image tokens {backbone.image_token!r}, "
            f"but has {'one image' if prompt.image_path else 'no image'}; keep the token out of the items' words, and "
            "{image} once in the template"
        )
    if not prompt.image_path:
        return _Encoded(ids, options, None)
    start = ids.index(token_id)
    return _Encoded(ids[:start] + seen_image(backbone, prompt.image_path).ids + ids[start + 1 :], options, start)


def _pad_prompts(
    backbone: Backbone, encoded: Sequence[_Encoded], images: Sequence[SeenImage | None], width: int
) -> dict[str, torch.Tensor]:
    """Arguments of the model's forward. Padded columns are masked, so that any id will do in them."""
    padding = [[0] * (width - len(row.ids)) for row in encoded]
    inputs = {
        "input_ids": torch.tensor([pad + row.ids for pad, row in zip(padding, encoded, strict=True)]),
        "attention_mask": torch.tensor([pad + [1] * len(row.ids) for pad, row in zip(padding, encoded, strict=True)]),
    }
    for name in {name for image in images if image for name in image.per_token}:
        inputs[name] = torch.zeros_like(inputs["input_ids"])  # 0, as of text, where no image stands
        for b, (row, image) in enumerate(zip(encoded, images, strict=True)):
            if image:
                at = len(padding[b]) + row.image_start
                inputs[name][b, at : at + len(image.per_token[name])] = torch.tensor(image.per_token[name])
    if takes_position_ids(backbone):
        # Absolute positions must count from the first real token, not from the padding.
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    # Rows without an image have no features: models hand images to image tokens in order of appearance.
    shown = [image.features for image in images if image]
    for name in shown[0] if shown else ():
        inputs[name] = joined_features([features[name] for features in shown])
    return inputs
