"""STBench (arXiv 2406.19065, MIT): questions on points, trajectories and roads of a city, as text.

Takes the folder `datasets/basic` as its authors publish it. Rows that show the same place or trip are divided into
splits together. One task is made here, `last_region`: the last region of a trajectory, which the right answer to
`trajectory_region` ends with. And one gets other options: of upstream's for `trajectory_region`, the only one with a
single region is right nine times in ten, so they are drawn from the right answers of all its rows.

    point_region -> last_region -> trajectory_region -> trajectory_anomaly
    direction -> navigation
"""

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from contextlora.errors import tail
from contextlora.tasks.faults import TaskSetError, shown
from contextlora.tasks.importers.mapping import SplitRule, TableMapping, TaskColumns
from contextlora.tasks.importers.tables import Row, read_tables

_FILES = {  # how a file's name begins -> its task
    "point_region_": "point_region",
    "trajectory_region_": "trajectory_region",
    "trajectory_anomaly_detection_": "trajectory_anomaly",
    "direction_determination": "direction",
    "navigation_": "navigation",
}
_TASKS = {  # task -> its question behind what upstream says of places, prerequisites
    "point_region": ("Which region does this point fall in?", []),
    "last_region": ("Which region does it pass last?", ["point_region"]),
    "trajectory_region": ("Which regions does it pass, in chronological order?", ["last_region"]),
    "trajectory_anomaly": ("Is this trajectory normal or anomalous?", ["trajectory_region"]),
    "direction": ("In which direction from A does B lie?", []),
    "navigation": ("Which road is the first one?", ["direction"]),
}
# The other edges join items of different places: no answer of the same scene can be shown.
_CONTEXT = {"trajectory_region": ["last_region"]}
_ASKED = re.compile(r" (?:Please|Therefore,|Options:) ")
_OPTION = re.compile(r"\(\d\) (\[[\d, ]+\]|\w[\w ]*)")
_REGION = re.compile(r"^Region \d+", re.MULTILINE)
_PLACE = re.compile(r"(-?\d+\.\d+)(?:, | and a latitude of )(-?\d+\.\d+)(?:, (\d+)\))?")
_MOST_OPTIONS, _DRAWN = 5, 100  # so many that five of them are different
_DECIMALS = 4  # of places, 10 m: the same region is written with four in one file, with seven in another


def read(sources: Sequence[str]) -> tuple[list[Row], TableMapping]:
    """The rows with question, options and answer apart, and the mapping that makes a task set of them.

    Raises:
        TaskSetError: there is no such file, or a row of one is another one's.
    """
    rows = read_tables([str(file) for source in sources for file in _files(Path(source).expanduser())])
    groups = _joined([_places(str(row.cells.get("Question"))) for row in rows])
    made = [
        Row(row.where, {**cells, "scene": row.where, "group": group}, row.folder)
        for row, group in zip(rows, groups, strict=True)
        for cells in _cells(row)
    ]
    routes = [row.cells["options"][0] for row in made if row.cells["task"] == "trajectory_region"]
    for row in made:
        if row.cells["task"] == "trajectory_region":
            drawn = random.Random(row.where).choices(routes, k=_DRAWN)
            row.cells["options"] = list(dict.fromkeys([*row.cells["options"], *drawn]))[:_MOST_OPTIONS]
    tasks = {
        name: TaskColumns(
            question=f"{{text}} {question}",
            options="options",
            answer="answer",
            answer_as="index_from_1",
            option_order="shuffled",
            scene="scene",
            where={"task": name},
            prerequisites=prerequisites,
            context=_CONTEXT.get(name, []),
            description=question,
        )
        for name, (question, prerequisites) in _TASKS.items()
    }
    return made, TableMapping("stbench", tasks, SplitRule(by="group", column="group", validation=15, test=20))


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        found = [file for file in sorted(source.rglob("*.jsonl")) if file.name.startswith(tuple(_FILES))]
        if not found:
            raise TaskSetError(f"folder {tail(source)} holds no file of STBench; name its datasets/basic")
        return found
    return [source]


def _cells(row: Row) -> Iterator[dict[str, object]]:
    question, answer = str(row.cells.get("Question")), str(row.cells.get("Answer"))
    task = next((task for start, task in _FILES.items() if str(row.cells["file"]).startswith(start)), "")
    facts, *asked = _ASKED.split(question.removeprefix("Question: "), maxsplit=1)
    regions = _REGION.findall(facts)
    options = {"point_region": regions, "trajectory_anomaly": ["normal", "anomalous"]}.get(task)
    options = options or _OPTION.findall("".join(asked))
    number = options.index(answer) + 1 if answer in options else int(re.match(r"\d*", answer)[0] or 0)
    if not task or not 1 <= number <= len(options):
        raise TaskSetError(f"{row.where} must be a row of STBench, got answer {shown(answer)} to {shown(question)}")
    if task == "trajectory_region":
        route = options[number - 1]
        yield {"task": "last_region", "text": facts, "options": regions, "answer": int(re.findall(r"\d+", route)[-1])}
        options, number = [route], 1
    yield {"task": task, "text": facts, "options": options, "answer": number}


def _places(question: str) -> set[tuple[object, ...]]:
    """All places of a map, or places and times of a trip."""
    found = _PLACE.findall(question)
    return {(round(float(x), _DECIMALS), round(float(y), _DECIMALS), time) for x, y, time in found}


def _joined(rows: Sequence[set[tuple[object, ...]]]) -> list[int]:
    """The number of the first row that each has a place in common with, also by way of others."""
    above = list(range(len(rows)))

    def top(number: int) -> int:
        while above[number] != number:
            above[number] = number = above[above[number]]
        return number

    first: dict[tuple[object, ...], int] = {}
    for number, places in enumerate(rows):
        for place in places:
            low, high = sorted((top(number), top(first.setdefault(place, number))))
            above[high] = low  # whatever the order of places
    return [top(number) for number in range(len(rows))]
