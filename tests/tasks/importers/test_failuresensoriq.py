"""FailureSensorIQ: a small source in the same form, and the data themselves where they lie."""

import json
from pathlib import Path

import pytest

from contextlora.commands.import_ import import_
from contextlora.tasks.faults import TaskSetError
from contextlora.tasks.task import SPLITS
from contextlora.tasks.taskset import TaskSet

FAILURES = Path(__file__).parents[4] / "shared/data/failuresensoriq/filtered_data_all_Mar_30_2025.jsonl"


def imported(source: Path, folder: Path) -> TaskSet:
    import_("failuresensoriq", [str(source)], str(folder))
    return TaskSet.load(folder)


def count(taskset: TaskSet) -> dict[str, int]:
    return {name: sum(len(taskset.items(name, split)) for split in SPLITS) for name in taskset.tasks}


def failures() -> str:
    """Two assets with three sensors and two failures each; every pair of the first two sensors is relevant."""
    lines = []
    for asset in [f"pump{number}" for number in range(8)]:
        sensors, modes = ["flow", "oil heat", "noise"], ["worn seal", "dry bearing"]
        for sensor in sensors:
            for mode in modes:
                kind = "irrelevant" if sensor == "noise" else "relevant"
                for of, asked, right, words in (
                    ("sensors_for_failure_mode", mode, sensor, sensors),
                    ("failure_modes_for_sensor", sensor, mode, modes),
                ):
                    cells = {"question": f"For {asset}, what goes with {asked}?", "options": words, "asset_name": asset}
                    cells |= {"correct": [word == right for word in words], "relevancy": f"{kind}_{of}"}
                    lines.append(json.dumps(cells))
    return "\n".join(lines)


def test_failuresensoriq_from_a_small_source(tmp_path):
    (tmp_path / "few.jsonl").write_text(failures())
    taskset = imported(tmp_path / "few.jsonl", tmp_path / "set")
    assert count(taskset) == {
        "relevant_sensor": 32,
        "relevant_failure": 32,
        "irrelevant_sensor": 16,
        "irrelevant_failure": 16,
    }
    item = taskset.items("relevant_failure", "test")[0]
    assert item.prerequisites["relevant_sensor"] in item.question and item.answer_word in item.scene


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"correct": [False, False, False]}, r"few\.jsonl:1 must have one correct option, got \[False"),
        ({"relevancy": ["x"]}, r"must be of FailureSensorIQ's filtered_data_all: .* is no column or kind of that"),
        ({"question": 3}, r"few\.jsonl:1 must name a failure of pump0, got '3'"),
    ],
)
def test_failuresensoriq_names_a_row_of_another_kind(tmp_path, change, said):
    first, *others = failures().split("\n")
    (tmp_path / "few.jsonl").write_text("\n".join([json.dumps(json.loads(first) | change), *others]))
    with pytest.raises(TaskSetError, match=said):
        imported(tmp_path / "few.jsonl", tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.skipif(not FAILURES.exists(), reason="public data are not here: shared/data/failuresensoriq")
def test_failuresensoriq_is_split_by_cell(tmp_path):
    taskset = imported(FAILURES, tmp_path / "set")
    # As its own table of tasks counts them.
    assert count(taskset) == {
        "relevant_sensor": 470,
        "relevant_failure": 453,
        "irrelevant_sensor": 872,
        "irrelevant_failure": 872,
    }
    pairs = [("relevant_failure", "relevant_sensor"), ("irrelevant_failure", "irrelevant_sensor")]
    for split in SPLITS:
        for child, parent in pairs:  # every cell of the child is one of its parent, whose answer its question names
            for item in taskset.items(child, split):
                assert taskset.parent(parent, split, item).answer_word == item.prerequisites[parent]
                assert item.prerequisites[parent] in item.question and item.answer_word in item.scene
