"""One `Trainer.fit` for all stages, from the start or from a run's last checkpoint."""

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console

from contextlora.errors import ConfigError, UserError, first_line, known, squeezed
from contextlora.limits import check_values, fits, rule, shown
from contextlora.training.callbacks import LAST, LogStatuses, RunCheckpoint, StageBars
from contextlora.training.checkpoint import AtomicCheckpointIO, newest_whole
from contextlora.training.module import ContextLoraModule
from contextlora.training.plugins import naming_the_plugin

# Arguments of the Trainer that the stages or the run's folder need as they are, and what to set instead.
OWN_OPTIONS = {
    "accelerator": "training.accelerator",
    "devices": "training.devices",
    "strategy": "training.strategy",
    "gradient_clip_val": "training.gradient_clip",
    "callbacks": "training.callbacks",
    "logger": "training.loggers",
    "max_epochs": "training.steps_per_task",
    "max_steps": "training.steps_per_task",
    "check_val_every_n_epoch": "training.validate_every_steps",
    "val_check_interval": "training.validate_every_steps",
    "limit_train_batches": "training.steps_per_task",
    "limit_val_batches": "training.validate_every_steps",
    "accumulate_grad_batches": "training.batch_size",
    "max_time": "training.steps_per_task",
    "fast_dev_run": "training.steps_per_task",
    "overfit_batches": "taskset.train_items",
    "min_epochs": "training.patience",
    "min_steps": "training.patience",
    "num_nodes": "torchrun",
    "plugins": "model.dtype",
    "precision": "model.dtype",
}
NEEDED_AS_THEY_ARE = (
    "barebones",
    "enable_checkpointing",
    "reload_dataloaders_every_n_epochs",
)


def compute_device(accelerator: str) -> torch.device:
    """Where Lightning puts a model with this accelerator, the first device of its kind.

    Raises:
        ConfigError: no such accelerator, or none here.
    """
    kinds = {"gpu": ("cuda", "mps"), "auto": ("cuda", "mps", "cpu")}.get(accelerator, (accelerator,))
    names = ("auto", "gpu", "cpu", "cuda", "mps")
    if accelerator not in names:
        raise ConfigError(f"training.accelerator must be one of {', '.join(names)}: got {shown(accelerator)}.")
    for kind in kinds:
        if AcceleratorRegistry.get(kind).is_available():
            return torch.device(kind, 0) if kind != "cpu" else torch.device(kind)
    raise ConfigError(f"training.accelerator={accelerator}: this machine has none; take auto or cpu.")


@dataclass(frozen=True)
class TrainerSettings:
    """Where and how Lightning runs.

    Attributes:
        accelerator, strategy: as Lightning takes them.
        gradient_clip: largest norm of the gradient; 0 does not clip.
        devices: of this machine.
        num_nodes: machines, with as many devices each.
        options: further arguments of the Trainer.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    gradient_clip: float = 1.0
    devices: int = 1
    num_nodes: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_values(self, "training.")

    def check(self) -> None:
        """Raises `ConfigError` for an option that another setting decides, that no Trainer has or of another type."""
        arguments = get_type_hints(Trainer.__init__)
        del arguments["return"]
        for name, value in self.options.items():
            if name not in arguments:
                raise ConfigError(
                    f"training.trainer.{squeezed(name)} is no argument of lightning.Trainer{known(name, arguments)}"
                )
            if name in OWN_OPTIONS:
                raise ConfigError(f"training.trainer.{name} is decided by another setting: set {OWN_OPTIONS[name]}.")
            if name in NEEDED_AS_THEY_ARE:
                raise ConfigError(f"training.trainer.{name}: the stages need Lightning's default; leave it out.")
            if not fits(value, arguments[name]):  # Lightning would stumble over it in mid-training
                raise ConfigError(f"training.trainer.{name} must be {rule(arguments[name])}, got {shown(value)}")

    def trainer(self, callbacks: Sequence[Callback], loggers: Sequence[Logger]) -> Trainer:
        """A trainer for one fit.

        Raises:
            ConfigError: Lightning refuses an option, or cannot use the strategy here.
        """
        silence()
        # Deterministic algorithms would also fill every new tensor, against reads of unwritten memory, of which there
        # are none here: a sixth of a training step on a CPU.
        torch.utils.deterministic.fill_uninitialized_memory = False
        options = {
            "deterministic": True,  # a resume must come to the same bits
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **self.options,  # after ours, so that a user may change them; those given below are in OWN_OPTIONS
        }
        try:
            return Trainer(
                accelerator=self.accelerator,
                devices=self.devices,
                num_nodes=self.num_nodes,
                strategy=self.strategy,
                max_epochs=-1,  # the module stops it after the last stage
                gradient_clip_val=self.gradient_clip or None,
                plugins=[AtomicCheckpointIO()],
                callbacks=list(callbacks),
                logger=list(loggers),
                **options,
            )
        except Exception as error:  # Lightning's own, or whatever it stumbles over
            own = {name: value for name, value in self.options.items() if name != "default_root_dir"}
            chosen = f"training.accelerator={self.accelerator}, strategy={self.strategy}, trainer={shown(own)}"
            raise ConfigError(f"{chosen}: {first_line(error)}; change one of them") from error


def fit(
    module: ContextLoraModule,
    settings: TrainerSettings,
    checkpoints: Path,
    metrics_file: Path,
    save_stage: Callable[[int, set[str]], None],
    console: Console | None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    agree: Callable[[str], str] = str,
) -> None:
    """Trains all stages that are left, and leaves the module with the last stage's best weights.

    Args:
        module: what is trained.
        settings: for the Trainer.
        checkpoints: folder of the checkpoint; what it holds is continued.
        metrics_file: gets one line per validation.
        save_stage: called with each stage's number and what it trained when it has ended.
        console: for progress bars; None draws none.
        callbacks, loggers: of the Trainer, beside those of the run.
        agree: makes the first of several devices' word everybody's; only that one needs the checkpoint.

    Raises:
        UserError: something stopped the trainer before the last stage had ended.
    """
    last, checkpoint = newest_whole(checkpoints / LAST) or (checkpoints / LAST, None)
    is_finished = checkpoint is not None and module.is_finished(checkpoint)
    state = agree("finished" if is_finished else "new" if checkpoint is None else "interrupted")
    if state == "finished":
        # Process 0 alone has the file; the others get these weights when the evaluation begins.
        if checkpoint is not None:
            module.on_load_checkpoint(checkpoint)
            module.load_state_dict(checkpoint["state_dict"])
        return
    if checkpoints.parent != Path(os.devnull).parent:  # a callback without a folder of its own writes here
        settings = replace(settings, options={"default_root_dir": checkpoints.parent, **settings.options})
    own = [RunCheckpoint(checkpoints, metrics_file, save_stage), LogStatuses()]
    trainer = settings.trainer([*own, *([StageBars(console)] if console else []), *callbacks], loggers)
    # Lightning's own way with SIGTERM would end a fit as if all were well, and wait for other processes in the handler.
    trainer._signal_connector.register_signal_handlers = lambda: None
    with naming_the_plugin(
        [one for one in (*callbacks, *loggers) if not type(one).__module__.startswith("contextlora.")]
    ):
        trainer.fit(module, datamodule=module.data, ckpt_path=last if state == "interrupted" else None)
    if not module.finished:
        where = f"stage {module.progress.stage + 1} of {len(module.plan.stages)}"
        raise UserError(
            f"a callback stopped training in {where}: stages end by training.patience and training.steps_per_task; "
            "leave the callback out of training.callbacks"
        )


def silence() -> None:
    """Mutes Lightning's tips and the warnings that tell a user of this program nothing to act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # workers, checkpoint folder not empty, eval mode ...
