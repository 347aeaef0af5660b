"""What a user and the tracker see of the stages."""

import io
import json

from rich.console import Console

from contextlora.assembly import run_parts, training_module
from contextlora.training.fit import TrainerSettings, fit


def run(config, folder, console=None):
    parts = run_parts(config)
    module = training_module(config, parts)
    logged = []
    fit(
        module,
        parts.data,
        TrainerSettings(accelerator="cpu"),
        checkpoints=folder,
        metrics_file=folder / "metrics.jsonl",
        save_stage=lambda stage: None,
        log=lambda metrics, step: logged.append((step, metrics)),
        console=console,
    )
    return module, logged


def test_each_stage_has_a_bar_with_loss_and_validation(make_config, tmp_path):
    console = Console(file=io.StringIO(), width=90, force_terminal=False)
    run(make_config(), tmp_path, console)
    lines = console.file.getvalue().splitlines()
    assert [line.split("━")[0].strip() for line in lines] == ["stage 1/3 a, b", "stage 2/3 c", "stage 3/3 d"]
    assert [line.split()[-8] for line in lines] == ["10/10", "5/5", "5/5"]
    assert all("loss" in line and "valid" in line and "%" in line for line in lines)


def test_a_stage_that_stops_early_has_a_full_bar(make_config, tmp_path):
    console = Console(file=io.StringIO(), width=90, force_terminal=False)
    # At a rate of (nearly) zero nothing improves after the first validation.
    config = make_config("training.learning_rate=1e-30", "training.gate_learning_rate=1e-30", "training.patience=1")
    module, _ = run(config, tmp_path, console)
    assert module.progress.steps_taken == [8, 4, 4]
    assert [line.split()[-8] for line in console.file.getvalue().splitlines()] == ["8/8", "4/4", "4/4"]


def test_the_tracker_gets_every_validation_and_the_statuses_of_every_stage(make_config, tmp_path):
    module, logged = run(make_config("method.delta=0.5"), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == module.progress.history
    validations = {step: metrics for step, metrics in logged if "stage/accuracy" in metrics}
    assert list(validations) == [row["step"] for row in rows]
    for row in rows:
        assert validations[row["step"]]["stage/accuracy"] == row["accuracy"]
        tasks = module.plan.stages[row["stage"]]
        assert all(f"accuracy/{task}" in validations[row["step"]] for task in tasks)
    statuses = [metrics for _, metrics in logged if "ranks/a/train" in metrics]
    assert [(s["ranks/a/train"], s["ranks/a/freeze"], s["ranks/a/mask"]) for s in statuses] == [
        (2, 0, 0),
        (1, 1, 0),
        (1, 1, 0),
    ]
