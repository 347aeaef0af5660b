"""One `Trainer.fit` for all stages, from the start or from a run's last checkpoint."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import LightningDataModule
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from contextlora.errors import ConfigError, first_line
from contextlora.training.callbacks import LAST, RunCheckpoint, StageBars, TrackStages
from contextlora.training.checkpoint import AtomicCheckpointIO, load_checkpoint
from contextlora.training.module import ContextLoraModule


@dataclass(frozen=True)
class TrainerSettings:
    """Where and how Lightning runs.

    Attributes:
        accelerator, strategy: as Lightning takes them.
        gradient_clip: largest norm of the gradient; 0 does not clip.
        devices: of this machine.
        num_nodes: machines, with as many devices each.

    Raises:
        ConfigError: Lightning does not know the accelerator or strategy, or cannot use it here.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    gradient_clip: float = 1.0
    devices: int = 1
    num_nodes: int = 1

    def __post_init__(self) -> None:
        try:
            self.device  # noqa: B018 - cheap, and the earliest that Lightning can be asked
        except (ValueError, MisconfigurationException) as error:
            chosen = f"training.accelerator={self.accelerator}, strategy={self.strategy}"
            raise ConfigError(f"{chosen}: {first_line(error)}") from error

    @property
    def device(self) -> torch.device:
        """Where Lightning puts the model."""
        return self.trainer([]).strategy.root_device

    def trainer(self, callbacks: list[Callback]) -> Trainer:
        """A trainer for one fit."""
        silence()
        # Deterministic algorithms would also fill every new tensor, against reads of unwritten memory, of which there
        # are none here: a sixth of a training step on a CPU.
        torch.utils.deterministic.fill_uninitialized_memory = False
        return Trainer(
            accelerator=self.accelerator,
            devices=self.devices,
            num_nodes=self.num_nodes,
            strategy=self.strategy,
            max_epochs=-1,  # the module stops it after the last stage
            gradient_clip_val=self.gradient_clip or None,
            deterministic=True,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpointIO()],
            callbacks=callbacks,
        )


def fit(
    module: ContextLoraModule,
    data: LightningDataModule,
    settings: TrainerSettings,
    checkpoints: Path,
    metrics_file: Path,
    save_stage: Callable[[int], None],
    log: Callable[[Mapping[str, float], int], None],
    console: Console | None,
    agree: Callable[[str], str] = str,
) -> None:
    """Trains all stages that are left, and leaves the module with the last stage's best weights.

    Args:
        module, data: what is trained, on what.
        settings: for the Trainer.
        checkpoints: folder of the checkpoint; what it holds is continued.
        metrics_file: gets one line per validation.
        save_stage: called with each stage's number when it has ended.
        log: takes (metrics, step).
        console: for progress bars; None draws none.
        agree: makes the first of several devices' word everybody's; only that one needs the checkpoint.
    """
    last = checkpoints / LAST
    checkpoint = load_checkpoint(last) if last.exists() else None
    is_finished = checkpoint is not None and module.is_finished(checkpoint, module.plan)
    state = agree("finished" if is_finished else "new" if checkpoint is None else "interrupted")
    if state == "finished":
        if checkpoint is not None:
            module.on_load_checkpoint(checkpoint)
            module.load_state_dict(checkpoint["state_dict"])
        return
    callbacks: list[Callback] = [RunCheckpoint(checkpoints, metrics_file, save_stage), TrackStages(log)]
    trainer = settings.trainer(callbacks + ([StageBars(console)] if console else []))
    module.adapted.train()
    trainer.fit(module, datamodule=data, ckpt_path=last if state == "interrupted" else None)


def silence() -> None:
    """Mutes Lightning's tips and the warnings that tell a user of this program nothing to act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # workers, checkpoint folder not empty, eval mode ...
