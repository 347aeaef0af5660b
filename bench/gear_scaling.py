"""The paper's second experiment: iov on 2, 3 and 4 devices, the best k for each, C_T and C_F predicted and measured.

    .venv/bin/python bench/gear_scaling.py [links=loopback,20mbit] [ks=32,16,8,4] [seed=0] [devices=FILE] [key=value]

Emulated compute, real messages, as in bench/gear.py, whose calibration and links this takes. For every number of equal
devices and every k (items of a call) the planner picks the split into D_t and D_f; C_T and C_F are what a device of
each group is busy in a step, C is what a step takes. The rivals are planned on the same devices, with their own k and
cuts.

Prints tables and writes <runs_dir>/bench/gear-scaling.json and .md. Takes about ten minutes.
"""

import json
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from emulation import Variant, emulate
from gear import WARM_STEPS, calibrate, measure, process_links, stages
from links import LINKS, Network, why_not
from processes import Processes
from variants import RIVALS, describe, make_fleet, plan_variants, predicted_s, timed_window, with_prerequisites

from contextlora.commands.bench import read_arguments
from contextlora.config import load_config
from contextlora.evaluation.report import markdown_table
from contextlora.files import write_atomically
from contextlora.gear.planning.candidates import plan_task, weighted_tasks
from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.devices import Fleet
from contextlora.gear.planning.search import Search
from contextlora.gear.planning.workload import Workload

DEVICES, PREREQUISITES = (2, 3, 4), (2, 3)  # iov's tasks `manoeuvre` and `route`
TIMED_STEPS = 6


def with_micro_batch(fleet: Fleet, workload: Workload, k: int) -> Variant:
    """The best ContextGear whose calls have at most k items."""
    cost = StageCost(fleet, workload)
    # The planner would take the largest k that fits; this asks for one.
    cost.sizes = (k,)
    search = Search(cost, weighted_tasks(workload.tasks, workload.batch_size), cache_answers=False, layouts=("data",))
    gear = [candidate for candidate in search.run() if candidate.strategy == "contextgear"]
    best = min(gear, key=lambda candidate: candidate.seconds)
    return Variant(fleet, workload, best, plan_task(cost, best, workload.tasks[0]))


def gear_row(processes: Processes, variant: Variant, k: int) -> dict:
    """C_T, C_F and C of one plan in seconds, predicted and measured."""
    first, last = timed_window(variant, WARM_STEPS, TIMED_STEPS)
    marks = processes.call(emulate, variant, last, 0)
    names, plan = [device.name for device in variant.fleet.devices], variant.plan

    def busy_s(devices: Sequence[str]) -> float:
        rows = [marks[names.index(name)] for name in devices]
        return max(row[-1].busy_s - row[first].busy_s for row in rows) / (last - first)

    timed = marks[variant.timed_process]
    return {
        "k": k,
        "how": describe(variant),
        "predicted_s": [plan.train_s, plan.forward_s, plan.step_s],
        "measured_s": [
            busy_s(variant.candidate.train.devices),
            busy_s(variant.candidate.forward.devices),
            (timed[-1].wall_s - timed[first].wall_s) / (last - first),
        ],
    }


def case_row(processes: Processes, fleet: Fleet, workload: Workload, ks: Sequence[int], order: random.Random) -> dict:
    """Every k and every rival on one fleet, in random order."""
    planned, rows = plan_variants(fleet, workload), []
    rivals = {name: {"predicted_s": predicted_s(planned[name]), "how": describe(planned[name])} for name in RIVALS}
    # In random order, as the machine may slow down while it is measured.
    for what in order.sample([*ks, *RIVALS], len(ks) + len(RIVALS)):
        if isinstance(what, int):
            rows.append(gear_row(processes, with_micro_batch(fleet, workload, what), what))
        else:
            rivals[what]["measured_s"] = measure(processes, planned[what])
    return {"rows": sorted(rows, key=lambda row: -row["k"]), "rivals": rivals}


def tables(cases: Sequence[dict]) -> str:
    """C by k, and the best k against each rival."""
    by_k, gains = [], []
    for case in cases:
        key = [str(case["devices"]), str(case["n"]), LINKS[case["link"]].name]
        best = min(case["rows"], key=lambda row: row["measured_s"][2])
        for row in case["rows"]:
            pairs = zip(row["predicted_s"], row["measured_s"], strict=True)
            times = [f"{predicted:.3f} / {measured:.3f}" for predicted, measured in pairs]
            by_k.append([*key, f"{row['k']}{' (best)' if row is best else ''}", row["how"], *times])
        own = best["measured_s"][2]
        less = [f"{100 * (1 - own / case['rivals'][name]['measured_s']):.0f} %" for name in RIVALS]
        gains.append([*key, f"{own:.3f}", *less])
    header = ["devices", "n", "link", "k", "plan", "C_T, s", "C_F, s", "C, s"]
    text = "**Predicted / measured**\n\n" + markdown_table(header, by_k)
    header = ["devices", "n", "link", "ContextGear, s", *(f"less than {name}" for name in RIVALS)]
    return (
        text
        + "\n**ContextGear with its best k: how much less time than the rivals**\n\n"
        + markdown_table(header, gains)
    )


def main(arguments: list[str]) -> None:
    """Runs what the command line says."""
    options, settings = read_arguments(arguments, links="loopback,20mbit", ks="32,16,8,4", seed=0, devices="")
    links, ks, seed, catalogue = options
    config, order = load_config(["gear.context=predicted", *settings]), random.Random(seed)
    folder = Path(config.runs_dir) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    calibrated, workload, cases = calibrate(config, catalogue), stages(config)[-1], []
    realtime = hasattr(os, "geteuid") and os.geteuid() == 0
    if why_not():
        print(f"loopback only: {why_not()}", file=sys.stderr)
    for link in (link for link in links.split(",") if link == "loopback" or not why_not()):
        for count in DEVICES:
            with Network(LINKS[link], count, realtime) as network, Processes(network) as processes:
                found = {pair: one for row in processes.call(process_links) for pair, one in row.items()}
                fleet = make_fleet(calibrated, (1.0,) * count, found)
                for n in PREREQUISITES:
                    print(f"{count} devices, n={n}, {link}", file=sys.stderr, flush=True)
                    sizes = [int(k) for k in ks.split(",")]
                    case = case_row(processes, fleet, with_prerequisites(workload, n), sizes, order)
                    cases.append({"devices": count, "n": n, "link": link} | case)
                    write_atomically(folder / "gear-scaling.json", json.dumps(cases, indent=1) + "\n")
    text = tables(cases)
    print(text)
    write_atomically(folder / "gear-scaling.md", text)


if __name__ == "__main__":
    main(sys.argv[1:])
