"""`contextlora ask`: one question to a trained run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from contextlora.assembly.trained import predictor
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.errors import UserError, first_line
from contextlora.evaluation.report import print_in_full
from contextlora.limits import shown
from contextlora.runs import RunFolder


def ask(
    config: RunConfig, run: RunFolder, task: str, question: Mapping[str, Any], prerequisites: Sequence[str]
) -> None:
    """Prints a task's answer to a question, and before it the answers that this one depends on.

    Args:
        config: the run's own settings, or others.
        run: a trained one.
        task: whose question it is.
        question: the arguments of `Predictor.ask`, but for the prerequisites.
        prerequisites: `task=answer`, with a question as JSON where the answer is not known.
    """
    given = dict(map(_read_prerequisite, prerequisites))  # before the model loads, as what is wrong shows at once
    answer = predictor(config, run, CONSOLE.print).ask(task, **question, prerequisites=given)
    table = Table("task", "answer", "probabilities")
    for name, one in {**answer.prerequisites, task: answer}.items():
        probabilities = " ".join(f"{option} {p:.3f}" for option, p in one.probabilities.items())
        table.add_row(name, one.option, probabilities or "given")
    print_in_full(CONSOLE, table)


def _read_prerequisite(text: str) -> tuple[str, str | dict[str, Any]]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--prerequisite must be TASK=ANSWER, got {shown(text)}")
    if not value.startswith("{"):
        return name, value
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the question of {shown(name)} in --prerequisite must be JSON, {first_line(error)}: write "
            '{"question": "...", "options": ["...", "..."]}'
        ) from error
