"""Driving with LLMs and STBench: small sources in the same form, and the data themselves where they lie."""

import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from contextlora.commands.import_ import import_
from contextlora.tasks.checks import check_taskset
from contextlora.tasks.faults import TaskSetError
from contextlora.tasks.importers import IMPORTERS
from contextlora.tasks.task import SPLITS, Item
from contextlora.tasks.taskset import TaskSet

DATA = Path(__file__).parents[4] / "shared/data"
DRIVE, CITY = DATA / "driving_with_llms/vqa_test_1k.tar.gz", DATA / "stbench"


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"public data are not here: shared/data/{path.parent.name}")


def imported(name: str, source: Path, folder: Path) -> TaskSet:
    import_(name, [str(source)], str(folder))
    return TaskSet.load(folder)


def all_items(taskset: TaskSet, task: str) -> list[Item]:
    return [item for split in SPLITS for item in taskset.items(task, split)]


def count(taskset: TaskSet) -> dict[str, int]:
    return {name: len(all_items(taskset, name)) for name in taskset.tasks}


def assert_no_place_is_favoured(taskset: TaskSet) -> None:
    """As often as chance has it, within four standard errors, the right option stands first."""
    for task in taskset.tasks:
        items = all_items(taskset, task)
        chance = sum(1 / len(item.options) for item in items)
        assert abs(sum(item.answer == 0 for item in items) - chance) < 4 * chance**0.5, task


# --- Driving with LLMs


def frame(number: int) -> str:
    """The text of a frame with one to four objects."""
    cars = 1 + number % 7 // 6
    objects = cars * [
        f"A moving car; Angle in degrees: 1.00; Distance: {20 + number}.00m; Direction of travel: from left to right; "
        f"My attention: {100 - 90 * (number % 2)}%"
    ]
    objects += [
        f"A pedestrian; Angle in degrees: -2.00; Distance: {9 - near}.50m; Direction of travel: same direction as "
        f"me; Crossing: False; My attention: {100 - 50 * near if number % 3 else 7}%"
        for near in range(number % 3)
    ]
    light = ["There is no traffic lights.", "There is a traffic light and it is red+yellow. It is 3.10m ahead."]
    return "\n".join(
        [
            *("", f"I'm observing {cars} cars and {number % 3} pedestrians.", *objects, light[number % 2]),
            *(
                "My current speed is 3.00 mph",
                "",
                "Here are my actions:",
                "",
                f"- Accelerator pedal {30 * (number % 2)}%",
            ),
            *(f"- Brake pedal {11 * (number % 3 == 2)}%", f"- Going to steer {number % 5}% to the left."),
        ]
    )


def write_drive(path: Path, num_frames: int) -> None:
    frames = [{"frame_num": n, "input_prompt": frame(n), "response_content": "{}"} for n in range(num_frames)]
    content = pickle.dumps(frames)
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("vqa_test_1k.pkl")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def test_driving_with_llms_gives_no_answer_away(tmp_path):
    write_drive(tmp_path / "drive.tar.gz", 450)
    taskset = imported("driving_with_llms", tmp_path / "drive.tar.gz", tmp_path / "set")
    assert set(count(taskset).values()) == {400}  # ten blocks of 45 without the first 5 of each
    item = {item.scene: item for item in all_items(taskset, "pedal")}["11"]
    assert item.question == (
        "A pedestrian; Angle in degrees: -2.00; Distance: 8.50m; Direction of travel: same direction as me; Crossing: "
        "False\nA pedestrian; Angle in degrees: -2.00; Distance: 9.50m; Direction of travel: same direction as me; "
        "Crossing: False\nA moving car; Angle in degrees: 1.00; Distance: 31.00m; Direction of travel: from left to "
        "right\nThere is a traffic light and it is red+yellow. It is 3.10m ahead.\nMy current speed is 3.00 mph\n"
        "Do I accelerate, brake or coast?"
    )
    assert item.prerequisites == {"cars": "1", "light": "red", "attention": "pedestrian"}
    by_scene = {task: {item.scene: item.answer_word for item in all_items(taskset, task)} for task in taskset.tasks}
    # Frame 11 accelerates by 30 % and brakes by 11 %.
    assert [by_scene["pedal"][scene] for scene in ("11", "8", "6")] == ["accelerate", "brake", "coast"]
    assert [by_scene["steering"][scene] for scene in ("12", "13")] == ["straight", "left"]
    assert [by_scene["attention"][scene] for scene in ("10", "6")] == ["car and pedestrian", "car"]
    assert_blocks_are_apart(taskset)


def assert_blocks_are_apart(taskset: TaskSet) -> None:
    """Frames of two splits are more than five apart."""
    place = {int(item.scene): split for split in SPLITS for item in taskset.items("cars", split)}
    for number in place:
        assert {place.get(number + step, place[number]) for step in range(6)} == {place[number]}


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "no frame"])
def test_driving_with_llms_names_another_file(tmp_path, damage):
    path = tmp_path / "drive.tar.gz"
    write_drive(path, 0 if damage == "no frame" else 90)
    whole = path.read_bytes()
    path.write_bytes({"text": b"a,b\n", "empty": b"", "cut": whole[:200]}.get(damage, whole))
    with pytest.raises(
        TaskSetError, match=r"drive\.tar\.gz must be vqa_test_1k\.tar\.gz of Driving with LLMs: [^\n]+$"
    ):
        imported("driving_with_llms", path, tmp_path / "set")
    assert not (tmp_path / "set").exists()


@needs(DRIVE)
def test_driving_with_llms(tmp_path):
    taskset = imported("driving_with_llms", DRIVE, tmp_path / "set")
    assert count(taskset) == dict.fromkeys(("cars", "light", "attention", "pedal", "steering"), 880)
    assert_blocks_are_apart(taskset)
    assert_no_place_is_favoured(taskset)
    words = {task: Counter(item.answer_word for item in all_items(taskset, task)) for task in taskset.tasks}
    assert set(words["light"]) == {"there is none", "red", "yellow", "green"}
    assert set(words["cars"]) == {"0", "1", "2", "3", "4 or more"}
    assert max(words["pedal"].values()) < 0.5 * 880 and max(words["steering"].values()) < 0.5 * 880
    for task in taskset.tasks:
        for item in all_items(taskset, task):
            assert not re.search(r"observing|attention: |Accelerator|Brake pedal|Going to steer", item.question)


# --- STBench


def square(x: float, y: float, decimals: int) -> str:
    corners = [(x, y), (x + 0.5, y), (x + 0.5, y + 0.5), (x, y + 0.5)]
    return ", ".join(f"({a:.{decimals}f}, {b:.{decimals}f})" for a, b in corners)


def city() -> dict[str, list[tuple[str, object]]]:
    """(question, answer) of each file; a map of four squares stands in both files of regions."""
    rng, files = random.Random(0), {}
    maps, end = [(100 + 2 * n, 30.0) for n in range(40)], "Answer only one option with no other texts. Answer: Option "
    directions = "North Northeast East Southeast South Southwest West Northwest".split()
    listed = ", ".join(f"({n}) {name}" for n, name in enumerate(directions, start=1))
    for x, y in maps:
        for name, decimals in (("point_region_4regions", 4), ("trajectory_region_length2", 7)):
            shown = "\n".join(f"Region {n}: [{square(x + n % 2 / 2, y + n // 2 / 2, decimals)}]" for n in (1, 2, 3, 4))
            head = f"Question: There are several regions below: \n{shown}\nNow there is a "
            if name.startswith("point"):
                place = rng.randrange(1, 5)
                text = f"{head}point with longitude {x}.7777 and latitude {y}. Please directly answer the number."
                files.setdefault(name, []).append((text, place))
                continue
            text = f"{head}trajectory: [({x}.8, {y})]. Note that it is continuous. Please answer which regions: "
            options = ", ".join(f"({n}) {route}" for n, route in enumerate(["[1, 2]", "[1]", "[1, 4, 3]"], start=1))
            files.setdefault(name, []).append(
                (f"{text}{options}. {end}", ("1): [1, 2]", "3): [1, 4, 3]")[int(x) % 4 // 2])
            )
        for word in ("normal", "anomalous"):
            trip = f"[({x}.10001, 34.5, 1477960001), ({x}.{rng.randrange(20000, 90000)}, 34.6, 1477960009)]"
            text = f"Question: Below is a trajectory: {trip}. It is anomalous or normal. Please answer if it is."
            files.setdefault(f"trajectory_anomaly_detection_{word}", []).append((text, word))
        text = f"Question: A has a longitude of {x}.5 and a latitude of {y}5, while B has a longitude of {x}.6 and a "
        text += f"latitude of {y}. Therefore, B is in the () from A. Please choose: {listed}. Please directly give it."
        files.setdefault("direction_determination", []).append((text, 8))
        text = (
            f"Question: Road 1: (location 0, location 4, {x}.4 meters). Now, you are at location 1 and want to go to "
        )
        text += "location 2, which road? Options: (1) road 4, (2) road 3.\nAnswer: The answer is ("
        files.setdefault("navigation_with_weights_5", []).append((text, 2))
    return files


def write_city(folder: Path) -> None:
    for name, rows in city().items():
        lines = [json.dumps({"Question": question, "Answer": answer}) + "\n" for question, answer in rows]
        (folder / "some").mkdir(parents=True, exist_ok=True)
        (folder / "some" / f"{name}.jsonl").write_text("".join(lines))


def test_stbench_from_a_small_source(tmp_path):
    write_city(tmp_path / "city")
    taskset = imported("stbench", tmp_path / "city", tmp_path / "set")
    assert count(taskset) == {
        "point_region": 40,
        "last_region": 40,
        "trajectory_region": 40,
        "trajectory_anomaly": 80,
        "direction": 40,
        "navigation": 40,
    }
    item = taskset.items("trajectory_region", "train")[0]
    assert item.question.endswith("it is continuous. Which regions does it pass, in chronological order?")
    assert sorted(item.options) == ["[1, 2]", "[1, 4, 3]"]  # never the right one of a row: [1]
    assert item.prerequisites == {"last_region": {"[1, 2]": "Region 2", "[1, 4, 3]": "Region 3"}[item.answer_word]}
    road = taskset.items("navigation", "train")[0]
    assert "to location 2, which road?" in road.question and road.answer_word == "road 3"
    assert taskset.items("direction", "train")[0].answer_word == "Northwest"
    assert taskset.items("trajectory_anomaly", "train")[0].question.endswith(
        "normal. Is this trajectory normal or anomalous?"
    )
    assert_places_are_apart(taskset)


def test_stbench_is_divided_alike_in_every_process(tmp_path):
    write_city(tmp_path / "city")
    code = (
        "import sys; from contextlora.commands.import_ import import_; import_('stbench', sys.argv[1:2], sys.argv[2])"
    )
    for seed in ("1", "2"):  # which orders sets of text
        command = [sys.executable, "-c", code, str(tmp_path / "city"), str(tmp_path / seed)]
        subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True)
    files = [path.relative_to(tmp_path / "1") for path in sorted((tmp_path / "1").rglob("*.jsonl"))]
    assert len(files) == 18
    assert all((tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes() for file in files)


def assert_places_are_apart(taskset: TaskSet) -> None:
    """No map and no trip is in two splits."""
    for tasks, pattern in (
        (("point_region", "trajectory_region"), r"Region 1: \[\((\d+\.\d{4})\d*, (\d+\.\d{4})"),
        (("trajectory_anomaly",), r"\[\((\d+\.\d+), (\d+\.\d+), (\d+)\)"),
        (("direction",), r"A has a longitude of ([\d.]+) and a latitude of ([\d.]+)"),
    ):
        first = [
            {re.search(pattern, item.question).groups() for task in tasks for item in taskset.items(task, split)}
            for split in SPLITS
        ]
        assert not first[0] & first[1] and not first[0] & first[2] and not first[1] & first[2]
    for task in taskset.tasks:
        shares = [len(taskset.items(task, split)) / count(taskset)[task] for split in SPLITS]
        assert min(shares) > 0.05 and shares[0] > 0.4, (task, shares)


@pytest.mark.parametrize(
    ("question", "answer"), [("Question: what? Please say (1) a, (2) b.", 3), ("Question: what?", 1), (None, None)]
)
def test_stbench_names_a_row_of_another_kind(tmp_path, question, answer):
    write_city(tmp_path / "city")
    with (tmp_path / "city/some/direction_determination.jsonl").open("a") as file:
        file.write(json.dumps({"Question": question, "Answer": answer}) + "\n")
    with pytest.raises(TaskSetError, match=r"direction_determination\.jsonl:41 must be a row of STBench, got answer"):
        imported("stbench", tmp_path / "city", tmp_path / "set")


def test_stbench_needs_its_files(tmp_path):
    with pytest.raises(TaskSetError, match="holds no file of STBench; name its datasets/basic"):
        imported("stbench", tmp_path, tmp_path / "set")


@needs(CITY)
def test_stbench(tmp_path):
    taskset = imported("stbench", CITY, tmp_path / "set")
    assert count(taskset) == {
        "point_region": 5000,
        "last_region": 2500,
        "trajectory_region": 2500,
        "trajectory_anomaly": 5000,
        "direction": 5000,
        "navigation": 2500,
    }
    assert_places_are_apart(taskset)
    assert_no_place_is_favoured(taskset)
    popular = [check.score for check in check_taskset(taskset) if check.probe == "option popularity"]
    assert len(popular) == 6 and max(popular) < 0.55  # of two options: .5
    for item in all_items(taskset, "trajectory_region"):
        assert item.prerequisites["last_region"].removeprefix("Region ") == item.answer_word.strip("[]").split(", ")[-1]


def test_every_importer_is_documented():
    text = (Path(__file__).parents[3] / "docs/importing.md").read_text()
    assert all(f"| `{name}` |" in text for name in IMPORTERS)
