"""Training runs of the tiny task set and model, as the workflows put them together."""

from collections.abc import Callable
from pathlib import Path

import pytest

from contextlora.assembly import run_parts, training_module
from contextlora.config import RunConfig, load_config
from contextlora.training.fit import TrainerSettings, fit
from contextlora.training.module import ContextLoraModule

# All that could break bit identity is on: dropout, weight decay, open prerequisite ranks, gates, predicted answers.
SETTINGS = (
    "method.rank=2",
    "method.delta=0.5",
    "method.dropout=0.1",
    "method.variant=gated",
    "model.dtype=float32",
    "training.learning_rate=1e-2",
    "training.weight_decay=0.1",
    "training.batch_size=4",
    "training.steps_per_task=5",
    "training.validate_every_steps=2",
    "taskset.context=predicted",
)


@pytest.fixture
def make_config(taskset_folder: Path, model_folder: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """(dotted settings ...) -> configuration of a tiny run."""

    def make(*settings: str) -> RunConfig:
        fixed = (f"taskset={taskset_folder}", f"model={model_folder}", f"runs_dir={tmp_path / 'runs'}")
        return load_config([*fixed, *SETTINGS, *settings])

    return make


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
