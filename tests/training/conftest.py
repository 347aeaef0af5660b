"""Training runs of the tiny task set and model, as the commands put them together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contextlora.assembly.build import build_data, build_module, trainer_settings
from contextlora.config import RunConfig
from contextlora.training.fit import fit
from contextlora.training.module import ContextLoraModule
from contextlora.training.stage_files import StageFiles


@pytest.fixture
def train() -> Callable[..., ContextLoraModule]:
    """(configuration, folder with checkpoints or none yet, further arguments of fit) -> the module after training."""

    def run(config: RunConfig, folder: Path, **settings: Any) -> ContextLoraModule:
        module = build_module(config, build_data(config))
        fit(
            module,
            trainer_settings(config),
            checkpoints=folder,
            metrics_file=folder / "metrics.jsonl",
            **{"save_stage": StageFiles(folder, module).save, "console": None, **settings},
        )
        return module

    return run
