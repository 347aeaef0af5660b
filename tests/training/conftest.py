"""Training runs of the tiny task set and model, as the commands put them together."""

from collections.abc import Callable
from pathlib import Path

import pytest

from contextlora.assembly import run_parts, training_module
from contextlora.config import RunConfig
from contextlora.training.fit import TrainerSettings, fit
from contextlora.training.module import ContextLoraModule


@pytest.fixture
def train() -> Callable[[RunConfig, Path], ContextLoraModule]:
    """(configuration, folder with checkpoints or none yet) -> the module after training."""

    def run(config: RunConfig, folder: Path) -> ContextLoraModule:
        parts = run_parts(config)
        module = training_module(config, parts)
        fit(
            module,
            parts.data,
            TrainerSettings(accelerator="cpu"),
            checkpoints=folder,
            metrics_file=folder / "metrics.jsonl",
            save_stage=lambda stage: parts.save_stage(folder, stage),
            log=lambda metrics, step: None,
            console=None,
        )
        return module

    return run
