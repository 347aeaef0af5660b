"""Lightning's `ddp` on several processes: the training of one, whatever changes from stage to stage.

Dropout, weight decay, gates and predicted answers are on.
"""

import pytest

from tests.gear.execution.test_resume import LENGTH

pytestmark = pytest.mark.processes


def test_processes_end_as_one_that_trains_alone(make_config, train_alone, train_together, assert_alike, tmp_path):
    """Also where shares of a batch are uneven, and where it has fewer rows than there are processes."""
    settings = {
        "contextlora": (),
        "uneven": ("training.batch_size=3",),
        "empty": ("training.batch_size=1",),
        "auto": ("method.delta=auto",),
        "joint": ("method=joint", "taskset.context=gold"),
        "o_lora": ("method=o_lora",),
        "mole": ("method=mole",),
    }
    configs = {name: make_config(*LENGTH, *some) for name, some in settings.items()}
    found = train_together(2, [(config, tmp_path / name, None) for name, config in configs.items()])
    for (name, config), by_process in zip(configs.items(), found, strict=True):
        alone = train_alone(config, tmp_path / f"{name}-alone")
        assert len({row["stage"] for row in alone.history}) > (name not in ("joint", "mole")), name
        for ours in by_process:
            assert_alike(ours, alone)
