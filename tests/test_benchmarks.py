"""Many runs: only the missing ones are made, several at once, and arguments of the bench scripts."""

from pathlib import Path

import pytest

from contextlora import benchmarks, workflows
from contextlora.errors import ConfigError


def test_run_missing_makes_only_what_is_not_there(make_config):
    configs = [make_config("training.steps_per_task=1", f"seed={seed}") for seed in range(3)]
    workflows.train(configs[0])
    runs = benchmarks.run_missing(configs, jobs=2)
    assert [run.settings["seed"] for run in runs] == [0, 1, 2]
    assert len(list(Path(configs[0].runs_dir).glob("*/*/*/results.json"))) == 3
    assert runs[2].results["machine"]["threads"] == max(1, (benchmarks.os.cpu_count() or 1) // 2)


def test_no_jobs_is_an_error(make_config):
    with pytest.raises(ConfigError, match="jobs must be at least 1, got 0"):
        benchmarks.run_missing([make_config()], jobs=0)


def test_numbers_are_taken_out_of_the_arguments():
    numbers, settings = benchmarks.read_arguments(["jobs=2", "seed=7", "method=joint"], seeds=5, jobs=1)
    assert numbers == [5, 2] and settings == ["seed=7", "method=joint"]
    with pytest.raises(ConfigError, match="seeds must be a whole number, got 'x'"):
        benchmarks.read_arguments(["seeds=x"], seeds=5)
