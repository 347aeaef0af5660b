"""Tables of a run, for the terminal (rich) and for docs/results.md (markdown)."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contextlora.graph.plan import TrainingPlan
from contextlora.graph.task_graph import TaskGraph
from contextlora.tracking import Tracker

MAX_WIDTH = 1_000_000  # characters, for names of any length


def percent(value: float | None) -> str:
    """0.9312 -> "93.1"; a dash for what does not exist."""
    # Only nan differs from itself.
    return "-" if value is None or value != value else f"{100 * value:.1f}"


def interval(bounds: Sequence[float]) -> str:
    """(0.91, 0.95) -> "91.0-95.0"."""
    return f"{percent(bounds[0])}-{percent(bounds[1])}"


def results_table(results: Mapping[str, Any]) -> Table:
    """One row per task: chance, zero-shot, own stage, final, end to end with its 95 % interval. In percent."""
    table = _table(f"{results['taskset']}, {results['method']}, seed {results['seed']}: accuracy in %", "task")
    for column in ("chance", "zero-shot", "own stage", "final", "end to end", "95 % interval", "n"):
        table.add_column(column, justify="right")
    for task, row in results["tasks"].items():
        accuracies = [percent(row[key]) for key in ("chance", "zero_shot", "own_stage", "final")]
        bounds = interval(results["intervals"][task]["end_to_end"])
        table.add_row(task, *accuracies, Text(percent(row["end_to_end"]), "bold"), bounds, str(row["n"]))
    return table


def references_table(results: Mapping[str, Any]) -> Table:
    """What the end-to-end accuracy has to be read against, per task, in percent."""
    table = _table("references, accuracy in %", "task")
    for column in ("majority", "one prerequisite", "symbolic composition", "end to end"):
        table.add_column(column, justify="right")
    for task, row in results["references"].items():
        single = max(row["single_prerequisite"].values(), default=None)  # a root has none
        end_to_end = percent(results["tasks"][task]["end_to_end"])
        table.add_row(task, percent(row["majority"]), percent(single), percent(row["symbolic"]), end_to_end)
    return table


def log_results(tracker: Tracker, results: Mapping[str, Any]) -> None:
    """Logs the results table, the accuracy matrix and the figures that stand for the run."""
    columns = ("task", "chance", "zero_shot", "own_stage", "final", "end_to_end", "n")
    rows = [[task, *(row[key] for key in columns[1:])] for task, row in results["tasks"].items()]
    tracker.log_table("results", columns, rows)
    stages = [f"stage {number + 1}" for number in range(len(results["stages"]))]
    matrix = [[task, *row] for task, row in results["accuracy_matrix"].items()]
    tracker.log_table("accuracy_matrix", ["task", *stages], matrix)
    summary = {f"{task}/{key}": row[key] for task, row in results["tasks"].items() for key in columns[1:]}
    # Of accuracies only: the last column, n, is a count.
    means = {f"mean/{key}": sum(row[key] for row in results["tasks"].values()) / len(rows) for key in columns[1:-1]}
    tracker.log_summary(summary | means)


def graph_table(graph: TaskGraph) -> Table:
    """Generations of the task graph, with each task's prerequisites."""
    table = _table("task graph", "generation")
    table.add_column("task")
    table.add_column("needs")
    for number, generation in enumerate(graph.generations, start=1):
        for task in generation:
            table.add_row(str(number), task, ", ".join(graph.prerequisites(task)) or "-")
    return table


def partition_table(plan: TrainingPlan) -> Table:
    """Which ranks of the one LoRA each slice holds, and which tasks run them."""
    table = _table(f"rank partition, R = {plan.partition.total_rank}", "slice")
    table.add_column("ranks", justify="right")
    table.add_column("used by")
    for name in plan.partition.ranks:
        indices = plan.partition.indices(name)
        users = [task for task, use in plan.uses.items() if name in use.active]
        table.add_row(name, f"{indices.start}-{indices.stop - 1}", ", ".join(users))
    return table


def stages_table(plan: TrainingPlan, steps: Sequence[int], trainable: Sequence[int]) -> Table:
    """One row per stage: its tasks, every slice's ranks as train/freeze/mask, step budget, trainable parameters."""
    table = _table("stages: ranks that train / freeze / mask", "stage")
    table.add_column("trains")
    for name in plan.partition.ranks:
        table.add_column(name, justify="center")
    table.add_column("steps", justify="right")
    table.add_column("trainable", justify="right")
    for number, tasks in enumerate(plan.stages):
        statuses = plan.statuses(tasks)
        cells = [_status(statuses[name]) for name in plan.partition.ranks]
        table.add_row(str(number + 1), ", ".join(tasks), *cells, str(steps[number]), f"{trainable[number]:,}")
    return table


def _status(status: Mapping[str, int]) -> Text:
    text = f"{status['train']}/{status['freeze']}/{status['mask']}"
    colour = "green" if status["train"] else "cyan" if status["freeze"] else "dim"
    return Text(text, colour)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table: first column to the left, the others to the right."""
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ruler, *rows)) + "\n"


def as_rich(title: str, header: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """The same rows for the terminal."""
    table = _table(title, header[0])
    for column in header[1:]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def print_in_full(console: Console, table: Table) -> None:
    """Prints a table that may be wider than the terminal, which then breaks its lines: no figure is cut off."""
    if table.title:  # as a line of its own: within the table it would be broken at the table's width
        console.print(f"{table.title}", style=table.title_style, soft_wrap=True)
        table.title = None
    table.width = console.measure(table, options=console.options.update(max_width=MAX_WIDTH)).maximum
    console.print(table, crop=False)


def _table(title: str, first_column: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="", box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True  # eight columns fit into 80 characters
    table.add_column(first_column, no_wrap=True)
    return table


def skills_table(skills: Mapping[str, Mapping[str, float]], targets: Mapping[str, float]) -> Table:
    """A backbone's accuracy per skill, in all and by form of the question, beside its target where it has one."""
    header = ["skill", "accuracy", "target", "n", "open", "words", "letters"]
    rows = [
        [name, f"{row['accuracy']:.3f}", f"{targets[name]:.2f}" if name in targets else "", str(row["n"])]
        + [f"{row[form]:.3f}" if form in row else "" for form in header[4:]]
        for name, row in skills.items()
    ]
    return as_rich("skills on held-out scenes and wordings", header, rows)
