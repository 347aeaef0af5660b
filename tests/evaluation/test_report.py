"""Tables as a terminal of 80 columns shows them."""

import io

from rich.console import Console

from contextlora.commands import evaluate as command
from contextlora.evaluation.report import (
    as_rich,
    graph_table,
    interval,
    log_results,
    markdown_table,
    partition_table,
    percent,
    print_in_full,
    references_table,
    results_table,
    stages_table,
)
from contextlora.graph import TaskGraph
from contextlora.methods.contextlora import ContextLora, ContextLoraSettings

GRAPH = TaskGraph({"hazard": [], "grip": [], "manoeuvre": ["hazard", "grip"]})
ROW = {"chance": 0.25, "zero_shot": 0.2, "own_stage": 0.95, "final": 0.94, "end_to_end": 0.931, "n": 500}
RESULTS = {
    "taskset": "iov",
    "method": "contextlora",
    "seed": 0,
    "stages": [["hazard"], ["manoeuvre"]],
    "tasks": {"hazard": ROW, "manoeuvre": ROW},
    "intervals": {task: {"end_to_end": (0.905, 0.95)} for task in ("hazard", "manoeuvre")},
    "accuracy_matrix": {"hazard": [0.95, 0.94], "manoeuvre": [None, 0.94]},
    "references": {
        "hazard": {"majority": 0.3, "single_prerequisite": {}, "symbolic": 0.9},
        "manoeuvre": {"majority": 0.3, "single_prerequisite": {"hazard": 0.4, "grip": 0.35}, "symbolic": 0.9},
    },
}


def shown(table):
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    return [line.split() for line in text.splitlines() if line.strip()]


def test_the_results_table_fits_and_has_every_column():
    lines = shown(results_table(RESULTS))
    header = "task chance zero-shot own stage final end to end 95 % interval n".split()
    assert header in lines
    assert ["manoeuvre", "25.0", "20.0", "95.0", "94.0", "93.1", "90.5-95.0", "500"] in lines


def test_the_references_table_takes_the_best_prerequisite():
    lines = shown(references_table(RESULTS))
    assert ["hazard", "30.0", "-", "90.0", "93.1"] in lines
    assert ["manoeuvre", "30.0", "40.0", "90.0", "93.1"] in lines


def test_the_dry_run_s_tables_show_graph_partition_and_statuses():
    plan = ContextLora(ContextLoraSettings(rank=4, delta=0.5)).plan(GRAPH)
    assert ["2", "manoeuvre", "hazard,", "grip"] in shown(graph_table(GRAPH))
    assert ["grip", "4-7", "grip,", "manoeuvre"] in shown(partition_table(plan))
    lines = shown(stages_table(plan, steps=[800, 400], trainable=[1000, 12345]))
    assert ["1", "hazard,", "grip", "4/0/0", "4/0/0", "0/0/4", "800", "1,000"] in lines
    assert ["2", "manoeuvre", "2/2/0", "2/2/0", "4/0/0", "400", "12,345"] in lines


def test_numbers_and_markdown():
    assert [percent(0.9312), percent(None), percent(float("nan"))] == ["93.1", "-", "-"]
    assert interval((0.5, 1.0)) == "50.0-100.0"
    assert markdown_table(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |\n"


def test_results_are_logged_as_tables_and_means():
    logged = {}

    class Recorder:
        def log_table(self, name, columns, rows):
            logged[name] = (list(columns), rows)

        def log_summary(self, values):
            logged["summary"] = values

    log_results(Recorder(), RESULTS)
    assert logged["accuracy_matrix"] == (
        ["task", "stage 1", "stage 2"],
        [["hazard", 0.95, 0.94], ["manoeuvre", None, 0.94]],
    )
    assert logged["results"][1][0] == ["hazard", 0.25, 0.2, 0.95, 0.94, 0.931, 500]
    assert logged["summary"]["mean/end_to_end"] == 0.931
    assert logged["summary"]["hazard/final"] == 0.94


def test_a_table_that_is_wider_than_the_terminal_keeps_every_figure():
    console = Console(file=io.StringIO(), width=40)
    figures = [f"{number}.0 ±0.5" for number in range(10, 20)]
    print_in_full(console, as_rich("title", ["a long name", *"abcdefghij"], [["joint (context none)", *figures]]))
    (row,) = [line for line in console.file.getvalue().splitlines() if "joint" in line]
    assert " ".join(row.split()) == " ".join(["joint (context none)", *figures])


def test_a_run_s_results_keep_every_figure_on_a_pipe_of_80_columns(monkeypatch):
    console, name = Console(file=io.StringIO(), width=80), "a_task_with_a_very_long_name_of_forty_letters"
    monkeypatch.setattr(command, "CONSOLE", console)
    tables = {key: {name: RESULTS[key]["manoeuvre"]} for key in ("tasks", "intervals", "references")}
    command.print_results(RESULTS | tables)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert [name, "25.0", "20.0", "95.0", "94.0", "93.1", "90.5-95.0", "500"] in lines
    assert [name, "30.0", "40.0", "90.0", "93.1"] in lines
