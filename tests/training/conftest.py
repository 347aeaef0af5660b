"""Training runs of the tiny task set and model, as the commands put them together."""

from collections.abc import Callable
from pathlib import Path

import pytest

from contextlora.assembly.build import build_data, build_module
from contextlora.assembly.stage_files import StageFiles
from contextlora.config import RunConfig
from contextlora.training.fit import TrainerSettings, fit
from contextlora.training.module import ContextLoraModule


@pytest.fixture
def train() -> Callable[[RunConfig, Path], ContextLoraModule]:
    """(configuration, folder with checkpoints or none yet) -> the module after training."""

    def run(config: RunConfig, folder: Path) -> ContextLoraModule:
        module = build_module(config, build_data(config))
        fit(
            module,
            TrainerSettings(accelerator="cpu"),
            checkpoints=folder,
            metrics_file=folder / "metrics.jsonl",
            save_stage=StageFiles(folder, module).save,
            console=None,
        )
        return module

    return run
