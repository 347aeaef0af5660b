"""What a user and the tracker see of the stages."""

import io
import json
import re

import pytest
from rich.console import Console

from contextlora.assembly.build import build_data, build_module
from contextlora.tracking import Tracker
from contextlora.training.fit import TrainerSettings, fit
from contextlora.training.loggers import TrackerLogger


def run(config, folder, console=None):
    module = build_module(config, build_data(config))
    logged = []

    class Recorder(Tracker):
        def log(self, metrics, step):
            logged.append((step, metrics))

    fit(
        module,
        TrainerSettings(accelerator="cpu"),
        checkpoints=folder,
        metrics_file=folder / "metrics.jsonl",
        save_stage=lambda stage, owners: None,
        console=console,
        loggers=[TrackerLogger(Recorder())],
    )
    return module, logged


def shown(config, folder):
    """(module, the bars as they stood in the end, the other lines) of a run whose output goes to a file."""
    console = Console(file=io.StringIO(), width=90, force_terminal=False)
    module, _ = run(config, folder, console)
    lines = console.file.getvalue().splitlines()
    return module, [line for line in lines if "━" in line], [line for line in lines if "━" not in line]


def test_each_stage_has_a_bar_with_steps_time_loss_and_validation(make_config, tmp_path):
    _, bars, _ = shown(make_config(), tmp_path)
    pattern = r"(.+?) +━+ +(\d+/\d+) +\d\d:\d\d loss \d\.\d{3} valid \d+\.\d % \(best \d+\.\d\) *"
    assert [re.fullmatch(pattern, bar).groups() for bar in bars] == [
        ("1/3 a, b", "10/10"),
        ("2/3 c", "5/5"),
        ("3/3 d", "5/5"),
    ]


def test_a_stage_that_stops_early_has_a_full_bar(make_config, tmp_path):
    # At a rate of (nearly) zero nothing improves after the first validation.
    config = make_config("training.learning_rate=1e-30", "method.gate_learning_rate=1e-30", "training.patience=1")
    module, bars, _ = shown(config, tmp_path)
    assert module.progress.steps_taken == [8, 4, 4]
    assert [re.search(r"\d+/\d+ ", bar.split("━")[-1]).group().strip() for bar in bars] == ["8/8", "4/4", "4/4"]


def test_output_that_goes_to_a_file_has_a_line_for_every_validation(make_config, tmp_path):
    module, _, lines = shown(make_config(), tmp_path)
    rows = module.progress.history
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(f"stage {row['stage'] + 1}/3 ")
        assert f"valid {100 * row['accuracy']:.1f} %" in line


def test_the_tracker_gets_every_validation_and_the_statuses_of_every_stage(make_config, tmp_path):
    module, logged = run(make_config("method.delta=0.5"), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == module.progress.history
    validations = {step: metrics for step, metrics in logged if "stage/accuracy" in metrics}
    assert [step + 1 for step in validations] == [row["step"] for row in rows]  # Lightning counts from 0
    for row in rows:
        assert validations[row["step"] - 1]["stage/accuracy"] == pytest.approx(row["accuracy"])
        tasks = module.plan.stages[row["stage"]]
        assert all(f"accuracy/{task}" in validations[row["step"] - 1] for task in tasks)
    statuses = [metrics for _, metrics in logged if "ranks/a/train" in metrics]
    assert [(s["ranks/a/train"], s["ranks/a/freeze"], s["ranks/a/mask"]) for s in statuses] == [
        (2, 0, 0),
        (1, 1, 0),
        (1, 1, 0),
    ]
