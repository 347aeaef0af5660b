"""From a run's folder to answers."""

import pytest

import contextlora
from contextlora.config import to_yaml
from contextlora.errors import UserError
from contextlora.methods import METHODS
from contextlora.runs import RunFolder
from tests.trained import trained_run

OPTIONS = ["red", "blue", "green"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_as_it_was_trained(make_config, method):
    run, module = trained_run(make_config(f"method={method}"))
    item = module.data.taskset.items("b", "test")[0]
    answer = contextlora.load(run.path).ask("b", item.question, item.options)
    expected = module.evaluator.answer("b", [item], [{}]).scores[0].softmax(dim=0)
    assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_settings_may_deviate_from_those_of_the_run(make_config):
    run, _ = trained_run(make_config())
    assert contextlora.load(run.path).data.context == "predicted"
    assert contextlora.load(run.path, "taskset.context=none").data.context == "none"


def test_the_latest_finished_run_is_found_without_a_name(make_config, tmp_path, monkeypatch):
    run, _ = trained_run(make_config())
    run.finish({})
    monkeypatch.chdir(tmp_path)
    assert contextlora.load().ask("a", "sees p q . a ?", OPTIONS).option in OPTIONS


def test_what_is_no_trained_run_is_refused(make_config, tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        contextlora.load(tmp_path)
    config = make_config()
    run = RunFolder.create(config.runs_dir, "tiny", "contextlora", 0, to_yaml(config))
    run._set_state("failed")
    with pytest.raises(UserError, match="the run is failed, which must be trained first; continue it with: make resum"):
        contextlora.load(run.path)


def test_a_damaged_run_says_what_is_damaged(make_config):
    run, _ = trained_run(make_config())
    path = run.path / "checkpoints" / "stage-2.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"stage-2\.safetensors is damaged"):
        contextlora.load(run.path)
