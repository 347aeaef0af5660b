"""All figures of one trained run: accuracy after each stage, end to end, interference, references, calibration."""

from collections.abc import Callable, Sequence
from typing import Any

from contextlora.evaluation.evaluate import Evaluator, Prediction
from contextlora.evaluation.metrics import (
    backward_transfer,
    calibration_error,
    forgetting,
    position_bias,
    wilson_interval,
)
from contextlora.evaluation.references import rule_accuracy, symbolic_accuracy
from contextlora.graph.plan import SliceUse
from contextlora.tasks.task import Item


def deployed_context(context: str) -> str:
    """What a deployed model finds in its prompts: nobody hands it right answers, so gold becomes predicted."""
    return "none" if context == "none" else "predicted"


def right_context(context: str) -> str:
    """The prompts of own-stage and final accuracy: right prerequisite answers, unless prompts hold none at all."""
    return "none" if context == "none" else "gold"


def evaluate_suite(
    evaluator: Evaluator,
    stages: Sequence[Sequence[str]],
    load_stage: Callable[[int], None],
    context: str,
    split: str,
) -> dict[str, Any]:
    """Evaluates a trained run on one split.

    Args:
        evaluator: answers items; the model behind it is left with the last stage's weights.
        stages: the tasks of each.
        load_stage: puts the adapter's weights as they were after stage k into the model.
        context: context mode of the training.
        split: of the figures; "validation" gets its own end-to-end figures besides.

    Returns:
        The part of results.json that needs the model; README and docs/results.md explain the keys.
    """
    tasks = evaluator.taskset.graph.tasks
    zero_shot = {task: evaluator.predict(task, split, right_context(context), use=None).accuracy for task in tasks}
    matrix: dict[str, list[float | None]] = {task: [] for task in tasks}
    for stage in range(len(stages)):
        load_stage(stage)
        trained = {task for tasks_of_stage in stages[: stage + 1] for task in tasks_of_stage}
        for task in tasks:
            accuracy = evaluator.predict(task, split, right_context(context)).accuracy if task in trained else None
            matrix[task].append(accuracy)
    # After the loop, which leaves the last stage's weights in the model.
    deployed = {task: evaluator.predict(task, split, deployed_context(context)) for task in tasks}
    own_stage = {task: number for number, names in enumerate(stages) for task in names}  # the last that trained it
    rows = {
        task: _task_row(evaluator.items(task, split), zero_shot[task], matrix[task], own_stage[task], deployed[task])
        for task in tasks
    }
    return {
        "tasks": rows,
        "accuracy_matrix": matrix,
        "intervals": {task: _intervals(rows[task]) for task in tasks},
        "forgetting": {task: forgetting(matrix[task]) for task in tasks},
        "backward_transfer": {task: backward_transfer(matrix[task]) for task in tasks},
        "interference": interference(evaluator, right_context(context), split),
        "validation": _validation(evaluator, context),
        "references": _references(evaluator, deployed, split),
        "calibration": {task: calibration_error(p.scores, p.answers) for task, p in deployed.items()},
        "bias": {task: position_bias(p.chosen, p.answers, p.scores.shape[1]) for task, p in deployed.items()},
    }


def interference(evaluator: Evaluator, context: str, split: str) -> dict[str, dict[str, float]]:
    """What slices do to each other when active together: u alone, and with the other prerequisites of v active too.

    Returns:
        "u with the prerequisites of v" -> {"alone", "together"} accuracies of u; empty where no task has two
        prerequisites with slices of their own.
    """
    found: dict[str, dict[str, float]] = {}
    uses = evaluator.uses
    for task in evaluator.taskset.graph.tasks:
        for prerequisite in evaluator.taskset.graph.prerequisites(task):
            use = uses[prerequisite]
            others = [name for name in uses[task].prerequisites if name not in use.active]
            if not others:
                continue
            together = SliceUse((*use.own, *others), use.prerequisites)  # own: added plainly, without any gate
            found[f"{prerequisite} with the prerequisites of {task}"] = {
                "alone": evaluator.predict(prerequisite, split, context).accuracy,
                "together": evaluator.predict(prerequisite, split, context, together).accuracy,
            }
    return found


def _task_row(
    items: Sequence[Item], zero_shot: float, after_stage: Sequence[float | None], own_stage: int, deployed: Prediction
) -> dict[str, Any]:
    return {
        "chance": sum(1 / len(item.options) for item in items) / len(items),
        "zero_shot": zero_shot,
        "own_stage": after_stage[own_stage],
        "final": after_stage[-1],
        "end_to_end": deployed.accuracy,
        "n": len(items),
    }


def _intervals(row: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {key: wilson_interval(row[key], row["n"]) for key in ("own_stage", "final", "end_to_end")}


def _validation(evaluator: Evaluator, context: str) -> dict[str, float]:
    """End-to-end accuracy on the validation split: what a search over settings may look at."""
    tasks = evaluator.taskset.graph.tasks
    return {task: evaluator.predict(task, "validation", deployed_context(context)).accuracy for task in tasks}


def _references(evaluator: Evaluator, deployed: dict[str, Prediction], split: str) -> dict[str, dict[str, Any]]:
    taskset = evaluator.taskset
    found = {}
    for task in taskset.graph.tasks:
        items, prerequisites = evaluator.items(task, split), taskset.graph.prerequisites(task)
        above = taskset.graph.prerequisites(task, "ancestors")
        roots = [name for name in above if not taskset.graph.prerequisites(name)]
        words = {root: evaluator.predicted_words(root, split, items) for root in roots}
        found[task] = {
            "majority": rule_accuracy(taskset, task, (), items),
            "single_prerequisite": {name: rule_accuracy(taskset, task, (name,), items) for name in prerequisites},
            # A root has nothing to compose.
            "symbolic": symbolic_accuracy(taskset, task, items, words) if prerequisites else deployed[task].accuracy,
        }
    return found
