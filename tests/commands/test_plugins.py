"""Callbacks, loggers and Trainer options of the user's own, through the command line and in a script."""

import csv
import json
import sys

import lightning
import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from contextlora.assembly.build import build_data, build_module
from contextlora.cli import main
from contextlora.runs import latest_run

QUICK = ("training.steps_per_task=2", "training.validate_every_steps=2", "evaluation.max_items=2")
NEW = "training.callbacks=[{class_path: %s, init_args: %s}]"


class Notes(Callback):
    """Writes down what it sees at the end of each interval."""

    def __init__(self, file, word="seen"):
        self.file, self.word = file, word

    def on_train_epoch_end(self, trainer, pl_module):
        row = {"word": self.word, "finite": bool(trainer.callback_metrics["loss"].isfinite())}
        row |= {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("accuracy/")}
        with open(self.file, "a") as file:
            file.write(json.dumps(row) + "\n")


class NoCallback:
    pass


class Refusing(Callback):
    def __init__(self, number=3):
        raise ValueError("no such number\nof anything")


class RefusingLogger(CSVLogger):
    def __init__(self):
        raise ValueError("no room")


class Failing(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        raise KeyError("no such column")


def accuracies(row):
    return {key: value for key, value in row.items() if key.startswith("accuracy/") and value not in ("", None)}


def csv_rows(folder):
    (file,) = folder.glob("**/metrics.csv")
    return list(csv.DictReader(file.open()))


def test_the_command_line_takes_callbacks_loggers_and_options_of_the_trainer(make_config, tiny_settings, tmp_path):
    notes = tmp_path / "notes.jsonl"
    added = (
        f"training.callbacks=[{{class_path: {__name__}.Notes, init_args: {{file: {notes}, word: hello}}}}]",
        "training.loggers=[{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {name: mine}}]",
        "training.trainer={log_every_n_steps: 1}",
    )
    assert main(["train", *tiny_settings, *QUICK, *added]) == 0
    run = latest_run(tmp_path / "runs")
    rows = [json.loads(line) for line in notes.read_text().splitlines()]
    assert [row["word"] for row in rows] == ["hello"] * 3 and all(row["finite"] for row in rows)
    for row, known in zip(rows, run.history, strict=True):  # of this very interval
        assert {key: row[key] for key in known if key.startswith("accuracy/")} == pytest.approx(accuracies(known))
    logged = csv_rows(run.path)
    assert (run.path / "mine") in next(run.path.glob("**/metrics.csv")).parents
    assert [set(accuracies(row)) for row in logged if accuracies(row)] == [
        {"accuracy/a", "accuracy/b"},
        {"accuracy/c"},
        {"accuracy/d"},
    ]
    by_task = {key: float(value) for row in logged for key, value in accuracies(row).items()}
    assert by_task == pytest.approx({key: value for row in run.history for key, value in accuracies(row).items()})
    losses = [float(row["loss"]) for row in logged if row.get("loss")]
    assert len(losses) == run.results["gradient_steps"]["total"] == 8


def test_a_script_gives_them_to_its_own_trainer(make_config, tmp_path):
    config = make_config(*QUICK)
    module = build_module(config, build_data(config))
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=[Notes(tmp_path / "notes.jsonl")],
        logger=CSVLogger(tmp_path / "logs"),
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=module.data)
    rows = [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and set(accuracies(rows[2])) == {f"accuracy/{task}" for task in "abcd"}
    logged = csv_rows(tmp_path / "logs")
    assert [set(accuracies(row)) for row in logged if accuracies(row)] == [
        {"accuracy/a", "accuracy/b"},
        {"accuracy/c"},
        {"accuracy/d"},
    ]
    assert set(module.accuracies("test")) == set("abcd")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.callbacks=[nowhere.Notes]", "training.callbacks: there is no nowhere.Notes"),
        (f"training.callbacks=[{__name__}.Nots]", "Nots"),
        ("training.callbacks=[Notes]", "training.callbacks: there is no Notes"),
        (NEW % (f"{__name__}.NoCallback", "{}"), "NoCallback must be a class of Lightning Callbacks"),
        (f"training.loggers=[{__name__}.Notes]", "Notes must be a class of Lightning Loggers"),
        (NEW % (f"{__name__}.Notes", "{}"), "Notes cannot be built (missing a required argument: 'file')"),
        (NEW % (f"{__name__}.Notes", "{file: x, loud: true}"), "unexpected keyword argument 'loud'"),
        (f"training.callbacks=[{{class_path: {__name__}.Notes, args: {{}}}}]", "class_path and init_args, got 'args'"),
        ("training.callbacks=[3]", "each entry is an import path or"),
        ("training.trainer={profilr: simple}", "no argument of lightning.Trainer; did you mean profiler?"),
        ("training.trainer={profiler: 1}", "training.trainer.profiler must be Profiler or text"),
        ("training.trainer={detect_anomaly: 0}", "training.trainer.detect_anomaly must be true or false, got 0"),
        ("training.trainer={return: null}", "return is no argument"),
        ("training.trainer={max_epochs: 3}", "decided by another setting: set training.steps_per_task"),
        (f"training.callbacks=[{{class_path: {__name__}.Notes, init_args: 5}}]", "must be a mapping of names"),
        ("training.trainer={fast_dev_run: true}", "decided by another setting: set training.steps_per_task"),
        ("training.trainer={enable_checkpointing: false}", "leave it out"),
        ("training.trainer={strategy: ddp}", "decided by another setting"),
        ("training.trainer={precision: 16}", "decided by another setting: set model.dtype"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run_folder(setting, said, tiny_settings, tmp_path, capsys):
    for dry in ((), ("--dry-run",)):
        assert main(["train", *dry, *tiny_settings, *QUICK, setting]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (f"training.callbacks=[{__name__}.Refusing]", "Refusing cannot be built (ValueError: no such number)"),
        (f"training.loggers=[{__name__}.RefusingLogger]", "RefusingLogger cannot be built (ValueError: no room)"),
        ("training.trainer={profiler: sundial}", "sundial"),
    ],
)
def test_what_shows_only_when_it_is_built_is_one_line_and_leaves_no_run(setting, said, tiny_settings, tmp_path, capsys):
    assert main(["train", *tiny_settings, *QUICK, setting]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list((tmp_path / "runs").glob("*/*/*"))


def test_a_file_of_the_users_may_lie_in_the_current_folder_and_may_be_wrong(
    tiny_settings, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "own_callback.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n"
        "class Marks(Callback):\n"
        "    def on_fit_start(self, trainer, module):\n"
        "        open('marked', 'w').close()\n"
    )
    assert main(["train", *tiny_settings, *QUICK, "training.callbacks=[own_callback.Marks]"]) == 0
    assert (tmp_path / "marked").exists()
    (tmp_path / "wrong_callback.py").write_text("nothing_of_this_name\n")
    assert main(["train", *tiny_settings, *QUICK, "training.callbacks=[wrong_callback.Marks]"]) == 2
    assert "importing wrong_callback.Marks fails (NameError: name" in capsys.readouterr().err


def test_a_callback_that_stops_training_is_named_as_the_cause(tiny_settings, capsys):
    stop = (
        "training.callbacks=[{class_path: lightning.pytorch.callbacks.EarlyStopping, "
        "init_args: {monitor: stage/accuracy, mode: max, stopping_threshold: 0.0}}]"
    )
    assert main(["train", *tiny_settings, *QUICK, stop]) == 2
    assert "a callback stopped training in stage" in capsys.readouterr().err


def test_a_hook_that_fails_is_named_and_the_run_can_go_on(tiny_settings, tmp_path, capsys):
    assert main(["train", *tiny_settings, *QUICK, f"training.callbacks=[{__name__}.Failing]"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert f"{__name__}.Failing.on_train_epoch_end must not fail, but raised KeyError: 'no such column'" in first
    assert len(rest) == 1 and "make resume" in rest[0]


def test_a_checkpoint_of_the_users_own_goes_into_the_runs_folder(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {filename: mine, monitor: loss}}"
    assert main(["train", *tiny_settings, *QUICK, f"training.callbacks=[{own}]"]) == 0
    run = latest_run(tmp_path / "runs")
    saved = [path for path in tmp_path.rglob("*mine*") if path.is_file()]
    assert saved and all(run.path in path.parents for path in saved)
