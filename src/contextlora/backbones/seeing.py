"""What a model's processor makes of images, and where it puts it in a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from contextlora.backbones.faults import BackboneError, quiet
from contextlora.backbones.load import Backbone
from contextlora.errors import first_line, is_out_of_memory, tail
from contextlora.tasks.faults import TaskSetError
from contextlora.tasks.images import read_image

_IMAGE_CACHE_BYTES = 1 << 30  # beyond it, images are processed again each time


@dataclass(frozen=True)
class SeenImage:
    """What the processor makes of one image: ids that stand for it in the prompt and tensors for the vision tower.

    `per_token` holds further features of these ids (such as token types), each as long as `ids`.
    """

    ids: list[int]
    per_token: dict[str, list[int]]
    features: dict[str, torch.Tensor]


def seen_image(backbone: Backbone, path: Path) -> SeenImage:
    """Opens and processes an image, once."""
    cache = backbone.encodings
    if path in cache.images:
        return cache.images[path]
    try:
        image = read_image(path)
    except TaskSetError as error:
        raise BackboneError(f"image {tail(path)} {error}") from error
    # The image token alone: what comes back is what it becomes within a whole prompt.
    try:
        with quiet():
            made = _processed(backbone, backbone.image_token, image)
    except Exception as error:  # Qwen's takes no picture that is 200 times as long as wide; a damaged one takes none
        if is_out_of_memory(error):
            raise
        raise BackboneError(
            f"model {tail(backbone.name)} takes no image {tail(path)} of {image.width} x {image.height} pixels: "
            f"{first_line(error)}; change the image, or mend the model's processor"
        ) from error
    shape = made["input_ids"].shape
    per_token = {
        name: made[name][0].tolist()
        for name in made
        if made[name].shape == shape and name not in ("input_ids", "attention_mask", "labels")
    }
    # The vision tower's first layer refuses pixels of another dtype than its weights.
    dtype = backbone.model.dtype
    others = {name: made[name] for name in made if made[name].shape != shape}
    features = {name: one.to(dtype) if one.is_floating_point() else one for name, one in others.items()}
    ids = made["input_ids"][0].tolist()
    if end := prompt_end(backbone):
        behind = len(backbone.tokenizer(end, add_special_tokens=False)["input_ids"])
        ids, per_token = ids[:-behind], {name: values[:-behind] for name, values in per_token.items()}
    seen = SeenImage(ids, per_token, features)
    size = sum(tensor.nbytes for tensor in features.values())
    if cache.image_bytes + size <= _IMAGE_CACHE_BYTES:
        cache.image_bytes += size
        cache.images[path] = seen
    return seen


def prompt_end(backbone: Backbone) -> str:
    """What the processor puts behind the text of every prompt with an image, such as PaliGemma's line break."""
    if backbone.encodings.prompt_end is None:
        image = Image.new("RGB", (64, 64))
        texts = (backbone.image_token, f"{backbone.image_token} a")
        try:
            with quiet():
                bare, longer = (_processed(backbone, text, image)["input_ids"][0].tolist() for text in texts)
        except Exception as error:  # one that takes no image at all says so of the first one
            if is_out_of_memory(error):
                raise
            return ""
        same = [one == other for one, other in zip(reversed(bare), reversed(longer), strict=False)]
        number = [*same, False].index(False)
        backbone.encodings.prompt_end = backbone.tokenizer.decode(bare[len(bare) - number :])
    return backbone.encodings.prompt_end


def _processed(backbone: Backbone, text: str, image: Image.Image) -> Mapping[str, torch.Tensor]:
    return backbone.processor(text=[text], images=[image], add_special_tokens=False, return_tensors="pt")


def joined_features(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Features of all images; those of smaller ones, or of fewer tiles, get zeros behind, as processors pad them."""
    sizes = [max(size) for size in zip(*(one.shape[1:] for one in features), strict=True)]
    padding = [[(0, size - had) for size, had in zip(sizes, one.shape[1:], strict=True)] for one in features]
    flat = [[number for pair in reversed(pairs) for number in pair] for pairs in padding]
    return torch.cat(
        [F.pad(one, amounts) if any(amounts) else one for one, amounts in zip(features, flat, strict=True)]
    )
