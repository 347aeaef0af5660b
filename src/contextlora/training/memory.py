"""Estimated memory of training, for the dry run."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from contextlora.gear.planning.model_size import activation_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training needs beyond Python and its libraries.

    Attributes:
        weights_bytes: the frozen base.
        adapter_bytes: all slices and gates, and the best ones so far.
        optimizer_bytes: gradients and both AdamW moments of the stage that trains most.
        activations_bytes: what a forward keeps for the backward.
    """

    weights_bytes: int
    adapter_bytes: int
    optimizer_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of them; libraries and the interpreter come on top."""
        return self.weights_bytes + self.adapter_bytes + self.optimizer_bytes + self.activations_bytes

    def __str__(self) -> str:
        return (
            f"memory: about {_mib(self.total_bytes)} beyond Python and its libraries (base {_mib(self.weights_bytes)}, "
            f"LoRA {_mib(self.adapter_bytes)}, gradients and optimizer {_mib(self.optimizer_bytes)}, "
            f"activations {_mib(self.activations_bytes)})"
        )


def estimate_memory(
    model: PreTrainedModel, num_adapter: int, num_trainable: int, batch_size: int, num_tokens: int
) -> MemoryEstimate:
    """Estimates the peak of a training step.

    Args:
        model: the base, in its own dtype; its buffers are not counted.
        num_adapter, num_trainable: numbers in all slices, and in the leaves of the largest stage; float32 each.
        batch_size, num_tokens: of a batch, num_tokens with padding and image patches.
    """
    # Of the language model alone: below the first slice that trains, nothing is kept for a backward.
    text = model.config.get_text_config()
    kept = activation_bytes(num_tokens, text.hidden_size, text.num_attention_heads, model.dtype.itemsize)
    return MemoryEstimate(
        # PEFT's layers hold the base's weights too, so each is counted once by its storage.
        weights_bytes=sum({p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}.values()),
        adapter_bytes=2 * 4 * num_adapter,
        optimizer_bytes=3 * 4 * num_trainable,
        activations_bytes=int(kept * text.num_hidden_layers * batch_size),
    )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
