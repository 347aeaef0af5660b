"""Training plan: what a method is, to the trainer - slices of one LoRA, how each task uses them, and the stages.

Status of every rank of every slice while the tasks of one stage train (paper: arXiv 2507.21199, Eq. (6)):

    train    W^Train  = W[own slices] and the open share (1 - delta) of each prerequisite's slice
    freeze   W^Freeze = the other share, delta: computed, gradients flow through it to lower layers, it never moves
    mask     W^Mask   = every other rank: not computed at all
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from contextlora.errors import listed
from contextlora.graph.partition import RankPartition, num_frozen
from contextlora.graph.task_graph import GraphError
from contextlora.limits import shown


@dataclass(frozen=True)
class SliceUse:
    """How one task uses the slices of the LoRA.

    Attributes:
        own: slices that the task trains whole.
        prerequisites: slice -> delta, the share of its ranks that stays frozen while this task trains.
    """

    own: tuple[str, ...]
    prerequisites: Mapping[str, float] = field(default_factory=dict, hash=False)  # a dictionary has no hash

    def __post_init__(self):
        object.__setattr__(self, "own", tuple(self.own))
        object.__setattr__(self, "prerequisites", dict(self.prerequisites))
        if len(set(self.active)) != len(self.active) or not self.active:
            raise GraphError(f"a task must use at least one slice, and each once, got {shown(self.active)}")
        for delta in self.prerequisites.values():
            num_frozen(1, delta)  # refuses a delta outside [0, 1]

    @property
    def active(self) -> tuple[str, ...]:
        """The slices in the task's forward: its own, then its prerequisites'."""
        return self.own + tuple(self.prerequisites)

    def num_frozen(self, name: str, rank: int) -> int:
        """How many of the `rank` ranks of active slice `name` stay frozen while the task trains."""
        return 0 if name in self.own else num_frozen(rank, self.prerequisites[name])


@dataclass(frozen=True)
class TrainingPlan:
    """What a method is, to the trainer.

    Attributes:
        partition: the slices and their ranks.
        uses: task -> how it uses the slices.
        stages: tasks that train together, stage after stage; a task may come back in a later stage.

    Raises:
        GraphError: for a slice or task that one of the three does not know.
    """

    partition: RankPartition
    uses: Mapping[str, SliceUse]
    stages: tuple[tuple[str, ...], ...]

    def __post_init__(self):
        object.__setattr__(self, "stages", tuple(tuple(stage) for stage in self.stages))
        for use in self.uses.values():
            for name in use.active:
                self.partition.indices(name)  # refuses a slice that it does not have
        for stage in self.stages:
            unknown = [task for task in stage if task not in self.uses]
            if unknown or not stage:
                got = shown(unknown) if unknown else "none"
                raise GraphError(f"a stage must train tasks of the plan ({listed(self.uses)}), got {got}")

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """(prerequisite slice, task) for every prerequisite of every task: where a gate may sit."""
        return tuple((name, task) for task, use in self.uses.items() for name in use.prerequisites)

    def statuses(self, stage: Iterable[str]) -> dict[str, dict[str, int]]:
        """How many ranks of each slice train, stay frozen or are masked while the tasks of `stage` train.

        A rank that one task trains and another only freezes counts as trained: the ranks frozen at a smaller delta are
        among those frozen at a larger one, whatever the policy that picks them.

        Returns:
            slice -> {"train": n, "freeze": n, "mask": n}, which add up to the slice's rank.
        """
        uses = [self.uses[task] for task in stage]
        statuses = {}
        for name, rank in self.partition.ranks.items():
            frozen = [use.num_frozen(name, rank) for use in uses if name in use.active]
            num_freeze = min(frozen, default=0)
            num_train = rank - num_freeze if frozen else 0
            statuses[name] = {"train": num_train, "freeze": num_freeze, "mask": rank - num_train - num_freeze}
        return statuses
