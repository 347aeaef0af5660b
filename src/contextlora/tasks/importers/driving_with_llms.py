"""Driving with LLMs (arXiv 2310.01957, Apache-2.0): what a car sees on a simulated drive, and what its driver does.

Takes `vqa_test_1k.tar.gz` as Wayve publishes it. A scene is a frame, and neighbouring frames are near copies of one
another: so blocks of the drive are divided into splits, with a gap between two of them. The texts give answers away,
which are left out: how many objects there are, how much attention each gets, and what the driver does.

    cars -> attention -> pedal, steering <- light
"""

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from contextlora.errors import first_line, tail
from contextlora.files import check_ordinary
from contextlora.tasks.faults import TaskSetError
from contextlora.tasks.importers.mapping import SplitRule, TableMapping, TaskColumns
from contextlora.tasks.importers.tables import Row

_BLOCK, _GAP = 45, 5  # frames, of about a second
_MOST_BYTES = 1 << 30
_LEAST_PEDAL, _LEAST_STEERING = 10, 2  # per cent; below, the car coasts and goes straight

# The archive holds a pickle, which could run code if it were read as one. All that is needed of it stands in plain
# text, one for each frame.
_FRAME = re.compile(
    rb"I'm observing \d+ cars and \d+ pedestrians\.\n(.*?)\s+Here are my actions:\s+- Accelerator pedal (\d+)%\n"
    rb"- Brake pedal (\d+)%\n- Going to steer (\d+)% to the (left|right)\.",
    re.DOTALL,
)
_OBJECT = re.compile(r"A (?:\w+ )?(car|pedestrian);.* Distance: (-?[\d.]+)m;.*(; My attention: (\d+)%)")
_LIGHT = re.compile(r"There is a traffic light and it is (\w+)")

_TASKS = {  # task -> what it asks for, prerequisites
    "cars": ("How many cars do I observe?", []),
    "light": ("What does the traffic light ahead show?", []),
    "attention": ("Which kind of object has most of my attention?", ["cars"]),
    "pedal": ("Do I accelerate, brake or coast?", ["light", "attention"]),
    "steering": ("Where do I steer?", ["light", "attention"]),
}


def read(sources: Sequence[str]) -> tuple[list[Row], TableMapping]:
    """A row for each frame, and the mapping that makes a task set of them.

    Raises:
        TaskSetError: a file is another one.
    """
    rows = [row for source in sources for row in _frames(Path(source).expanduser())]
    tasks = {
        name: TaskColumns(
            question=f"{{text}}\n{question}",
            answer=name,
            scene="frame",
            prerequisites=prerequisites,
            description=question,
        )
        for name, (question, prerequisites) in _TASKS.items()
    }
    return rows, TableMapping("driving_with_llms", tasks, SplitRule(by="group", column="block", validation=15, test=25))


def _frames(path: Path) -> list[Row]:
    try:
        check_ordinary(path, _MOST_BYTES)
        with tarfile.open(path) as archive:
            sizes = {entry.name: entry.size for entry in archive if entry.isfile() and entry.name.endswith(".pkl")}
            found = [
                frame
                for name in sizes
                if sizes[name] <= _MOST_BYTES
                for frame in _FRAME.findall(archive.extractfile(name).read())
            ]
        reason = "it holds no frame"
    except Exception as error:  # tar and each compression have kinds of their own
        found, reason = [], first_line(error)
    if not found:
        raise TaskSetError(f"{tail(path)} must be vqa_test_1k.tar.gz of Driving with LLMs: {reason}; name that file")
    cells = [_cells(*(part.decode("utf-8", "replace") for part in frame)) for frame in found]
    return [
        Row(f"{path.name}:{number}", {"frame": str(number), "block": number // _BLOCK, **row}, path.parent)
        for number, row in enumerate(cells)
        if number % _BLOCK >= _GAP
    ]


def _cells(text: str, accelerator: str, brake: str, steering: str, side: str) -> dict[str, str]:
    """The text without answers, the nearest object first, as upstream's order tells of attention; and the answers."""
    lines = text.split("\n")
    objects = [found for line in lines if (found := _OBJECT.fullmatch(line))]
    shown = [found[0].replace(found[3], "") for found in sorted(objects, key=lambda found: float(found[2]))]
    others = [line for line in lines if not _OBJECT.fullmatch(line)]
    light = _LIGHT.search(text)  # "red+yellow" is still red
    most = max((int(found[4]) for found in objects), default=0)
    watched = sorted({found[1] for found in objects if most and int(found[4]) == most})
    num_cars = sum(found[1] == "car" for found in objects)
    return {
        "text": "\n".join([*shown, *others]),
        "cars": "4 or more" if num_cars > 3 else str(num_cars),
        "light": light[1] if light else "there is none",
        "attention": " and ".join(watched) or "none",
        "pedal": _pedal(int(accelerator), int(brake)),
        "steering": side if int(steering) > _LEAST_STEERING else "straight",
    }


def _pedal(accelerator: int, brake: int) -> str:
    if max(accelerator, brake) <= _LEAST_PEDAL:
        return "coast"
    return "accelerate" if accelerator > brake else "brake"
