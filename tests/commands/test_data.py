"""`contextlora data --stats`: what it shows, without the model's weights."""

import shutil

import pytest

from contextlora.commands.data import data
from contextlora.errors import UserError


def test_stats_need_no_weights(make_config, model_folder, tmp_path, capsys):
    shutil.copytree(model_folder, tmp_path / "m")
    (tmp_path / "m/model.safetensors").write_bytes(b"")
    data(make_config(f"model={tmp_path / 'm'}"), stats=True)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line[:1] == ["c"] and line[1] != "->"]
    assert rows[0][:6] == ["c", "24", "12", "12", "3", "33.3"]
    assert ["a", "->", "c", "24", "of", "24", "12", "of", "12", "12", "of", "12"] in lines
    # sees p q . c ? given : a red , b blue . options : red , blue , green . answer :
    assert rows[1] == ["c", "24", "24", "24", "1", "1", "1", "0.0"]


def test_context_is_counted_where_training_shows_it(make_config, capsys):
    data(make_config("taskset.context=none"), stats=True)
    assert ["c", "16", "16", "16"] in [line.split()[:4] for line in capsys.readouterr().out.splitlines()]


def test_a_model_without_a_tokenizer_is_named(make_config, tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "m")
    (tmp_path / "m/tokenizer.json").unlink()
    with pytest.raises(UserError, match="it has no tokenizer that can be read"):
        data(make_config(f"model={tmp_path / 'm'}"), stats=True)
