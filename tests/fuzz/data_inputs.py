"""More kinds of input, as in `inputs.py`: tables that are imported, questions to a run, and names of what is new."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from contextlora.backbones.published import PUBLISHED
from contextlora.tasks.importers import IMPORTERS

from .inputs import FINISHED, Input, mutate_some
from .mutations import mutate_text, odd_text

TABLES = Path("tables")
MAPPING = """\
name: machines
scene: "{site}-{machine}"
question: text
answer: label
tasks:
  cause: {where: {kind: cause}, options: [x, y], option_order: shuffled, description: what is broken}
  action: {where: {kind: [action]}, prerequisites: [cause], context: [cause], question: "{machine} , {text}"}
split: {by: group, column: site, validation: 20, test: 20, seed: 1, names: {test: [dev]}}
"""
_QUESTION = {"question": "sees p q . a ?", "options": ["red", "blue"]}


def prepare_tables(cwd: Path) -> None:
    """Writes a table of each kind, its mapping, and small files in the form of public data."""
    (cwd / TABLES).mkdir()
    (cwd / TABLES / "mapping.yaml").write_text(MAPPING)
    rows = []
    for number in range(20):
        own = {"site": f"s{number % 10}", "machine": f"m{number}", "x": "dry", "y": "worn"}
        rows.append({**own, "kind": "cause", "text": "what is wrong ?", "label": ("dry", "worn")[number % 2]})
        rows.append({**own, "kind": "action", "text": "now , what ?", "label": ("oil", "swap")[number % 2]})
    lines = [json.dumps(row) + "\n" for row in rows]
    (cwd / TABLES / "table.jsonl").write_text("".join(lines))
    (cwd / TABLES / "table.json").write_text(json.dumps(rows))
    cells = [",".join(f'"{cell}"' for cell in row.values()) + "\n" for row in rows]
    (cwd / TABLES / "table.csv").write_text(",".join(rows[0]) + "\n" + "".join(cells))
    failures = [
        {"question": f"{word} {n}", "options": ["flow", "heat"], "correct": [True, False], "asset_name": "pump"}
        | {"relevancy": "relevant_sensors_for_failure_mode"}
        for n, word in enumerate(("seal", "wear") * 10)
    ]
    roads = [{"Question": f"Question: {n}. Options: (1) road 4, (2) road 3.", "Answer": 1} for n in range(20)]
    for name, found in (("failures", failures), ("navigation_1", roads)):
        (cwd / TABLES / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


def imports(rng: random.Random) -> Input:
    table = TABLES / rng.choice(("table.csv", "table.jsonl", "table.json"))
    mapping, what = str(TABLES / "mapping.yaml"), "nothing but the arguments"
    if rng.random() < 0.2:
        mapping = rng.choice(IMPORTERS)
        table = TABLES / rng.choice(("failures.jsonl", "navigation_1.jsonl", "table.csv"))
        what = mutate_some([table], rng)
    elif rng.random() < 0.9:
        what = mutate_some([rng.choice((Path(mapping), table))], rng)
    else:
        mapping, table = mutate_text(mapping, rng), mutate_text(str(table), rng)
    to = ["--to", new_folder(rng)] if rng.random() < 0.1 else []
    return Input(["import", mapping, str(table), *to], what)


def questions(rng: random.Random) -> Input:
    words = ["d", "--question", _QUESTION["question"], *(f"--option={word}" for word in _QUESTION["options"])]
    words += ["--prerequisite", "a=red", "--prerequisite", f"c={json.dumps(_QUESTION)}", "--prerequisite", "b=blue"]
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(words))
        words[place] = mutate_text(words[place], rng)
    words += rng.choice(([], [], ["--image", odd_text(rng)], ["--image-text", odd_text(rng)]))
    return Input(["ask", "--run", str(FINISHED), *words], "nothing but the arguments")


def names(rng: random.Random) -> Input:
    if rng.random() < 0.5:
        return Input(["new-taskset", new_folder(rng)], "nothing but the arguments")
    name = odd_text(rng)
    # Which would be fetched.
    return Input(["model", name if name not in PUBLISHED else "gone"], "nothing but the arguments")


def new_folder(rng: random.Random) -> str:
    """Where a command may write, as far as it is up to the name."""
    return f"data/{odd_text(rng).replace('..', '')}"


DATA_KINDS: dict[str, Callable[[random.Random], Input]] = {
    function.__name__: function for function in (imports, questions, names)
}
