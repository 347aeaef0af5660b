"""FailureSensorIQ (arXiv 2506.03278, CC BY 4.0): multi-choice questions on sensors and failures of industrial assets.

Takes `filtered_data_all_*.jsonl` as IBM publishes it. A scene is a cell, one sensor and one failure mode of one asset:
two tasks ask for its sensor, two for its failure mode, and both of a pair are right or wrong together. So cells, not
rows, are divided into splits.

    relevant_sensor -> relevant_failure -> irrelevant_failure <- irrelevant_sensor <- relevant_sensor
"""

from collections.abc import Sequence

from contextlora.tasks.faults import TaskSetError, shown
from contextlora.tasks.importers.mapping import SplitRule, TableMapping, TaskColumns
from contextlora.tasks.importers.tables import Row, listed, read_tables

_KINDS = {  # task -> its `relevancy`, what it asks for, prerequisites
    "relevant_sensor": ("relevant_sensors_for_failure_mode", "sensor", []),
    "relevant_failure": ("relevant_failure_modes_for_sensor", "failure", ["relevant_sensor"]),
    "irrelevant_sensor": ("irrelevant_sensors_for_failure_mode", "sensor", ["relevant_sensor"]),
    "irrelevant_failure": ("irrelevant_failure_modes_for_sensor", "failure", ["relevant_failure", "irrelevant_sensor"]),
}
# A cell is relevant or not: over the other edges no answer of the same scene can be shown.
_CONTEXT = {"relevant_failure": ["relevant_sensor"], "irrelevant_failure": ["irrelevant_sensor"]}


def read(sources: Sequence[str]) -> tuple[list[Row], TableMapping]:
    """The rows with a column `cell`, and the mapping that makes a task set of them.

    Raises:
        TaskSetError: the table is another one.
    """
    rows = read_tables(sources)
    asked = {relevancy: kind for relevancy, kind, _ in _KINDS.values()}
    words: dict[tuple[str, str], set[str]] = {}  # (asset, kind) -> all that is ever offered
    try:
        for row in rows:
            kind = asked[str(row.cells["relevancy"])]
            offered = map(str, listed(row.cells["options"]))
            words.setdefault((str(row.cells["asset_name"]), kind), set()).update(offered)
        made = [Row(row.where, {**row.cells, "cell": _cell(row, asked, words)}, row.folder) for row in rows]
    except KeyError as error:
        raise TaskSetError(
            f"{rows[0].where} must be of FailureSensorIQ's filtered_data_all: {shown(error.args[0])} is no column or "
            "kind of that; name the file"
        ) from None
    tasks = {
        name: TaskColumns(
            question="question",
            options="options",
            answer="correct",
            answer_as="one_hot",
            scene="cell",
            where={"relevancy": relevancy},
            prerequisites=prerequisites,
            context=_CONTEXT.get(name, []),
            description=f"which {kind} is {name.partition('_')[0]}",
        )
        for name, (relevancy, kind, prerequisites) in _KINDS.items()
    }
    return made, TableMapping("failuresensoriq", tasks, SplitRule(by="scene", validation=15, test=25))


def _cell(row: Row, asked: dict[str, str], words: dict[tuple[str, str], set[str]]) -> str:
    """Asset, sensor and failure: the right option, and what the question names."""
    asset, kind, question = str(row.cells["asset_name"]), asked[str(row.cells["relevancy"])], str(row.cells["question"])
    other = "failure" if kind == "sensor" else "sensor"
    named = [word for word in words.get((asset, other), ()) if word in question]
    if not named:
        raise TaskSetError(f"{row.where} must name a {other} of {asset}, got {shown(question)}")
    options, flags = listed(row.cells["options"]), listed(row.cells["correct"])
    if True not in flags[: len(options)]:
        raise TaskSetError(f"{row.where} must have one correct option, got {shown(row.cells['correct'])}")
    pair = {kind: str(options[flags.index(True)]), other: max(named, key=len)}  # "pressure or vacuum" holds "pressure"
    return f"{asset} / {pair['sensor']} / {pair['failure']}"
