"""AdaptedModel: a Hugging Face model with one LoRA cut into rank slices, and the stages that train them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from contextlora.adapters.config import AdapterConfig
from contextlora.graph import RankPartition, SliceUse


class AdaptedModel(nn.Module):
    """A frozen Hugging Face model whose linear layers carry the slices of one LoRA.

    Args:
        model: the base; its linear layers are replaced in place and all its parameters frozen.
        partition: slice -> ranks.
        config: what all slices share.
        edges: (prerequisite slice, task) pairs that get a gate in every layer when `config.gated`; see
            `TrainingPlan.edges`.

    Attributes:
        model: the model with its adapted layers.
        target_modules: the regular expression that PEFT resolves to the adapted layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        partition: RankPartition,
        config: AdapterConfig,
        edges: Sequence[tuple[str, str]] = (),
    ):
        super().__init__()
        raise NotImplementedError

    def forward(self, *args, **kwargs):
        """The model's own forward, with the slices in force (`active`)."""
        raise NotImplementedError

    @contextmanager
    def active(self, use: SliceUse | None, task: str | None = None) -> Iterator[None]:
        """Puts the slices of `use` in force for the forwards inside; None, as outside of any such context: the base alone.

        `task` says whose gates apply. Gradients reach the leaves if `task` is in the stage with this very use;
        otherwise the slices' current values are used as constants. With activation checkpointing the backward repeats
        forwards, so it must run inside too.
        """
        raise NotImplementedError

    def begin_stage(self, uses: Mapping[str, SliceUse], state: dict | None = None) -> None:
        """Makes leaves of what trains in a stage of these tasks; make a new optimizer from `parameter_groups` after it.

        Args:
            uses: task -> use, for the tasks that train together.
            state: `stage_state()` of an interrupted run, so that the same ranks stay frozen.
        """
        raise NotImplementedError

    def end_stage(self) -> None:
        """Writes the leaves back into their slices and drops them."""
        raise NotImplementedError

    def stage_state(self) -> dict[str, dict[str, list[int]]]:
        """module -> prerequisite slice -> its ranks, first to be frozen first; plain lists. Empty outside of a stage."""
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The leaves of the stage under "own", "open" (of prerequisites) and "gate"; groups without a leaf are absent."""
        raise NotImplementedError

    def num_trainable(self, uses: Mapping[str, SliceUse]) -> int:
        """How many numbers a stage with these uses trains."""
        raise NotImplementedError

    def num_parameters(self) -> int:
        """How many numbers all slices and gates hold together."""
        raise NotImplementedError

    def adapter_state(self) -> dict[str, Tensor]:
        """Current values of every slice and gate, as float32 clones on the CPU.

        Names: "<module>.lora_A.<slice>" (r, d_in), "<module>.lora_B.<slice>" (d_out, r), "<module>.lora_gate.<slice>-><task>" ().
        """
        raise NotImplementedError

    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes the values over, in mid-stage also into the leaves (in place: an optimizer keeps its parameters).

        Raises:
            AdapterError: for missing, foreign or mis-shaped tensors, before anything is changed.
        """
        raise NotImplementedError

    def rank_norms(self, name: str) -> dict[str, Tensor]:
        """module -> ||B[:, i]|| ||A[i, :]|| of each rank i of slice `name`, (r,)."""
        raise NotImplementedError
