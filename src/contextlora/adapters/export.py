"""Export: the slices that a task uses, as an ordinary PEFT adapter.

    r' = number of active ranks, the same in every module
    alpha' = s r', so that PEFT's own scale alpha' / r' is s

Slicing is exact: unmodified `peft.PeftModel.from_pretrained` computes the same function, and vLLM reads the same files.
Full-size tensors would bring the masked ranks back. In the gated variant the gates are folded into B.
"""

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.pytorch_utils import Conv1D

from contextlora.adapters.config import AdapterError
from contextlora.adapters.model import AdaptedModel
from contextlora.adapters.targets import module_names
from contextlora.errors import tail
from contextlora.files import replace_folder
from contextlora.graph import SliceUse

_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


def export_adapter(
    adapted: AdaptedModel,
    task: str | None,
    use: SliceUse,
    folder: str | Path,
    base_model_name_or_path: str,
    card: str = "",
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` into `folder`.

    The folder appears complete or not at all, and replaces an earlier export.

    Args:
        adapted: the trained model.
        task: whose gates are folded in; None does for the ungated variant.
        use: the slices to export.
        folder: where to, usually <run>/adapters/<task>.
        base_model_name_or_path: what the adapter's readers load as its base.
        card: text of a README.md, such as the Hugging Face hub shows; empty writes none.

    Raises:
        AdapterError: the layers weigh slices by a router, which no ordinary LoRA does; or `folder` exists and holds
            something else than an adapter.
    """
    if any(layer.lora_router is not None for layer in adapted.layers().values()):
        raise AdapterError("slices that a router weighs token by token are no ordinary LoRA: use the model itself")
    folder = Path(folder)
    # What lies there is deleted below: a mistaken path must not cost more than an export.
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= _FILES):
        raise AdapterError(f"{tail(folder)} exists and is no exported adapter: choose another folder")
    tensors = {}
    for module, (A, B) in adapted.composed(use, task).items():
        # safetensors takes contiguous tensors only.
        tensors[f"base_model.model.{module}.lora_A.weight"] = A.cpu().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = B.cpu().contiguous()
    config = _peft_config(adapted, use, base_model_name_or_path)

    with replace_folder(folder) as new:
        config.save_pretrained(new)
        save_file(tensors, new / "adapter_model.safetensors", metadata={"format": "pt"})
        if card:
            (new / "README.md").write_text(card, encoding="utf-8")


def write_merged(
    base: PreTrainedModel,
    reader: PreTrainedTokenizerBase | ProcessorMixin,
    adapter: str | Path,
    folder: str | Path,
    dtype: torch.dtype,
    card: str,
) -> None:
    """Writes a checkpoint in Hugging Face form whose weights hold an exported adapter, as PEFT merges it.

    The folder appears complete or not at all, and replaces what is there.

    Args:
        base: the adapter's, in float32, by which the sums are rounded once; its weights are changed.
        reader: of the prompts, which is written too.
        adapter: folder of `export_adapter`.
        folder: where to.
        dtype: of the weights that are written.
        card: text of a README.md.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, of a name in transformers
        merged = PeftModel.from_pretrained(base, adapter, torch_device="cpu").merge_and_unload().to(dtype)
    with replace_folder(Path(folder)) as new:
        merged.save_pretrained(new)
        reader.save_pretrained(new)
        (new / "README.md").write_text(card, encoding="utf-8")


def _peft_config(adapted: AdaptedModel, use: SliceUse, base_model_name_or_path: str) -> LoraConfig:
    rank = sum(adapted.partition.ranks[name] for name in use.active)
    alpha = adapted.config.scale * rank
    return LoraConfig(
        base_model_name_or_path=base_model_name_or_path,
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=rank,
        # PEFT's field is an integer; s r' need not be one.
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
        lora_dropout=adapted.config.dropout,
        target_modules=module_names(adapted.model, adapted.target_modules),
        # PEFT must know that Conv1D's weights lie transposed, to merge into them.
        fan_in_fan_out=any(isinstance(layer.base_layer, Conv1D) for layer in adapted.layers().values()),
    )
