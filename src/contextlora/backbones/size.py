"""Counts a model's parameters and what a token costs from its config.json: no weights are read, no memory is taken.

transformers builds the model on torch's meta device, where tensors have a shape and nothing else. So all that
transformers can build is counted exactly, blocks that differ and tied embeddings included; what cannot be built is
refused rather than guessed.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from contextlora.adapters.config import LANGUAGE_LINEAR, AdapterError
from contextlora.adapters.targets import decoder_blocks, resolve_targets
from contextlora.backbones.faults import brings_code, code_message, quiet, warn_of_code
from contextlora.backbones.load import auto_class, takes_images
from contextlora.errors import ConfigError, first_line, tail
from contextlora.gear.planning.model_size import BlockSize, ModelSize, VisionSize
from contextlora.limits import shown

# How configurations call the experts of a block, and those that a token goes through.
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_NUM_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")
# OPT registers what stands behind its blocks before them.
_BEHIND = re.compile(r"(final_|project_out)")
_USUAL_IMAGE_SIZE = 224  # pixels, for towers that take images of any size


def model_size(
    source: Path | PretrainedConfig, target_modules: str = LANGUAGE_LINEAR, trust_remote_code: bool = False
) -> ModelSize:
    """Counts the model of a folder with a config.json, or of a configuration.

    Args:
        source: what is counted.
        target_modules: which linear layers LoRA adapts, see `AdapterConfig`.
        trust_remote_code: also run code that lies in the folder, and say so on stderr.

    Raises:
        ConfigError: transformers cannot build it, or it is no decoder-only transformer.
        AdapterError: the target modules do not fit it.
    """
    where = type(source).__name__ if isinstance(source, PretrainedConfig) else tail(source / "config.json")
    config, model = _build(source, where, trust_remote_code)
    try:
        blocks = decoder_blocks(model)
    except AdapterError:
        blocks = None
    if not blocks or model.get_output_embeddings() is None:
        kind, lacking = type(model).__name__, "output head" if blocks else "list of transformer blocks"
        raise ConfigError(f"{where}: {kind} has no {lacking}; name a decoder-only transformer")
    return _count(model, config, blocks, target_modules, where)


def _build(
    source: Path | PretrainedConfig, where: str, trust_remote_code: bool
) -> tuple[PretrainedConfig, PreTrainedModel]:
    if trust_remote_code:
        warn_of_code(source)
    try:
        config, trust = source, {"trust_remote_code": trust_remote_code}
        with quiet(), torch.device("meta"):
            if not isinstance(source, PretrainedConfig):
                config = AutoConfig.from_pretrained(source, local_files_only=True, **trust)
            model = auto_class(config).from_config(config, attn_implementation="eager", **trust)
    except Exception as error:  # whatever the code of a family stumbles over
        if brings_code(error):
            raise ConfigError(code_message(source)) from error
        raise ConfigError(
            f"{where}: transformers cannot build a language model from it ({first_line(error, but=source)}); mend it, "
            "or name another model"
        ) from error
    return config, model


def _count(
    model: PreTrainedModel, config: PretrainedConfig, blocks: nn.ModuleList, target_modules: str, where: str
) -> ModelSize:
    text = config.get_text_config()
    prefix = next(name for name, module in model.named_modules() if module is blocks) + "."
    pattern = resolve_targets(model, target_modules)
    # d_in + d_out: what one LoRA rank adds.
    widths = {name: sum(module.weight.shape) for name, module in model.named_modules() if re.fullmatch(pattern, name)}
    attention, experts = _attention_widths(text, len(blocks), where), _Experts(text, where)
    before, behind, vision = _around_the_blocks(model, prefix)
    in_blocks = [_below(f"{prefix}{number}.", widths) for number in range(len(blocks))]
    return ModelSize(
        hidden_size=text.hidden_size,
        num_heads=text.num_attention_heads,
        blocks=tuple(
            BlockSize(
                num_parameters=sum(p.numel() for p in block.parameters()),
                active_weights=experts.active(_weights(block.named_parameters())),
                lora_width=sum(adapted.values()),
                active_lora_width=experts.active(adapted),
                attention_width=width,
            )
            for block, adapted, width in zip(blocks, in_blocks, attention, strict=True)
        ),
        parameters_before=before,
        parameters_behind=behind,
        # A tied head has no parameters of its own, but costs its products all the same.
        head_weights=model.get_output_embeddings().weight.numel(),
        outer_lora_width=sum(widths.values()) - sum(sum(adapted.values()) for adapted in in_blocks),
        vision=_vision_size(config, vision, where) if takes_images(config) else None,
    )


def _below(prefix: str, values: dict[str, int]) -> dict[str, int]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _weights(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Sizes of the parameters that inputs are multiplied by: not the biases and norms."""
    return {name: p.numel() for name, p in parameters if p.dim() > 1 and "bias" not in name}


class _Experts:
    """Which share of the weights in a mixture of experts a token uses."""

    def __init__(self, text: PretrainedConfig, where: str):
        self.where, self.total = where, _first(text, _NUM_EXPERTS)
        self.used = _first(text, _NUM_ACTIVE)

    def active(self, sizes: dict[str, int]) -> float:
        """The sum of sizes by name (in a block) with the experts' share; `experts` is what every family calls them."""
        routed = sum(size for name, size in sizes.items() if re.search(r"(^|\.)experts\.", name))
        if not routed:
            return sum(sizes.values())
        if not isinstance(self.total, int) or not isinstance(self.used, int):
            raise ConfigError(
                f"{self.where}: it must say how many experts a block has ({_NUM_EXPERTS[0]} or alike) and a "
                f"token uses ({_NUM_ACTIVE[0]} or alike), got {shown(self.total)} and {shown(self.used)}; give whole "
                "numbers, or name another model"
            )
        return sum(sizes.values()) - routed * (1 - self.used / self.total)


def _first(config: PretrainedConfig, names: Iterable[str]) -> Any:
    """The first of these settings that the configuration has."""
    return next((value for name in names if (value := getattr(config, name, None))), None)


def _attention_widths(text: PretrainedConfig, num_blocks: int, where: str) -> list[float]:
    """a d of each block; 0 where the configuration says that a block has something else than attention."""
    hidden, heads = getattr(text, "hidden_size", None), getattr(text, "num_attention_heads", None)
    if not isinstance(hidden, int) or not isinstance(heads, int):
        raise ConfigError(
            f"{where}: hidden_size and num_attention_heads must be whole numbers, got {shown(hidden)} and "
            f"{shown(heads)}; name a decoder-only transformer"
        )
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    if key_dim := getattr(text, "qk_head_dim", None):  # multi-head latent attention: values are narrower than keys
        head_dim = (key_dim + text.v_head_dim) / 2
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * num_blocks
    return [heads * head_dim if "attention" in kind and "linear" not in kind else 0 for kind in kinds]


def _around_the_blocks(model: PreTrainedModel, prefix: str) -> tuple[int, int, list[tuple[str, Tensor]]]:
    """Numbers before and behind the blocks in the language model, and the parameters of the vision tower."""
    decoder, head = prefix.rsplit(".", 2)[0] + ".", model.get_output_embeddings()
    # A head may stand outside of the decoder, as the vision tower does: told apart by identity.
    ours = {id(p) for p in head.parameters()}
    before, behind, vision, passed = 0, 0, [], False
    for name, parameter in model.named_parameters():  # tied ones come once, as embeddings
        if name.startswith(prefix):
            passed = True
        elif takes_images(model.config) and not name.startswith(decoder) and id(parameter) not in ours:
            vision.append((name, parameter))
        elif passed or _BEHIND.match(name.removeprefix(decoder)):
            behind += parameter.numel()
        else:
            before += parameter.numel()
    return before, behind, vision


def _vision_size(config: PretrainedConfig, parameters: list[tuple[str, Tensor]], where: str) -> VisionSize:
    """Each weight meets each patch once (so a class token is left out), and the patches attend to each other."""
    vision = config.vision_config
    image, patch = (
        size[0] if isinstance(size, list | tuple) else size
        for size in (getattr(vision, "image_size", None) or _USUAL_IMAGE_SIZE, getattr(vision, "patch_size", None))
    )
    depth, width = _first(vision, ("num_hidden_layers", "depth")), _first(vision, ("embed_dim", "hidden_size"))
    if not all(isinstance(value, int) for value in (image, patch, depth, width)):
        raise ConfigError(
            f"{where}: vision_config must give patch_size, number and width of the tower's blocks as whole numbers, "
            f"got {shown(patch)}, {shown(depth)} and {shown(width)}; name a model with a vision transformer, or "
            "one for text only"
        )
    patches = (image // patch) ** 2
    weights = {name: size for name, size in _weights(parameters).items() if "position" not in name}
    # What becomes one token: a patch, a square of so many by so many, or as much as the configuration says.
    merge = _first(config, ("spatial_merge_size", "scale_factor")) or getattr(vision, "spatial_merge_size", 1)
    merge /= getattr(config, "downsample_ratio", 1)
    return VisionSize(
        num_parameters=sum(parameter.numel() for _, parameter in parameters),
        # Each block's attention: 2 P^2 d for the scores, and as many for the sums of values.
        flops=2 * patches * sum(weights.values()) + 4 * patches**2 * width * depth,
        num_image_tokens=getattr(config, "mm_tokens_per_image", None) or round(patches / merge**2),
    )
