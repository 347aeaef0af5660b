"""A trained run's model, for whatever uses it: export, questions."""

from collections.abc import Callable
from pathlib import Path

from contextlora.assembly.build import build_data, build_module
from contextlora.config import RunConfig, load_config
from contextlora.errors import UserError
from contextlora.runs import RunFolder
from contextlora.serving.ask import Predictor
from contextlora.training.module import ContextLoraModule
from contextlora.training.stage_files import StageFiles


def load(run: Path | str = "runs/latest", *settings: str) -> Predictor:
    """The trained model of a run, to be asked.

    Args:
        run: its folder.
        settings: that deviate from its own, such as `training.accelerator=cpu`.

    Raises:
        UserError: there is no run, it is not trained yet, or what it was trained with is damaged or gone.
    """
    folder = RunFolder.open(run)
    return predictor(load_config(settings, saved=folder.config_file), folder)


def predictor(config: RunConfig, run: RunFolder, say: Callable[[str], None] = print) -> Predictor:
    """As `load`, from the parts that it finds; `say` is told of each damaged file that was written again."""
    module = load_trained(config, run, say)
    return Predictor(module.data, module.evaluator)


def load_trained(config: RunConfig, run: RunFolder, say: Callable[[str], None]) -> ContextLoraModule:
    """The module of a trained run, with the weights at the end of its training."""
    if not run.is_trained:
        raise UserError(f"the run is {run.state}, which must be trained first; {run.how_to_resume}")
    module = build_module(config, build_data(config))
    # Says so where the task set has changed: the weights are the same, but they were trained for the prompts of before.
    StageFiles(run.folder("checkpoints"), module, say).load_last()
    return module
