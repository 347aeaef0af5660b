# ruff: noqa: D102 - Lightning's hooks say what they are by their names
"""What happens around training: checkpoints, progress bars, tracking."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from contextlora import signals
from contextlora.errors import UserError, tail
from contextlora.evaluation.report import print_in_full
from contextlora.files import write_atomically
from contextlora.training.checkpoint import LAST
from contextlora.training.module import ContextLoraModule


# With a `Checkpoint` among the callbacks Lightning adds no ModelCheckpoint of its own.
class RunCheckpoint(Checkpoint):
    """Saves each interval's end. Lightning calls it after the module's own hook, so a new stage has begun by then.

    A signal that ends the program waits for the end of the step, and that is saved too.

    Args:
        folder: gets `last.ckpt`, replaced every time.
        metrics_file: gets one JSON line per validation of the run.
        save_stage: called with (number, owners of what it trained) of each stage that ended, before the checkpoint that
            begins the next.
    """

    def __init__(self, folder: Path, metrics_file: Path, save_stage: Callable[[int, set[str]], None]) -> None:
        self.folder, self.metrics_file, self.save_stage = folder, metrics_file, save_stage

    def on_train_start(self, trainer: Trainer, pl_module: ContextLoraModule) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ContextLoraModule) -> None:
        if trainer.world_size == 1:  # several would have to agree on the step
            signals.wait()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: ContextLoraModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.is_last_of_interval(batch_idx):  # nothing is left to go on with, and validating may take long
            signals.wait_no_more()
        elif signals.is_waiting():
            pl_module.break_off_interval()
            trainer.save_checkpoint(self.folder / LAST)
            signals.wait_no_more()

    def on_exception(self, trainer: Trainer, pl_module: ContextLoraModule, exception: BaseException) -> None:
        signals.forget()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ContextLoraModule) -> None:
        if trainer.is_global_zero:
            if not self.folder.is_dir():
                raise UserError(f"the folder {tail(self.folder)} vanished during training: train again")
            if pl_module.ended_stage is not None:
                self.save_stage(*pl_module.ended_stage)
            # Rewritten whole from the checkpointed history: a resumed run repeats no line and loses none.
            lines = "".join(json.dumps(row) + "\n" for row in pl_module.progress.history)
            write_atomically(self.metrics_file, lines)
        # On every rank: all take part in collecting what is saved, one writes it.
        trainer.save_checkpoint(self.folder / LAST)


class StageBars(Callback):
    """One progress bar per stage, with the training loss and the validation accuracy.

    Args:
        console: where they are drawn; where that is no terminal, each validation gets a line of its own.
    """

    def __init__(self, console: Console) -> None:
        self._is_live = console.is_terminal or console.is_jupyter
        self._bars = Progress(  # all of it within 80 columns where task names are no longer than those of iov
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[accuracy]}"),
            console=console,
            disable=not self._is_live,
        )
        self._bar: TaskID | None = None
        self._stage = -1

    def on_train_start(self, trainer: Trainer, pl_module: ContextLoraModule) -> None:
        self._bars.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ContextLoraModule) -> None:
        # Before the bar changes: the latest validation may be the last one of the stage that has just ended.
        self._show_accuracy(pl_module)
        if pl_module.progress.stage == self._stage:
            return
        self._close_bar()
        self._stage, tasks = pl_module.progress.stage, pl_module.stage_tasks
        self._bar = self._bars.add_task(
            f"{self._stage + 1}/{len(pl_module.plan.stages)} {_short(tasks)}",
            total=pl_module.length.budget(tasks),
            # Not 0 where a resumed run goes on in mid-stage.
            completed=pl_module.data.first_step,
            loss="",
            accuracy="",
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: ContextLoraModule, outputs: Mapping[str, Any], batch: Any, batch_idx: int
    ) -> None:
        loss = pl_module.latest_loss
        self._bars.update(self._bar, advance=1, **({} if loss is None else {"loss": f"loss {loss:.3f}"}))

    def on_train_end(self, trainer: Trainer, pl_module: ContextLoraModule) -> None:
        self._show_accuracy(pl_module)
        self._close_bar()
        self._bars.stop()
        if not self._is_live:
            print_in_full(self._bars.console, self._bars.make_tasks_table(self._bars.tasks))

    def on_exception(self, trainer: Trainer, pl_module: ContextLoraModule, exception: BaseException) -> None:
        self._bars.stop()

    def _show_accuracy(self, module: ContextLoraModule) -> None:
        rows = [row for row in module.progress.history if row["stage"] == self._stage]
        if self._bar is not None and rows:
            best = max(row["accuracy"] for row in rows)
            text = f"valid {100 * rows[-1]['accuracy']:.1f} % (best {100 * best:.1f})"
            self._bars.update(self._bar, accuracy=text)
            if not self._bars.console.is_terminal:
                bar = self._bars.tasks[self._bar]
                parts = filter(None, (f"step {bar.completed}/{bar.total}", bar.fields["loss"], text))
                self._bars.console.print(
                    f"stage {bar.description}: {', '.join(parts)}", highlight=False, soft_wrap=True
                )

    def _close_bar(self) -> None:
        if self._bar is not None:  # a stage that stopped early has a full bar of the steps it took
            self._bars.update(self._bar, total=self._bars.tasks[self._bar].completed)


def _short(tasks: Sequence[str]) -> str:
    return ", ".join(tasks) if len(tasks) <= 2 else f"{len(tasks)} tasks"


class LogStatuses(Callback):
    """Logs how many ranks of each slice train, stay frozen and are masked when a stage begins."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ContextLoraModule) -> None:
        if pl_module.progress.interval == 0:
            statuses = pl_module.plan.statuses(pl_module.stage_tasks)
            pl_module.log_dict(
                {f"ranks/{name}/{key}": float(n) for name, counts in statuses.items() for key, n in counts.items()}
            )
