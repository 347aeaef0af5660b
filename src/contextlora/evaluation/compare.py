"""Compares finished runs over methods, settings and seeds.

Runs that differ in nothing but their seed form a group. A group is called by its method and, in words, by those
settings in which the groups of the comparison differ.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from contextlora.errors import UserError, first_line
from contextlora.evaluation.labels import group_label
from contextlora.evaluation.metrics import mean_interval, paired_difference
from contextlora.evaluation.report import markdown_table
from contextlora.runs import RunFolder, find_runs, unreadable_runs

# Settings that cannot change a result.
NEUTRAL = (
    *("seed", "runs_dir", "tracking.", "gear.", "taskset.data_dir"),
    *("training.progress", "training.callbacks", "training.loggers"),
)
Row = tuple[str, ...]


@dataclass(frozen=True)
class FinishedRun:
    """One run: its flat configuration ("section.key" -> value), its results.json, and where it lies, for messages."""

    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    path: str = ""


@dataclass
class RunGroup:
    """Runs that differ only in their seed; `name` says in words which."""

    name: str
    method: str
    by_seed: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def accuracies(self, task: str, key: str = "end_to_end") -> dict[int, float]:
        """seed -> accuracy of a task; of the mean over tasks for task "mean"."""
        return {seed: _accuracy(results, task, key) for seed, results in self.by_seed.items()}


def collect_runs(
    runs_dir: Path | str, defaults: Callable[[str], Mapping[str, Any]], leave_out: Callable[[str], None] = print
) -> list[FinishedRun]:
    """All finished runs of a folder of runs, oldest first; a damaged one does not keep the others out.

    Args:
        runs_dir: the folder.
        defaults: method's name -> flat settings, for those that an older run has not.
        leave_out: called with a line for each run that cannot be read.
    """
    for line in unreadable_runs(runs_dir):
        leave_out(line)
    found = []
    for run in find_runs(runs_dir, finished=True):
        try:
            settings, results = _settings(run), run.results
            if not isinstance(results.get("tasks"), dict):
                raise ValueError("its results.json holds no tasks")
            own = defaults(settings["method.name"]) | settings
            found.append(FinishedRun(own, results, os.path.relpath(run.path)))
        except (OSError, ValueError) as error:
            leave_out(
                f"left out {os.path.relpath(run.path)}: {error if isinstance(error, UserError) else first_line(error)}"
            )
    return found


def _settings(run: RunFolder) -> dict[str, Any]:
    """The flat settings of a run's config.yaml; raises `ValueError` where it holds none."""
    try:
        settings = flatten(yaml.safe_load(run.config_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"its config.yaml cannot be read ({first_line(error, but=run.config_file)})") from error
    except (TypeError, AttributeError) as error:  # it is no mapping
        raise ValueError("its config.yaml must be a mapping of sections to settings") from error
    if not isinstance(settings.get("method.name"), str):
        raise ValueError("its config.yaml must name a method")
    return settings


def comparable(runs: Sequence[FinishedRun], leave_out: Callable[[str], None] = print) -> list[FinishedRun]:
    """Those of which all tables can be made, and that have the newest one's tasks; names the others."""
    whole = []
    for run in runs:
        try:
            rows, groups = run.results["tasks"], group_runs([run])
            comparison(groups, list(rows))
            if not all(0 <= accuracy <= 1 for accuracy in _accuracies(run.results)):
                raise ValueError("an accuracy must be from 0 to 1")
            whole.append(run)
        except Exception as error:  # whatever damaged results make of it
            leave_out(f"left out {run.path}: its results.json is damaged ({type(error).__name__}: {first_line(error)})")
    same = [run for run in whole if run.results["tasks"].keys() == whole[-1].results["tasks"].keys()]
    for run in whole:
        if run not in same:
            leave_out(f"left out {run.path}: it has other tasks than {whole[-1].path}")
    return same


def alike(
    run: FinishedRun, settings: Mapping[str, Any], sections: Sequence[str], apart_from: Sequence[str] = ()
) -> bool:
    """Whether a run has these settings in some sections, apart from some keys and those that change no result."""
    ours, theirs = (
        {
            key: value
            for key, value in settings_that_matter(flat).items()
            if key.startswith(tuple(sections)) and key not in apart_from
        }
        for flat in (run.settings, settings)
    )
    return ours == theirs


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"method": {"rank": 8}} -> {"method.rank": 8}; dictionaries of free keys stay whole."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inside = isinstance(value, Mapping) and key not in ("edge_delta", "trainer")
        flat |= flatten(value, f"{prefix}{key}.") if inside else {prefix + key: value}
    return flat


def settings_that_matter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run without its seed and those that change no result."""
    return {key: value for key, value in settings.items() if not key.startswith(NEUTRAL)}


def group_runs(runs: Sequence[FinishedRun]) -> list[RunGroup]:
    """Groups in the order of their first run; of two runs with one seed the later one counts."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        # As text: values may be dictionaries, which cannot be keys.
        groups.setdefault(repr(sorted(settings_that_matter(run.settings).items())), []).append(run)
    settings = [settings_that_matter(members[0].settings) for members in groups.values()]
    named = []
    for own, members in zip(settings, groups.values(), strict=True):
        # Among runs of one method: methods have settings of their own, in which all of them would differ.
        rivals = [other for other in settings if other["method.name"] == own["method.name"]]
        differing = {key: own[key] for key in own if any(other.get(key) != own[key] for other in rivals)}
        # Runs come oldest first, so the last one with a seed stays.
        method, by_seed = own["method.name"], {run.settings["seed"]: run.results for run in members}
        named.append(RunGroup(group_label(method, differing), method, by_seed))
    return named


def accuracy_rows(groups: Sequence[RunGroup], tasks: Sequence[str], key: str = "end_to_end") -> tuple[Row, list[Row]]:
    """Mean accuracy over seeds with its 95 % interval, per group and task, and over the tasks' mean."""
    rows = []
    for group in groups:
        cells = [with_interval(*mean_interval(list(group.accuracies(t, key).values()))) for t in (*tasks, "mean")]
        # Stages may stop early, some seeds' sooner than others'.
        steps = sorted({results["gradient_steps"]["total"] for results in group.by_seed.values()})
        size = sorted({results["trainable_parameters"] for results in group.by_seed.values()})
        rows.append((group.name, str(len(group.by_seed)), _span(steps), _span(size), *cells))
    return ("method", "seeds", "steps", "parameters", *tasks, "mean"), rows


def accuracy_intervals(
    groups: Sequence[RunGroup], tasks: Sequence[str]
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """RunGroup's name -> task -> (mean, low, high) of the accuracy end to end over seeds, for `accuracy_figure`."""
    return {
        group.name: {task: mean_interval(list(group.accuracies(task).values())) for task in tasks} for group in groups
    }


def difference_rows(groups: Sequence[RunGroup], tasks: Sequence[str]) -> tuple[Row, list[Row]]:
    """The first group minus each other, paired by seed, with the 95 % interval of the mean difference, in points."""
    ours, *others = groups
    rows = []
    for group in others:
        cells = []
        for task in (*tasks, "mean"):
            *difference, num_pairs = paired_difference(ours.accuracies(task), group.accuracies(task))
            cells.append(with_interval(*difference, sign="+"))
        rows.append((f"{ours.name} - {group.name}", str(num_pairs), *cells))
    return ("paired difference", "pairs", *tasks, "mean"), rows


def reference_rows(ours: RunGroup, tasks: Sequence[str]) -> tuple[Row, list[Row]]:
    """Majority, best single prerequisite and symbolic composition, averaged over our group's seeds."""
    held = [results["references"] for results in ours.by_seed.values()]
    rows = []
    for name, label in (
        ("majority", "majority answer"),
        ("single_prerequisite", "best single prerequisite, right answers"),
        ("symbolic", f"symbolic composition of {ours.name}'s root answers"),
    ):
        cells = []
        for task in tasks:
            values = [_reference(references[task][name]) for references in held]
            cells.append("-" if None in values else with_interval(*mean_interval(values)))
        rows.append((label, *cells))
    return ("reference", *tasks), rows


def comparison(groups: Sequence[RunGroup], tasks: Sequence[str]) -> list[tuple[str, Row, list[Row]]]:
    """(title, header, rows) of the tables that compare the first group with the others: accuracy in percent, paired
    differences, references.
    """
    note = "mean over seeds ±half of the 95 % interval"
    return [
        (f"end to end, %, {note}", *accuracy_rows(groups, tasks)),
        (f"end to end, points, {note}, paired by seed", *difference_rows(groups, tasks)),
        ("references, %", *reference_rows(groups[0], tasks)),
    ]


def comparison_markdown(tables: Sequence[tuple[str, Row, list[Row]]]) -> str:
    """The tables of `comparison` for docs/results.md."""
    return "\n".join(f"{title}\n\n{markdown_table(header, rows)}" for title, header, rows in tables if rows)


def cost_rows(runs: Sequence[FinishedRun]) -> tuple[Row, list[Row]]:
    """Median and range over runs of time, peak memory and end-to-end accuracy."""
    rows = []
    for key, unit, scale in (
        ("total_seconds", "s", 1),
        ("train_seconds", "s", 1),
        ("evaluation_seconds", "s", 1),
        ("peak_memory_bytes", "MiB", 2**-20),
    ):
        values = [scale * run.results[key] for run in runs]
        name = key.rsplit("_", 1)[0].replace("_", " ")
        rows.append((name, f"{median(values):.0f} {unit}", f"{min(values):.0f}-{max(values):.0f}"))
    for task in runs[0].results["tasks"]:
        values = [100 * run.results["tasks"][task]["end_to_end"] for run in runs]
        rows.append((f"{task}, end to end", f"{median(values):.1f} %", f"{min(values):.1f}-{max(values):.1f}"))
    return ("figure", "median", "range"), rows


def ours_first(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """The group that the others are compared to in front: the ContextLoRA one with most seeds, else the first."""
    candidates = [group for group in groups if group.method == "contextlora"] or list(groups)
    ours = max(candidates, key=lambda group: len(group.by_seed))
    return [ours, *(group for group in groups if group is not ours)]


def with_interval(mean: float, low: float, high: float, sign: str = "") -> str:
    """93.1 ±1.1, in percent, for a symmetric interval; the mean alone where there is none or nothing varies."""
    if math.isnan(mean):
        return "-"
    text = f"{100 * mean:{sign}.1f}"
    half = 100 * (high - low) / 2
    # Less would be printed as ±0.0.
    return text if math.isnan(half) or half < 0.05 else f"{text} ±{half:.1f}"


def _accuracy(results: Mapping[str, Any], task: str, key: str) -> float:
    if task == "mean":
        return sum(row[key] for row in results["tasks"].values()) / len(results["tasks"])
    return results["tasks"][task][key]


def _accuracies(results: Mapping[str, Any]) -> Iterator[float]:
    """All that the tables show in percent."""
    for task, row in results["tasks"].items():
        yield from (row["end_to_end"], row["chance"])
        for value in results["references"][task].values():
            yield from value.values() if isinstance(value, Mapping) else [value]


def _reference(value: float | Mapping[str, float]) -> float | None:
    return max(value.values(), default=None) if isinstance(value, Mapping) else value


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
