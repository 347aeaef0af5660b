"""How long a stage lasts, and how far training has come.

A stage of n tasks has a budget of `steps_per_task * n` gradient steps, cut into intervals of `validate_every_steps * n`
steps. One interval is one Lightning epoch: validation and a checkpoint close it. The factor n gives every task the same
number of steps between two validations, so that patience means the same for a method that trains its tasks together.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from contextlora.errors import ConfigError
from contextlora.limits import check_values

LOSS_IMPROVEMENT = 0.01  # nats; a smaller fall is none


@dataclass(frozen=True)
class StageLength:
    """How long a stage lasts.

    Attributes:
        steps_per_task: gradient steps for each task of the stage.
        validate_every_steps: gradient steps for each task of the stage between two validations.
        patience: validations without an improvement after which the stage ends; 0 never ends it early.
    """

    steps_per_task: int = 140
    validate_every_steps: int = 35
    patience: int = 2

    def __post_init__(self) -> None:
        check_values(self, "training.")
        for key, least in (("steps_per_task", 1), ("validate_every_steps", 1), ("patience", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"training.{key} must be at least {least}: got {getattr(self, key)}. Raise it.")

    def budget(self, tasks: Sequence[str]) -> int:
        """Gradient steps a stage of these tasks may take."""
        return self.steps_per_task * len(tasks)

    def interval_steps(self, tasks: Sequence[str], interval: int) -> int:
        """Gradient steps in one interval of a stage; the last may be shorter, none are left after it."""
        length = self.validate_every_steps * len(tasks)
        return max(0, min(length, self.budget(tasks) - interval * length))

    @property
    def num_intervals(self) -> int:
        """Intervals of a stage that is not ended early; the same for any number of tasks."""
        return math.ceil(self.steps_per_task / self.validate_every_steps)


@dataclass
class Progress:
    """Where training stands; everything here is in the checkpoint.

    Attributes:
        stage: stage in force, or the number of stages when all are done.
        interval: intervals done in this stage.
        total_steps: gradient steps taken in all stages.
        best_accuracy, best_loss: best validation of this stage.
        improved_interval: the latest validation of this stage that was an improvement, see `record`.
        steps_taken: gradient steps of each finished stage.
        seconds: wall-clock time spent in finished intervals.
        history: one row per validation of the whole run.
        optimizer_step: steps of this stage that were done when its optimizer was made.
        owners: whose values this stage trained before its uses changed, see `adapters.state`.
        uses: task -> [own slices, {prerequisite's slice: delta}], as the tasks use the slices now.
        notes: what the method remembers of this stage, see `StageView`.
        losses: of the steps that the interval in force had taken when it was broken off.
    """

    stage: int = 0
    interval: int = 0
    total_steps: int = 0
    best_accuracy: float = -1.0  # below every accuracy: a first validation is always the best
    best_loss: float = math.inf
    improved_interval: int = 0
    steps_taken: list[int] = field(default_factory=list)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    optimizer_step: int = 0
    owners: list[str] = field(default_factory=list)
    uses: dict[str, list[Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def record(self, steps: int, accuracy: float, loss: float) -> bool:
        """Enters one validation; True if it is the stage's best: higher accuracy, or the same with a lower loss.

        Patience counts from the latest improvement: a higher accuracy, or a loss lower by `LOSS_IMPROVEMENT`. A task
        that is solved is solved, though its loss may go on falling.
        """
        self.interval, self.losses = self.interval + 1, []
        self.total_steps += steps
        if accuracy > self.best_accuracy or loss < self.best_loss - LOSS_IMPROVEMENT:
            self.improved_interval = self.interval
        better = (accuracy, -loss) > (self.best_accuracy, -self.best_loss)
        if better:
            self.best_accuracy, self.best_loss = accuracy, loss
        return better

    def stage_is_over(self, length: StageLength) -> bool:
        """Whether the stage has used up its budget or its patience."""
        out_of_patience = 0 < length.patience <= self.interval - self.improved_interval
        return out_of_patience or self.interval >= length.num_intervals

    def next_stage(self) -> None:
        """Closes the books of this stage and opens those of the next."""
        self.steps_taken.append(self.total_steps - sum(self.steps_taken))
        self.stage += 1
        self.interval, self.improved_interval, self.optimizer_step, self.owners = 0, 0, 0, []
        self.best_accuracy, self.best_loss = -1.0, math.inf
        self.notes = {}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return asdict(self)
