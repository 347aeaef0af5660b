"""Budgets, intervals, patience and the choice of the best validation."""

import pytest

from contextlora.errors import ConfigError
from contextlora.training.stages import Progress, StageLength


def test_every_task_gets_the_same_steps_between_validations():
    length = StageLength(steps_per_task=5, validate_every_steps=2)
    for tasks in (("a",), ("a", "b"), ("a", "b", "c")):
        steps = [length.interval_steps(tasks, k) for k in range(length.num_intervals)]
        assert steps == [2 * len(tasks), 2 * len(tasks), len(tasks)]
        assert sum(steps) == length.budget(tasks) == 5 * len(tasks)
        assert length.interval_steps(tasks, 3) == 0


@pytest.mark.parametrize("setting", [{"steps_per_task": 0}, {"validate_every_steps": 0}, {"patience": -1}])
def test_a_setting_out_of_range_is_named(setting):
    (key,) = setting
    with pytest.raises(ConfigError, match=f"training.{key} must be at least"):
        StageLength(**{"steps_per_task": 1, "validate_every_steps": 1, **setting})


def test_the_best_validation_has_the_highest_accuracy_then_the_lowest_loss():
    progress = Progress()
    figures = [(0.5, 1.0), (0.5, 0.9), (0.5, 0.95), (0.6, 2.0), (0.4, 0.1)]
    assert [progress.record(10, *pair) for pair in figures] == [True, True, False, True, False]
    assert (progress.best_accuracy, progress.best_loss) == (0.6, 2.0)
    assert progress.total_steps == 50


def test_patience_counts_validations_since_the_latest_improvement():
    length = StageLength(steps_per_task=100, validate_every_steps=1, patience=2)
    progress = Progress()
    over = []
    for accuracy in (0.1, 0.3, 0.2, 0.3):
        progress.record(1, accuracy, 1.0)
        over.append(progress.stage_is_over(length))
    assert over == [False, False, False, True]


def test_a_loss_that_hardly_falls_is_no_improvement():
    progress = Progress()
    for loss, improved in ((0.5, 1), (0.48, 2), (0.475, 2), (0.4, 4)):
        progress.record(1, 1.0, loss)
        assert progress.improved_interval == improved
    progress.record(1, 0.9, 0.3)  # less accurate: not the best, but it still learns
    assert (progress.improved_interval, progress.best_loss) == (5, 0.4)


def test_without_patience_a_stage_takes_its_whole_budget():
    length = StageLength(steps_per_task=3, validate_every_steps=1)
    progress = Progress()
    over = []
    for _ in range(3):
        progress.record(1, 0.0, 1.0)
        over.append(progress.stage_is_over(length))
    assert over == [False, False, True]


def test_the_next_stage_starts_with_clean_books():
    progress = Progress()
    progress.record(7, 0.5, 1.0)
    progress.next_stage()
    progress.record(3, 0.1, 1.0)
    progress.next_stage()
    assert progress.steps_taken == [7, 3]
    assert (progress.stage, progress.interval, progress.total_steps) == (2, 0, 10)
    assert Progress(**progress.to_dict()) == progress
