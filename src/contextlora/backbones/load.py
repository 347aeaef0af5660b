"""One way to load every backbone: a folder or hub name in Hugging Face form, text-only or image-and-text."""

import os
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from contextlora.backbones.faults import BackboneError, brings_code, errors_of, warn_of_code
from contextlora.backbones.fingerprint import fingerprint, part_fingerprints
from contextlora.backbones.published import MODELS_DIR, PUBLISHED
from contextlora.backbones.quantization import few_bits
from contextlora.backbones.vocabulary import reads_sentences
from contextlora.errors import first_line, is_out_of_memory, tail
from contextlora.limits import shown
from contextlora.tasks.prompts import Prompt

if TYPE_CHECKING:
    from contextlora.backbones.encoding import OptionBatch

BUNDLED = Path(__file__).parent / "bundled"
_AutoClass = type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Encodings:
    """What `contextlora.backbones.encoding` has prepared so far: prompts by their text and options, images by path."""

    prompts: dict[Hashable, Any] = field(default_factory=dict)
    images: dict[Path, Any] = field(default_factory=dict)
    image_bytes: int = 0
    prompt_end: str | None = None


@dataclass
class Backbone:
    """A model with what is needed to feed it.

    Attributes:
        model: in eval mode, its weights untouched.
        tokenizer: the processor's own where there is one.
        processor: of image-and-text models, else None.
        image_token: placeholder of an image in the text, None for text-only models.
        is_multimodal, reads_sentences: whether it takes images, and knows the words of prompts in sentences.
        name: the folder or hub name it was asked for by.
        fingerprint: tells backbones apart, see `fingerprint`.
        part_fingerprints: tell their parts apart, see `part_fingerprints`.
        chat_template: whether prompts are wrapped in the tokenizer's chat template, as the user's turn.
        packs_options: whether options of several tokens are read in the prompt's own forward, see `packing`.
        continues: whether a second forward can read options behind the prompt's keys and values, see `continuing`.
        window: the most columns that every layer's attention sees.
        encodings: cache of prepared prompts and images.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    processor: ProcessorMixin | None
    image_token: str | None
    is_multimodal: bool
    name: str
    fingerprint: str
    part_fingerprints: dict[str, str]
    reads_sentences: bool = False
    chat_template: bool = False
    packs_options: bool = False
    continues: bool = True
    window: int = sys.maxsize
    encodings: Encodings = field(default_factory=Encodings, repr=False)

    def encode(self, prompts: Sequence[Prompt], rows: range | None = None) -> "OptionBatch":
        """Prompts of one task as tensors, see `contextlora.backbones.encoding.encode`."""
        from contextlora.backbones.encoding import encode  # which needs this class

        return encode(self, prompts, rows)


def load_backbone(
    path_or_name: str,
    dtype: str = "auto",
    device: str | torch.device = "cpu",
    attn_implementation: str = "eager",
    chat_template: str = "auto",
    trust_remote_code: bool = False,
    quantization: str = "none",
) -> Backbone:
    """Loads model, tokenizer and processor. Only safetensors weights and code that transformers ships are accepted.

    Args:
        path_or_name: `bundled`, a folder, or a name on the hub.
        dtype: float32, bfloat16, float16, or auto: bfloat16 where the device computes in it, else float32.
        device: where the model goes.
        attn_implementation: as in transformers; eager is fastest for short prompts on CPUs.
        chat_template: auto (used where the tokenizer has one) or off.
        trust_remote_code: also run code that comes with the checkpoint, and say so on stderr.
        quantization: none, 8bit or 4bit (NF4), by bitsandbytes; `dtype` is then that of what is computed.

    Raises:
        BackboneError: nothing loadable there, or an unknown dtype or chat_template.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise BackboneError(f"model dtype must be auto or one of {', '.join(_DTYPES)}, got {shown(dtype)}")
    if chat_template not in ("auto", "off"):
        raise BackboneError(f"model chat_template must be auto or off, got {shown(chat_template)}")
    source, trust = source_of(path_or_name), {"trust_remote_code": trust_remote_code}
    if trust_remote_code:
        warn_of_code(path_or_name)
    with errors_of(path_or_name, "config.json"):
        config = AutoConfig.from_pretrained(source, **trust)
        is_multimodal = takes_images(config)
    with errors_of(path_or_name, "processor or tokenizer"):
        processor = AutoProcessor.from_pretrained(source, **trust) if is_multimodal else None
        tokenizer = processor.tokenizer if is_multimodal else _load_tokenizer(source, **trust)
    template = getattr(processor or tokenizer, "chat_template", None) if chat_template == "auto" else None
    chosen = fastest_dtype(device) if dtype == "auto" else _DTYPES[dtype]
    bits = few_bits(quantization, chosen, device)
    with errors_of(path_or_name, "weights"):
        model = _load_model(source, auto_class(config), chosen, attn_implementation, **trust, **bits)
    return _assembled((model if bits else model.to(device)).eval(), tokenizer, processor, template, path_or_name)


def _assembled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    processor: ProcessorMixin | None,
    template: str | None,
    name: str,
) -> Backbone:
    """With what is tried out on the parts, or read off them."""
    from contextlora.backbones.continuing import ways_to_read  # which needs this module's class

    with errors_of(name, "forward"):
        packs, continues = ways_to_read(model)
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        processor=processor,
        image_token=_image_token(processor) if processor else None,
        is_multimodal=processor is not None,
        name=name,
        fingerprint=fingerprint(model),
        part_fingerprints=part_fingerprints(model, tokenizer, processor, template),
        reads_sentences=reads_sentences(tokenizer),
        chat_template=bool(template),
        packs_options=packs,
        continues=continues,
        # A layer that sees only the last so many columns would see too many through a mask of pairs.
        window=getattr(model.config.get_text_config(), "sliding_window", None) or sys.maxsize,
    )


def load_tokenizer(path_or_name: str, trust_remote_code: bool = False) -> tuple[PreTrainedTokenizerBase, bool]:
    """A model's tokenizer without its weights, and whether the model takes images; raises as `load_backbone`."""
    source, trust = source_of(path_or_name), {"trust_remote_code": trust_remote_code}
    with errors_of(path_or_name, "config.json or tokenizer"):
        return _load_tokenizer(source, **trust), takes_images(AutoConfig.from_pretrained(source, **trust))


def _load_tokenizer(source: str, **trust: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **trust)
        reason = "its vocabulary is empty"
    except Exception as error:  # tokenizers raises bare ones
        if is_out_of_memory(error) or brings_code(error):
            raise
        tokenizer, reason = None, type(error).__name__ if type(error) is not Exception else first_line(error)
    # Without files transformers makes up some families' tokenizers, which know special tokens only.
    if tokenizer is None or not tokenizer("answer : a", add_special_tokens=False)["input_ids"]:
        raise BackboneError(
            f"it has no tokenizer that can be read ({reason}); put tokenizer.json and tokenizer_config.json of the "
            "model beside its config.json"
        )
    return tokenizer


def _load_model(
    source: str,
    model_class: _AutoClass,
    dtype: torch.dtype,
    attn_implementation: str,
    trust_remote_code: bool,
    **bits: Any,
) -> PreTrainedModel:
    model, loaded = model_class.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation=attn_implementation,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # else it only says that there are some
        **bits,
    )
    if wrong := sorted(loaded["mismatched_keys"], key=str):
        name, found, expected = wrong[0]
        raise BackboneError(
            f"{len(wrong)} of its weights must have other shapes by its config.json: {name} has {list(found)}, "
            f"{list(expected)} is wanted; give the config.json of these weights"
        )
    # transformers fills them with random numbers and only warns.
    if lacking := sorted(loaded["missing_keys"]):
        raise BackboneError(
            f"it lacks {len(lacking)} weights of {type(model).__name__}, {lacking[0]} among them; "
            "give a checkpoint with its language-model head"
        )
    for name, weight in model.named_parameters():
        if not _is_finite(weight):
            raise BackboneError(
                f"its weights must be finite, but {name} holds nan or infinity as {str(dtype).removeprefix('torch.')}; "
                "give another checkpoint, or set model.dtype=float32 if this one overflows"
            )
    return model


def _is_finite(weight: torch.Tensor) -> bool:
    if not weight.numel() or weight.dtype not in _DTYPES.values():  # quantised ones
        return True
    # Extremes need no memory, where a mask would take a byte for each number; nan is passed on to both.
    return bool(torch.stack(torch.aminmax(weight.detach())).isfinite().all())


def fastest_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the device has instructions for it (CUDA, or a CPU with AMX or AVX512-BF16), else float32."""
    if torch.device(device).type == "cuda":
        # torch says yes by default also where it would only emulate it.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # What torch may use, which the environment can lower, and then what the processor has.
    usable = torch.device(device).type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"
    capabilities = torch.cpu.get_capabilities() if usable else {}
    has_bf16 = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if has_bf16 else torch.float32


def source_of(path_or_name: str) -> str:
    """The folder that a backbone is loaded from, in full, or its hub id as it is."""
    folder = BUNDLED if path_or_name == "bundled" else Path(os.path.expanduser(path_or_name))
    if not os.path.isdir(folder):
        # A hub id is owner/name. Where a folder of the owner's name lies here, a misspelt path is likelier, and asking
        # the hub would hide it.
        looks_like_path = folder.is_absolute() or path_or_name.startswith((".", "~")) or path_or_name.count("/") != 1
        if looks_like_path or os.path.isdir(Path(path_or_name).parent):
            published = folder.parent == MODELS_DIR and folder.name in PUBLISHED
            give = (
                f"fetch it with: make model NAME={folder.name}" if published else "give a folder, a hub id or 'bundled'"
            )
            raise BackboneError(f"model folder {tail(folder)} does not exist; {give}")
        return path_or_name
    if not (folder / "config.json").is_file():
        raise BackboneError(f"model folder {tail(folder)} holds no config.json; give a checkpoint in Hugging Face form")
    odd = [path for path in folder.iterdir() if path.exists() and not (path.is_file() or path.is_dir())]
    if odd:
        raise BackboneError(f"{tail(odd[0])} must be an ordinary file, is a pipe or a device; remove it")
    # Pickled weights can run code when they are read.
    if not any(folder.glob("*.safetensors")):
        raise BackboneError(
            f"model folder {tail(folder)} holds no .safetensors weights (pickled ones are refused); "
            "save the model again with save_pretrained"
        )
    return os.path.abspath(folder)


def auto_class(config: PretrainedConfig) -> _AutoClass:
    """What builds the model of a configuration, with the head that scores tokens."""
    return AutoModelForImageTextToText if takes_images(config) else AutoModelForCausalLM


def takes_images(config: PretrainedConfig) -> bool:
    """Whether the model of a configuration takes images next to text."""
    # The mapping alone also names text-only families (mistral4) and ones without a vision tower (fuyu).
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and hasattr(config, "vision_config")


def _image_token(processor: ProcessorMixin) -> str:
    for owner in (processor, processor.tokenizer):
        if isinstance(token := getattr(owner, "image_token", None), str):
            return token
    raise BackboneError(f"{type(processor).__name__} names no image token; set taskset.image=text")
