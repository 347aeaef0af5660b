"""AdaptedModel: a Hugging Face model with one LoRA cut into rank slices, and the stages that train them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from contextlora.adapters.config import AdapterConfig, AdapterError, replace_linears
from contextlora.adapters.freezing import freezing_order
from contextlora.adapters.layer import RankSliceLinear
from contextlora.adapters.parts import TrainableParts
from contextlora.adapters.slices import ActiveUse, Leaf, RankSlices
from contextlora.adapters.state import AdapterState
from contextlora.adapters.targets import resolve_targets
from contextlora.errors import known
from contextlora.graph import RankPartition, SliceUse
from contextlora.limits import shown

Edge = tuple[str, str]  # (prerequisite slice, task)


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
        state: all values by name, with their versions.
        parts: what trains beside the slices.

    Raises:
        AdapterError: the model carries an adapter already.
    """

    def __init__(
        self, model: PreTrainedModel, partition: RankPartition, config: AdapterConfig, edges: Sequence[Edge] = ()
    ):
        super().__init__()
        if any(isinstance(layer, BaseTunerLayer) for layer in model.modules()):
            raise AdapterError(f"this {type(model).__name__} carries an adapter already: load the backbone again")
        self.model, self.partition, self.config = model.requires_grad_(False), partition, config
        self.edges = tuple(edges) if config.gated else ()
        self.target_modules = resolve_targets(model, config.target_modules)
        self._active = ActiveUse()
        self._slices: dict[str, RankSlices] = {}  # by module name; registered with the layers that hold them
        self._orders: dict[str, dict[str, list[int]]] = {}
        self._in_stage = False
        self._stage_uses: dict[str, SliceUse] = {}
        self.parts: list[TrainableParts] = []
        self.state = AdapterState(self._slices, self.parts)
        replace_linears(model, self.target_modules, self._build_layer)

    def _build_layer(self, base_layer: nn.Module, name: str) -> RankSliceLinear:
        if isinstance(base_layer, Conv1D):  # transformers' Conv1D is a linear layer with a transposed weight
            d_in, d_out = base_layer.weight.shape
        else:
            d_in, d_out = base_layer.in_features, base_layer.out_features
        device = base_layer.weight.device
        slices = RankSlices(d_in, d_out, self.partition, self.edges, self.config.scale, self._active, device)
        slices.gates.fill_(self.config.gate_init)
        for slice_name in self.partition.ranks:
            A, _ = slices.values(slice_name)  # PEFT's own start: A uniform in +-1/sqrt(d_in), B zero
            # Drawn on the CPU, whatever the device: a GPU's generator gives other numbers for the same seed.
            fresh = torch.empty(A.shape).uniform_(-(d_in**-0.5), d_in**-0.5, generator=self.generator(name, slice_name))
            A.copy_(fresh)
        self._slices[name] = slices
        return RankSliceLinear(base_layer, slices, self.config.dropout)

    def generator(self, module: str, slice_name: str) -> torch.Generator:
        """One random stream per module and slice: another task in the graph does not change a slice's start.

        `slice_name` may also be the name of an owner of parts, see `adapters.state`.
        """
        # Python's own hash of a string differs from process to process.
        digest = hashlib.sha256(f"{self.config.seed}/{module}/{slice_name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def layers(self) -> dict[str, RankSliceLinear]:
        """Module name -> adapted layer."""
        return {name: layer for name, layer in self.model.named_modules() if isinstance(layer, RankSliceLinear)}

    def forward(self, *args, **kwargs):
        """The model's own forward, with the slices in force (`active`)."""
        return self.model(*args, **kwargs)

    @contextmanager
    def active(self, use: SliceUse | None, task: str | None = None) -> Iterator[None]:
        """Puts the slices of `use` in force for the forwards inside.

        With None, as outside of any such context, the base runs alone. `task` says whose gates apply. Gradients reach
        the leaves if `task` is in the stage with this very use; otherwise the slices' current values are constants.
        With activation checkpointing of one's own the backward repeats forwards, so it must run inside too; see
        `checkpoint_activations`.

        Raises:
            AdapterError: in the gated variant, for a prerequisite that has no gate to `task`.
        """
        if use is not None:
            self._check_use(use, task)
        before = self._active.use, self._active.task
        self._active.use, self._active.task = use, task
        try:
            yield
        finally:
            self._active.use, self._active.task = before

    def checkpoint_activations(self) -> None:
        """From now on each block keeps its input alone; its backward repeats its forward, with the same slices.

        Raises:
            AdapterError: transformers cannot do so with this model, or a penalty looks at the routers of one forward.
        """
        if any(getattr(layer.lora_router, "records", False) for layer in self.layers().values()):
            raise AdapterError(
                "a method with a penalty on its routers has no gradient checkpointing; set "
                "model.gradient_checkpointing=false and training.micro_batch_size=auto"
            )

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), self.active(self._active.use, self._active.task)

        # transformers 5.23 renames it, and keeps the old one.
        enable = (
            getattr(self.model, "activation_checkpointing_enable", None) or self.model.gradient_checkpointing_enable
        )
        try:
            enable({"use_reentrant": False, "context_fn": contexts})
        except ValueError as error:
            raise AdapterError(
                f"{type(self.model).__name__} has no gradient checkpointing; set model.gradient_checkpointing=false "
                "and training.micro_batch_size=auto"
            ) from error

    def _check_use(self, use: SliceUse, task: str | None) -> None:
        for name in use.active:
            self.partition.indices(name)  # raises for a slice that the partition has not
        for name in use.prerequisites if self.config.gated else ():
            if (name, task) not in self.edges:
                edges = [f"{start}->{end}" for start, end in self.edges]
                raise AdapterError(
                    f"slice {name!r} has no gate to task {task!r}: make the model with this edge, or use one of its"
                    f" own{known(f'{name}->{task}', edges)}"
                )

    def add_parts(self, parts: TrainableParts) -> None:
        """Lets these modules train in every stage, beside the slices."""
        self.parts.append(parts)

    def begin_stage(
        self, uses: Mapping[str, SliceUse], state: Mapping[str, Mapping[str, list[int]]] | None = None
    ) -> None:
        """Makes leaves of what trains in a stage of these tasks; make a new optimizer from `parameter_groups` after it.

        Args:
            uses: task -> use, for the tasks that train together.
            state: `stage_state()` of an interrupted run, so that the same ranks stay frozen.

        Raises:
            AdapterError: for a state of another model or other uses.
        """
        assert not self._in_stage, "end_stage() comes before the next begin_stage()"
        for task, use in uses.items():
            self._check_use(use, task)
        names = list(dict.fromkeys(name for use in uses.values() for name in use.prerequisites))
        # Chosen once a stage: norms change while it trains, and with them the order would.
        self._orders = self._choose_orders(names) if state is None else self._checked_orders(names, state)
        for module, slices in self._slices.items():
            slices.begin_stage(uses, self._orders[module])
        for parameter in self._part_parameters():
            parameter.requires_grad_(True)
        self._stage_uses, self._in_stage = dict(uses), True

    def end_stage(self) -> None:
        """Writes the leaves back into their slices and drops them."""
        for slices in self._slices.values():
            slices.end_stage()
        for parameter in self._part_parameters():
            parameter.requires_grad_(False)
        self._orders, self._stage_uses, self._in_stage = {}, {}, False

    def stage_state(self) -> dict[str, dict[str, list[int]]]:
        """Module -> prerequisite slice -> its ranks, first to be frozen first; empty outside of a stage."""
        return {one: {name: list(order) for name, order in orders.items()} for one, orders in self._orders.items()}

    def _part_parameters(self) -> list[nn.Parameter]:
        return [parameter for parts in self.parts for parameter in parts.parameters()]

    @property
    def trained_slices(self) -> set[str]:
        """Slices of which the stage trains at least a part."""
        return self._slices_trained_with(self._stage_uses)

    @property
    def trained_owners(self) -> set[str]:
        """Owners of all values that the stage trains, see `adapters.state`."""
        return self.owners_trained_with(self._stage_uses)

    def owners_trained_with(self, uses: Mapping[str, SliceUse]) -> set[str]:
        """Owners of all values that a stage of these tasks and uses trains."""
        gates = {f"->{task}" for task, use in uses.items() if use.prerequisites and self.config.gated}
        return self._slices_trained_with(uses) | gates | {f"+{parts.name}" for parts in self.parts}

    def _slices_trained_with(self, uses: Mapping[str, SliceUse]) -> set[str]:
        return {
            name
            for use in uses.values()
            for name in use.active
            if use.num_frozen(name, self.partition.ranks[name]) < self.partition.ranks[name]
        }

    def _choose_orders(self, prerequisites: Sequence[str]) -> dict[str, dict[str, list[int]]]:
        policy = self.config.frozen_policy
        return {
            module: {
                name: freezing_order(policy, *slices.values(name), self.generator(module, name))
                for name in prerequisites
            }
            for module, slices in self._slices.items()
        }

    def _checked_orders(self, prerequisites: Sequence[str], state: Mapping) -> dict[str, dict[str, list[int]]]:
        for module in self._slices:
            for name in prerequisites:
                order = state.get(module, {}).get(name)
                if order is None or sorted(order) != list(range(self.partition.ranks[name])):
                    raise AdapterError(
                        f"the stage's state does not fit slice {name!r} of {module}: it holds {shown(order)}; "
                        "give that of the same graph and method.rank, or train again"
                    )
        return {module: {name: list(state[module][name]) for name in prerequisites} for module in self._slices}

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The stage's leaves under "own", "open" (of prerequisites) and "gate", and each `TrainableParts` by its name.

        A group without a leaf is absent.
        """
        groups: dict[str, list[nn.Parameter]] = {"own": [], "open": [], "gate": []}
        for slices in self._slices.values():
            for leaf in slices.leaves:
                groups["own" if leaf.is_own else "open"] += [leaf.A, leaf.B]
            groups["gate"] += slices.gate_parameters()
        groups |= {parts.name: parts.parameters() for parts in self.parts}
        return {kind: parameters for kind, parameters in groups.items() if parameters}

    def leaves(self, name: str) -> list[Leaf]:
        """The stage's leaves of one slice, in all layers."""
        return [leaf for slices in self._slices.values() for leaf in slices.leaves if leaf.slice_name == name]

    def num_trainable(self, uses: Mapping[str, SliceUse]) -> int:
        """How many numbers a stage with these uses trains."""
        num_ranks = 0
        for name, rank in self.partition.ranks.items():
            frozen = [use.num_frozen(name, rank) for use in uses.values() if name in use.active]
            # Frozen ranks are the first of one order, so the smallest share says what no task trains.
            num_ranks += rank - min(frozen, default=rank)
        num_gates = sum(len(use.prerequisites) for use in uses.values()) if self.config.gated else 0
        return num_ranks * self._num_per_rank() + num_gates * len(self._slices) + self._num_in_parts()

    def num_parameters(self) -> int:
        """How many numbers all slices, gates and parts hold together."""
        in_slices = self.partition.total_rank * self._num_per_rank()
        return in_slices + len(self.edges) * len(self._slices) + self._num_in_parts()

    def _num_in_parts(self) -> int:
        return sum(parameter.numel() for parameter in self._part_parameters())

    def _num_per_rank(self) -> int:
        return sum(slices.A.shape[1] + slices.B.shape[0] for slices in self._slices.values())

    def mark_trained(self) -> None:
        """Says that an optimizer has moved what the stage trains; call it after each of its steps."""
        self.state.touch(self.trained_owners)

    def composed(self, use: SliceUse, task: str | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Module -> current A (n, d_in) and B (d_out, n) of the slices of `use`, float32, gates folded into B."""
        self._check_use(use, task)
        return {module: slices.compose(use, task) for module, slices in self._slices.items()}
