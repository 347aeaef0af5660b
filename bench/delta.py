"""Frozen ratio x variant: what it does to prerequisites, children and interference.

    .venv/bin/python bench/delta.py [seeds=3] [jobs=1] [key=value ...]

Writes <runs_dir>/delta.md and <runs_dir>/delta.png. Every figure is a mean over tasks, then over seeds, in percent. The
references are the majority answer, the best single prerequisite, the roots' answers through the true rule, and one
small LoRA per task.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from contextlora.commands import CONSOLE
from contextlora.commands.bench import read_arguments, run_missing
from contextlora.config import load_config
from contextlora.evaluation.compare import FinishedRun, Row, group_runs, reference_rows, with_interval
from contextlora.evaluation.labels import setting_label
from contextlora.evaluation.metrics import mean_interval
from contextlora.evaluation.plots import delta_figure, save_figure
from contextlora.evaluation.report import as_rich, markdown_table, print_in_full

DELTAS = (0.0, 0.25, 0.5, 0.75, 1.0)
VARIANTS = ("paper", "gated")
HEADER = (
    "variant",
    "delta",
    "roots, own stage",
    "roots, final",
    "last task, gold",
    "last task, end to end",
    "interference",
)


def figures(results: dict) -> tuple[float, ...]:
    """Accuracies of one run in the order of HEADER; the last is the loss of accuracy by interference."""
    first, last = results["stages"][0], results["stages"][-1]
    rows, pairs = results["tasks"], results["interference"].values()
    return (
        sum(rows[task]["own_stage"] for task in first) / len(first),
        sum(rows[task]["final"] for task in first) / len(first),
        sum(rows[task]["final"] for task in last) / len(last),
        sum(rows[task]["end_to_end"] for task in last) / len(last),
        sum(pair["alone"] - pair["together"] for pair in pairs) / len(pairs) if pairs else 0.0,
    )


def references(ours: Sequence[FinishedRun], per_task: Sequence[FinishedRun]) -> tuple[Row, list[Row]]:
    """The references of each task, from runs of ContextLoRA and of one LoRA per task."""
    tasks = list(ours[0].results["tasks"])
    (group,), (alone,) = group_runs(ours), group_runs(per_task)
    header, rows = reference_rows(group, tasks)
    cells = [with_interval(*mean_interval(list(alone.accuracies(task).values()))) for task in tasks]
    return header, [*rows, ("one LoRA per task", *cells)]


if __name__ == "__main__":
    (num_seeds, jobs), arguments = read_arguments(sys.argv[1:], seeds=3, jobs=1)
    configs = {
        (variant, delta): [
            load_config(
                [*arguments, "method=contextlora", f"method.variant={variant}", f"method.delta={delta}", f"seed={seed}"]
            )
            for seed in range(num_seeds)
        ]
        for variant in VARIANTS
        for delta in DELTAS
    }
    alone = [load_config([*arguments, "method=per_task", f"seed={seed}"]) for seed in range(num_seeds)]
    run_missing([*(config for several in configs.values() for config in several), *alone], jobs)
    table, curves = [], {setting_label("method.variant", variant): {} for variant in VARIANTS}
    for (variant, delta), several in configs.items():
        seen = [figures(run.results) for run in run_missing(several)]
        intervals = [mean_interval(column) for column in zip(*seen, strict=True)]
        table.append((variant, str(delta), *(with_interval(*one) for one in intervals)))
        curves[setting_label("method.variant", variant)][delta] = intervals[3]
    print_in_full(CONSOLE, as_rich(f"{num_seeds} seeds, mean ±half of the 95 % interval, %", HEADER, table))
    known = references(run_missing(configs["gated", 1.0]), run_missing(alone))
    print_in_full(CONSOLE, as_rich("references, end to end, %", *known))
    folder = Path(alone[0].runs_dir)
    (folder / "delta.md").write_text(
        "\n".join((markdown_table(HEADER, table), markdown_table(*known))), encoding="utf-8"
    )
    save_figure(delta_figure(curves, "last task, end to end, %"), folder / "delta.png")
