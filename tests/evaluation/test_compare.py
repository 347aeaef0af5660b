"""Groups of runs and the tables that compare them."""

import math
from dataclasses import replace

import pytest

from contextlora.evaluation.compare import (
    FinishedRun,
    accuracy_rows,
    alike,
    collect_runs,
    comparable,
    comparison,
    comparison_markdown,
    cost_rows,
    difference_rows,
    flatten,
    group_runs,
    ours_first,
    reference_rows,
)
from contextlora.runs import RunFolder


def run(method, seed, accuracy, delta=1.0, **results):
    config = {
        "method": {"name": method, "delta": delta, "edge_delta": {"u->v": 0.5}},
        "taskset": {"name": "t", "data_dir": f"data{seed}"},
        "tracking": {"mode": "off"},
        "seed": seed,
        "runs_dir": f"runs{seed}",
    }
    references = {"majority": 0.25, "single_prerequisite": {"u": 0.3, "w": 0.4}, "symbolic": 0.9}
    return FinishedRun(
        flatten(config),
        {
            "tasks": {
                task: {"end_to_end": value, "chance": 0.25} for task, value in (("u", accuracy), ("v", accuracy - 0.2))
            },
            "references": {"u": references | {"single_prerequisite": {}}, "v": references},
            "gradient_steps": {"total": 100 + seed},
            "trainable_parameters": 1000,
            **results,
        },
    )


RUNS = [
    run("contextlora", 0, 0.9),
    run("contextlora", 1, 0.8),
    run("contextlora", 0, 0.5, delta=0.5),
    run("joint", 0, 0.7),
    run("joint", 1, 0.7),
]


def test_runs_that_differ_only_in_the_seed_form_a_group():
    groups = group_runs(RUNS)
    assert [group.name for group in groups] == [
        "contextlora (frozen ratio 1)",
        "contextlora (frozen ratio 0.5)",
        "joint",
    ]
    assert [sorted(group.by_seed) for group in groups] == [[0, 1], [0], [0, 1]]
    assert groups[0].accuracies("u") == {0: 0.9, 1: 0.8}
    assert groups[0].accuracies("mean") == pytest.approx({0: 0.8, 1: 0.7})


@pytest.mark.parametrize("key", ["training.callbacks", "training.loggers", "training.progress", "gear.devices"])
def test_what_only_watches_a_run_makes_no_group(key):
    watched = run("joint", 1, 0.7)
    (group,) = group_runs([run("joint", 0, 0.7), FinishedRun(watched.settings | {key: ["x"]}, watched.results)])
    assert sorted(group.by_seed) == [0, 1]


def test_of_two_runs_with_one_seed_the_later_counts():
    (group,) = group_runs([run("joint", 0, 0.1), run("joint", 0, 0.2)])
    assert group.accuracies("u") == {0: 0.2}


def test_a_run_that_is_older_than_a_setting_counts_with_its_default(tmp_path):
    made = RunFolder.create(tmp_path, "t", "joint", 0, "seed: 0\ntaskset: {name: t}\nmethod: {name: joint}\n")
    made.finish({"tasks": {}})
    defaults = {"joint": {"seed": 7, "taskset.train_items": None, "method.rank": 2}}
    (found,) = collect_runs(tmp_path, lambda method: defaults[method])
    known = {"seed": 0, "taskset.name": "t", "method.name": "joint"}
    assert found.settings == known | {"taskset.train_items": None, "method.rank": 2}


def test_alike_looks_at_sections_and_not_at_what_changes_no_result():
    assert alike(RUNS[0], RUNS[1].settings, ("",))
    assert not alike(RUNS[0], RUNS[2].settings, ("",))
    assert alike(RUNS[0], RUNS[2].settings, ("taskset.",))
    assert alike(RUNS[0], RUNS[0].settings | {"taskset.context": "other"}, ("taskset.",), ["taskset.context"])
    assert not alike(RUNS[0], RUNS[0].settings | {"taskset.context": "other"}, ("taskset.",))


def test_free_keys_stay_whole():
    assert RUNS[0].settings["method.edge_delta"] == {"u->v": 0.5}


def test_accuracies_have_intervals_over_seeds():
    header, rows = accuracy_rows(group_runs(RUNS), ["u", "v"])
    assert header == ("method", "seeds", "steps", "parameters", "u", "v", "mean")
    # mean of 0.9 and 0.8; half width 12.706 * 0.0707 / sqrt(2) = 0.635
    assert rows[0] == ("contextlora (frozen ratio 1)", "2", "100 to 101", "1,000", *rows[0][4:])
    assert rows[0][4] == "85.0 ±63.5"
    assert rows[1][4] == "50.0"


def test_differences_are_ours_minus_theirs():
    groups = ours_first(group_runs([RUNS[3], RUNS[4], RUNS[2], *RUNS[:2]]))
    names = [group.name for group in groups]
    assert names == ["contextlora (frozen ratio 1)", "joint", "contextlora (frozen ratio 0.5)"]
    header, rows = difference_rows(groups, ["u"])
    assert header == ("paired difference", "pairs", "u", "mean")
    assert rows[0][:2] == ("contextlora (frozen ratio 1) - joint", "2")
    assert rows[0][2] == "+15.0 ±63.5"
    assert rows[1][:3] == ("contextlora (frozen ratio 1) - contextlora (frozen ratio 0.5)", "1", "+40.0")


def test_references_show_the_best_single_prerequisite_where_there_is_one():
    groups = group_runs(RUNS[:1])
    _, rows = reference_rows(groups[0], ["u", "v"])
    assert [row[1:] for row in rows] == [("25.0", "25.0"), ("-", "40.0"), ("90.0", "90.0")]


def test_markdown_leaves_out_tables_without_rows():
    text = comparison_markdown(comparison(group_runs(RUNS[3:]), ["u", "v"]))
    assert "| joint | 2 | 100 to 101 | 1,000 | 70.0 | 50.0 | 60.0 |" in text
    assert "paired" not in text
    assert "| reference | u | v |" in text


def test_costs_are_medians_with_their_range():
    costs = {"train_seconds": 10.0, "evaluation_seconds": 5.0, "peak_memory_bytes": 2**30}
    runs = [run("joint", seed, 0.7, total_seconds=20.0 + seed, **costs) for seed in range(3)]
    _, rows = cost_rows(runs)
    assert rows[0] == ("total", "21 s", "20-22")
    assert rows[3] == ("peak memory", "1024 MiB", "1024-1024")
    assert rows[4] == ("u, end to end", "70.0 %", "70.0-70.0")


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("results.json", b"", "results.json cannot be read"),
        ("results.json", b"[]", "results.json cannot be read (it holds no mapping)"),
        ("results.json", b'{"tasks": 3}', "its results.json holds no tasks"),
        ("results.json", b"\xff\xfe", "results.json cannot be read"),
        ("results.json", b"[" * 100_000, "results.json cannot be read"),
        ("config.yaml", b"", "its config.yaml must be a mapping"),
        ("config.yaml", b"- a", "its config.yaml must be a mapping"),
        ("config.yaml", b"method: {rank: 2}", "its config.yaml must name a method"),
        ("config.yaml", b"method: {name: [joint]}", "its config.yaml must name a method"),
        ("config.yaml", b"a: [\n\xff", "its config.yaml cannot be read"),
        ("config.yaml", b"method: &a [*a]", "its config.yaml must name a method"),
        ("config.yaml", b"method: &a {b: *a}", "its config.yaml cannot be read"),
        ("status.json", b"{", "its status.json cannot be read"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(name, content, rule, tmp_path):
    good, bad = (RunFolder.create(tmp_path, "t", "joint", seed, "method: {name: joint}\n") for seed in (0, 1))
    for made in (good, bad):
        made.finish({"tasks": {}})
    (bad.path / name).write_bytes(content)
    said = []
    (found,) = collect_runs(tmp_path, lambda method: {}, said.append)
    assert found.results == {"tasks": {}}
    assert len(said) == 1 and bad.path.name in said[0] and "\n" not in said[0]
    assert rule in said[0]


@pytest.mark.parametrize(
    "results",
    [
        {"references": {"u": {}, "v": {}}},
        {"references": []},
        {"gradient_steps": {"total": "many"}},
        {"trainable_parameters": None},
        {"tasks": {"u": {"end_to_end": "inf", "chance": 0.25}}},
        {"tasks": {"u": {"end_to_end": math.nan, "chance": 0.25}}},
        {"tasks": {"u": {"end_to_end": 0.5}}},
        {"tasks": {task: {"end_to_end": 7.5, "chance": 0.25} for task in "uv"}},
        {"references": {task: {"majority": 7.5, "single_prerequisite": {}, "symbolic": 0.5} for task in "uv"}},
    ],
)
def test_a_run_of_whose_results_no_table_can_be_made_is_named_and_left_out(results):
    said = []
    bad = replace(run("joint", 2, 0.7, **results), path="runs/bad")
    assert comparable([*RUNS, bad], said.append) == RUNS
    assert len(said) == 1 and said[0].startswith("left out runs/bad: its results.json is damaged (")


def test_runs_of_other_tasks_than_the_newest_one_are_left_out():
    said = []
    old = replace(run("joint", 2, 0.7, tasks={"u": {"end_to_end": 0.5, "chance": 0.25}}), path="runs/old")
    newest = replace(RUNS[-1], path="runs/new")
    assert comparable([old, newest], said.append) == [newest]
    assert said == ["left out runs/old: it has other tasks than runs/new"]
