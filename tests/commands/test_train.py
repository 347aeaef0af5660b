"""Whole runs of a tiny task set and tiny models: results, resuming, refusals, comparison."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaModel

from contextlora.assembly.build import build_data, build_module
from contextlora.backbones.faults import BackboneError
from contextlora.backbones.scoring import option_scores
from contextlora.commands.evaluate import evaluate
from contextlora.commands.export import export
from contextlora.commands.resume import resume
from contextlora.commands.train import _new_folder, train
from contextlora.config import load_config, to_yaml
from contextlora.errors import UserError
from contextlora.runs import RunFolder, find_runs, latest_run
from contextlora.tasks.prompts import render
from contextlora.training.checkpoint import CheckpointError
from contextlora.training.module import ContextLoraModule
from contextlora.training.stage_files import StageFiles

TASK_KEYS = ["chance", "zero_shot", "own_stage", "final", "end_to_end", "n"]


def stage_weights(run):
    return [load_file(path) for path in sorted((run.path / "checkpoints").glob("stage-*.safetensors"))]


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_leaves_everything_that_is_promised(make_config):
    config = make_config()
    run = train(config)
    assert run.state == "finished"
    assert latest_run(config.runs_dir).path == run.path
    results = json.loads(run.results_file.read_text())
    expected = "taskset method seed deltas context trainable_parameters train_seconds tasks".split()
    assert set(expected) < set(results)
    assert (results["taskset"], results["method"], results["context"]) == ("tiny", "contextlora", "predicted")
    assert results["deltas"] == dict.fromkeys(("a->c", "b->c", "a->d", "c->d"), 0.5)
    assert list(results["tasks"]) == ["a", "b", "c", "d"]
    assert all(list(row) == TASK_KEYS for row in results["tasks"].values())
    assert results["gradient_steps"] == {"total": 20, "stages": [10, 5, 5]}
    assert [row["stage"] for row in run.history] == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # each validates three times
    figures = {path.name for path in (run.path / "figures").iterdir()}
    assert figures == {"plan.png", "accuracy_matrix.png", "learning.png"}
    assert load_config(saved=run.config_file) == config


def test_a_stage_file_that_is_gone_for_good_is_refused_before_training_goes_on(make_config, monkeypatch):
    run = train(make_config("training.steps_per_task=1"))
    (run.path / "checkpoints" / "stage-1.safetensors").unlink()
    run._set_state("failed")
    monkeypatch.setattr("contextlora.commands.train.fit", lambda *_, **__: pytest.fail("it went on"))
    with pytest.raises(UserError, match=r"stage-1\.safetensors is missing.*train again"):
        resume(run)


def test_a_last_stage_file_that_is_gone_is_no_loss(make_config, capsys):
    config = make_config("training.steps_per_task=1")
    run = train(config)
    before = stage_weights(run)
    (run.path / "checkpoints" / "stage-3.safetensors").unlink()
    evaluate(config, run)
    assert "stage-3.safetensors was missing" in capsys.readouterr().out
    assert_same(stage_weights(run), before)


def test_what_killed_processes_left_among_the_runs_goes_at_the_next_start(make_config):
    config = make_config()
    (earlier := _new_folder(config))._set_state("failed")
    (left := earlier.path / ".plan.json.new-12ab").touch()
    os.utime(left, (0, 0))
    _new_folder(config)
    assert not left.exists()


def test_an_exported_adapter_scores_as_the_run_did_in_plain_peft(make_config, model_folder):
    run = train(make_config("training.learning_rate=0.05"))
    config = load_config(saved=run.config_file)
    module = build_module(config, build_data(config))
    StageFiles(run.path / "checkpoints", module).load_last()
    taskset, adapted = module.data.taskset, module.adapted
    batch = module.data.backbone.encode([render(item, taskset.tasks["d"]) for item in taskset.items("d", "test")])
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run.path / "adapters" / "d").eval()
    with torch.no_grad(), adapted.eval().active(module.uses["d"], "d"):
        ours = option_scores(adapted.model, batch)
        theirs = option_scores(model, batch)
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ["joint", "per_task", "sequential"])
def test_other_methods_take_the_same_steps_with_the_same_parameters(method, make_config):
    config = make_config("method.variant=paper")
    ours = build_module(config, build_data(config)).adapted.num_parameters()
    results = train(make_config(f"method={method}")).results
    assert results["gradient_steps"]["total"] == 20
    assert results["trainable_parameters"] == ours


@pytest.mark.parametrize("kind", ["qwen2", "gemma", "gpt2"])
def test_other_architectures_go_the_same_way(kind, make_config, other_model_folder):
    run = train(make_config(f"model={other_model_folder(kind)}", "training.steps_per_task=2"))
    assert run.state == "finished"


def test_a_dry_run_shows_the_plan_and_leaves_no_run(make_config, capsys):
    config = make_config("method.delta=0.5")
    assert train(config, dry_run=True) is None
    assert not Path(config.runs_dir).exists()
    shown = capsys.readouterr().out
    for text in ("delta: 0.5", "task graph", "rank partition, R = 8", "1/1/0", "trainable: ", "memory: about"):
        assert text in shown


def test_a_dry_run_says_that_a_method_may_change_what_is_shown(make_config, capsys):
    for delta, says in (("auto", True), ("1", False)):
        train(make_config(f"method.delta={delta}"), dry_run=True)
        assert ("this is how training begins" in capsys.readouterr().out) is says


def test_evaluating_a_run_again_gives_the_same_figures(make_config):
    config = make_config()
    run = train(config)
    again = evaluate(config, run)
    for key in ("tasks", "accuracy_matrix", "interference", "validation", "references", "calibration", "bias"):
        assert json.loads(json.dumps(again[key])) == run.results[key], key


def test_ctrl_c_leaves_an_interrupted_run_that_resumes_to_the_same_weights(make_config, monkeypatch):
    whole = train(make_config())
    start = ContextLoraModule.on_train_epoch_start

    def interrupt(self):
        start(self)
        if len(self.progress.history) == 4:
            raise KeyboardInterrupt

    config = make_config()
    monkeypatch.setattr(ContextLoraModule, "on_train_epoch_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.setattr(ContextLoraModule, "on_train_epoch_start", start)
    (run,) = find_runs(config.runs_dir, finished=False)
    assert run.state == "interrupted"
    resume(run)
    assert run.state == "finished"
    assert_same(stage_weights(run), stage_weights(whole))
    with pytest.raises(UserError, match="is finished"):
        resume(run)


def test_a_killed_process_resumes_to_the_same_weights(make_config):
    config = make_config("training.steps_per_task=12", "training.validate_every_steps=2")
    expected = stage_weights(train(config))
    (whole,) = Path(config.runs_dir).glob("*/*/*/config.yaml")
    code = (
        "import sys; from contextlora.commands.train import train; from contextlora.config import load_config;"
        "from pathlib import Path; train(load_config(saved=Path(sys.argv[1])))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(whole)], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 300
        killed = None
        while killed is None and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
            started = [
                path for path in Path(config.runs_dir).glob("*/*/*/metrics.jsonl") if whole.parent != path.parent
            ]
            if started and len(started[0].read_text().splitlines()) >= 7:  # in the second stage
                process.send_signal(signal.SIGKILL)
                killed = RunFolder(started[0].parent)
    finally:
        process.kill()
        process.wait()
    assert killed is not None
    assert killed.state == "interrupted"
    assert not killed.results_file.exists()
    resume(killed)
    assert_same(stage_weights(killed), expected)


def test_a_checkpoint_of_another_backbone_is_refused_when_resuming(make_config, other_model_folder, monkeypatch):
    config = make_config()
    run = train(config)
    other = RunFolder.create(config.runs_dir, "tiny", "contextlora", 0, to_yaml(make_config("model.dtype=bfloat16")))
    (run.path / "checkpoints").rename(other.path / "checkpoints")
    other._set_state("interrupted")
    with pytest.raises(CheckpointError, match=r"with the dtype that it was made with: it has torch\.float32") as caught:
        resume(other)
    assert not hasattr(caught.value, "__notes__")  # resuming again would end the same way


def test_a_mistake_leaves_no_run_folder(make_config):
    config = make_config("method.edge_delta={'a->d': 0.5, 'b->d': 0.5}")
    with pytest.raises(UserError, match="b->d"):
        train(config)
    assert not Path(config.runs_dir).exists()


def test_a_failure_after_training_leaves_weights_that_can_be_used(make_config, monkeypatch):
    config = make_config("training.steps_per_task=2")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no such device"):
        patch.setattr("contextlora.commands.train.measure", Mock(side_effect=RuntimeError("no such device")))
        train(config)
    (run,) = find_runs(config.runs_dir, finished=False)
    assert run.state == "trained"
    export(config, run)
    assert {path.name for path in (run.path / "adapters").iterdir()} == set("abcd")
    assert set(evaluate(config, run)["tasks"]) == set("abcd")
    trained = stage_weights(run)
    resume(run)
    assert run.state == "finished"
    assert_same(stage_weights(run), trained)


def test_a_model_that_cannot_read_is_named_before_there_is_a_run(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(LlamaModel, "forward", Mock(side_effect=IndexError("index out of range")))
    with pytest.raises(BackboneError, match="its forward of a first prompt: index out of range"):
        train(make_config())
    assert not [*tmp_path.glob("runs/*/*")]


def test_the_attention_that_was_measured_is_said(make_config, capsys):
    train(make_config("model.attn_implementation=auto"), dry_run=True)
    assert re.search(r"^attention: (eager|sdpa)$", capsys.readouterr().out, re.MULTILINE)
