# ruff: noqa: D102 - Lightning's interface says what they are by their names
"""What `self.log` logs, into the run's tracker."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from contextlora.tracking import Tracker


class TrackerLogger(Logger):
    """Hands the metrics to Weights & Biases, or to its silent twin.

    Args:
        tracker: of the run.
    """

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    @property
    def name(self) -> str:
        return "contextlora"

    @property
    def version(self) -> str:
        return "run"

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass  # the whole configuration is logged when the run begins

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Lightning adds its epoch, which is an interval here.
        self._tracker.log({key: value for key, value in metrics.items() if key != "epoch"}, step or 0)
