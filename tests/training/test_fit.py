"""The trainer's settings, and quiet training."""

import pytest

from contextlora.errors import ConfigError
from contextlora.training.fit import TrainerSettings


@pytest.mark.parametrize("settings", [{"accelerator": "abacus"}, {"strategy": "guess"}])
def test_what_lightning_does_not_know_is_refused_in_one_line(settings):
    ((key, value),) = settings.items()
    with pytest.raises(ConfigError, match=rf"{key}={value}.*invalid {key} name") as error:
        TrainerSettings(**settings).trainer([], [])
    assert len(str(error.value).splitlines()) == 1


def test_training_says_nothing(make_config, train, tmp_path, capfd, recwarn):
    train(make_config(), tmp_path)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert [str(warning.message) for warning in recwarn] == []
    assert "tip" not in captured.err.lower()
    assert "warn" not in captured.err.lower()
