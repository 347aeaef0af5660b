"""Adapter settings, and the one place that touches the part of PEFT's API that is still experimental."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils import transformers_weight_conversion as peft_experts
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from contextlora.errors import UserError
from contextlora.limits import check_values, shown

LANGUAGE_LINEAR = "language-linear"
FrozenPolicy = Literal["largest", "first", "random"]


class AdapterError(UserError):
    """An adapter setting, file or state that does not fit the model at hand."""


@dataclass(frozen=True)
class AdapterConfig:
    """What all slices of an adapter share, whatever their ranks.

    Attributes:
        alpha: numerator of the scale s.
        r_reference: denominator of the scale s: the rank of one task's slice, the same for all slices. Never the total
            rank or the number of active ranks, or activating a task would rescale the others.
        dropout: probability that an input of the low-rank path is dropped in training mode, as in PEFT.
        target_modules: which linear layers are adapted: "language-linear" (all in the language model's transformer
            blocks) or a regular expression that matches whole module names, as PEFT reads it.
        gated: each prerequisite's slice enters a task's forward times a learned scalar per edge and layer.
        gate_init: where these scalars start.
        frozen_policy: which ranks of a prerequisite's slice stay frozen: those with the "largest"
            ||B[:, i]|| ||A[i, :]||, the "first" ones or "random" ones.
        seed: of the slices' initial values and of the random policy.

    Raises:
        AdapterError, ConfigError: for a setting out of range, or of another type.
    """

    alpha: float = 16.0
    r_reference: int = 8
    dropout: float = 0.0
    target_modules: str = LANGUAGE_LINEAR
    gated: bool = False
    gate_init: float = 0.05
    frozen_policy: FrozenPolicy = "largest"
    seed: int = 0

    def __post_init__(self):
        check_values(self, "method.")
        if not self.alpha > 0:
            raise AdapterError(f"alpha is a number > 0, got {self.alpha!r}: set method.alpha")
        if self.r_reference < 1:
            raise AdapterError(f"the reference rank is a whole number >= 1, got {self.r_reference!r}: set method.rank")
        if not 0 <= self.dropout < 1:
            raise AdapterError(f"dropout is a probability in [0, 1), got {self.dropout!r}: set method.dropout")

    @property
    def scale(self) -> float:
        """s = alpha / r, the one factor of every slice."""
        return self.alpha / self.r_reference


def is_refused(model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT adapts no layer of this name in such a model: fused kernels of Mamba read the weight past it."""
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError:
        return True
    return False


def is_read_as_experts(model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT takes a layer's name for that of experts, whose weights no layer holds, see `replace_linears`."""
    family = peft_experts._MODEL_TO_CONVERSION_PATTERN.get(getattr(getattr(model, "config", None), "model_type", None))
    return name.rpartition(".")[2] in peft_experts._MOE_TARGET_MODULE_MAPPING.get(family, ())


def replace_linears(model: PreTrainedModel, target_modules: str, build: Callable[..., nn.Module]) -> None:
    """Lets PEFT put `build(base_layer, name)` in the place of every linear layer that `target_modules` matches.

    PEFT itself resolves the regular expression, so an exported adapter that carries the same one lands on exactly the
    same modules. `_register_custom_module` and the keyword arguments that PEFT hands to the layer are experimental,
    which is why pyproject.toml pins the range of PEFT.

    Raises:
        AdapterError: PEFT adapts other layers. In some mixtures of experts it reads gate_proj, up_proj and down_proj as
            the experts' own weights, and takes of a pattern the last part of each name only.
    """
    expected = {name for name, _ in model.named_modules() if re.fullmatch(target_modules, name)}
    built = set()

    def build_layer(base_layer: nn.Module, _adapter_name: str, *, target_name: str, **_peft_settings) -> nn.Module:
        built.add(target_name)
        return build(base_layer, target_name)

    # PEFT wants a rank; the slices that `build` makes have their own.
    config = LoraConfig(target_modules=target_modules, r=1)
    config._register_custom_module({nn.Linear: build_layer, Conv1D: build_layer})
    inject_adapter_in_model(config, model)
    config._custom_modules = None  # the model keeps `config`; without the closure it can still be pickled
    if built != expected:
        raise AdapterError(
            f"PEFT reads model.target_modules={shown(target_modules)} otherwise in {type(model).__name__}: it adapts "
            f"{len(built)} linear layers, not {len(expected)}, such as {min(built ^ expected)}; match the attention "
            "layers of all blocks, as in '.*self_attn.*_proj'"
        )
