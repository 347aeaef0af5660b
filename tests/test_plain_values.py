"""Settings mean what they seem to mean, and can be read again."""

import pytest

from contextlora.config import load_config
from contextlora.errors import ConfigError


@pytest.mark.parametrize("value", ["010", "-007", "1:30", "12:30:45", "0_7"])
def test_a_number_is_not_read_as_another(tmp_path, value):
    """YAML 1.1 takes 010 for 8 and 1:30 for 90."""
    for argument in (f"seed={value}", f"tracking.project={value}", f"training.loggers=[{value}]"):
        with pytest.raises(ConfigError, match="is another number in YAML than it seems to be; write it without"):
            load_config([argument])
    (tmp_path / "default.yaml").write_text(f"training:\n  batch_size: {value}\n")
    with pytest.raises(ConfigError, match=rf"{value} in .*default\.yaml is another number"):
        load_config([], tmp_path)
    assert load_config([f"tracking.project='{value}'"]).tracking.project == value


def test_what_could_not_be_read_again_is_refused():
    with pytest.raises(ConfigError, match=r"tracking.project must not hold \$\{, got '\$\{oc.env:X\}'; write the"):
        load_config([r"tracking.project='\${oc.env:X}'"])
