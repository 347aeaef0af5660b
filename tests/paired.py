"""The tiny task set with two items of each task in a scene: by their ids all is as in the tiny one."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def paired_folder(taskset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """c names its items of a and b, d that of c alone, whose a is then its own."""
    folder = shutil.copytree(taskset_folder, tmp_path_factory.mktemp("paired") / "paired")
    for path in folder.glob("*/*.jsonl"):
        items = [json.loads(line) for line in path.read_text().splitlines()]
        for number, item in enumerate(items):
            named = {"c": ("a", "b"), "d": ("c",)}.get(path.stem, ())
            item |= {"scene": f"{path.parent.name}-{number // 2}", "parents": dict.fromkeys(named, item["id"])}
            item["prerequisites"] = {}
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder
