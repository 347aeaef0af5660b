"""Which linear layers are adapted, as one regular expression that PEFT resolves to the same layers."""

import re
from collections import Counter
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from contextlora.adapters.config import LANGUAGE_LINEAR, AdapterError, is_read_as_experts, is_refused
from contextlora.errors import first_line, listed
from contextlora.limits import shown


def resolve_targets(model: PreTrainedModel, target_modules: str) -> str:
    """The regular expression for `AdapterConfig.target_modules`, checked to match linear layers only.

    Raises:
        AdapterError: if it is malformed, matches nothing or matches another kind of module.
    """
    pattern = _language_linear(model) if target_modules == LANGUAGE_LINEAR else target_modules
    try:
        matched = {name: module for name, module in model.named_modules() if name and re.fullmatch(pattern, name)}
    except re.error as error:
        raise AdapterError(
            f"model.target_modules is no regular expression ({first_line(error)}): {shown(pattern)}; mend it"
        ) from None
    if not matched:
        names = [name for name, module in model.named_modules() if _is_linear(module)]
        raise AdapterError(
            f"model.target_modules={shown(pattern)} matches no module; linear layers are {listed(names)}; match whole "
            "names"
        )
    for name, module in matched.items():
        if not _is_linear(module):
            kind = type(module).__name__
            raise AdapterError(
                f"model.target_modules={shown(pattern)} matches {name} ({kind}): match linear layers only"
            )
        if is_refused(model, name):
            raise AdapterError(
                f"model.target_modules={shown(pattern)} matches {name}, which PEFT adapts in no "
                f"{type(model).__name__}; leave it out of the pattern"
            )
    _refuse_shared(model, matched, pattern)
    return pattern


def _refuse_shared(model: PreTrainedModel, matched: Mapping[str, nn.Module], pattern: str) -> None:
    """Merging adds to a weight: where another module has the same one, such as the embeddings, it would change too."""
    users = Counter(id(weight) for module in model.modules() if (weight := getattr(module, "weight", None)) is not None)
    for name, module in matched.items():
        if users[id(module.weight)] > 1:
            raise AdapterError(
                f"model.target_modules={shown(pattern)} matches {name}, whose weight is tied to another module's: an "
                "exported adapter could not be merged; leave it out of the pattern"
            )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _language_linear(model: PreTrainedModel) -> str:
    """Every linear layer in the transformer blocks of the language model: no vision tower, projector or head."""
    blocks = decoder_blocks(model)
    path = next(name for name, module in model.named_modules() if module is blocks)
    # Of all blocks, as those of hybrid models differ; by names below a block, one pattern does for every number.
    linears = [name for block in blocks for name, module in block.named_modules() if _is_linear(module)]
    linears = [name for name in linears if not is_refused(model, name) and not is_read_as_experts(model, name)]
    choices = "|".join(re.escape(name) for name in dict.fromkeys(linears))
    return rf"{re.escape(path)}\.\d+\.({choices})"


def experts_left_out(model: PreTrainedModel) -> int:
    """Numbers in the experts' weights, which families keep in one tensor a block, outside of any linear layer."""
    return sum(p.numel() for name, p in model.named_parameters() if p.dim() == 3 and ".experts." in name)


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of the language model.

    Raises:
        AdapterError: it has no list of them.
    """
    stacks = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    if not stacks:
        raise AdapterError(
            f"{type(model).__name__} has no list of transformer blocks: set model.target_modules to a regex"
        )
    # Gemma 3n keeps a list of projections beside its blocks.
    return max(stacks, key=len)


def module_names(model: PreTrainedModel, pattern: str) -> list[str] | str:
    """What PEFT and others take for the layers that a pattern matches: their last names where these name no others.

    Some readers, such as SGLang, take a list of names and refuse a regular expression.

    Args:
        model: whose layers, before or after they are adapted.
        pattern: of `resolve_targets`.

    Returns:
        The list, or the pattern where a layer that is not adapted has one of the names, and in mixtures of experts: of
        these PEFT takes some names for the experts' own weights.
    """
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return pattern
    modules = [name for name, _ in model.named_modules() if name]
    matched = {name for name in modules if re.fullmatch(pattern, name)}
    last = {name.rsplit(".", 1)[-1] for name in matched}
    return sorted(last) if all(name in matched for name in modules if name.rsplit(".", 1)[-1] in last) else pattern
