"""ContextGear against a clock: the same work by every variant, in turn, on several processes.

    .venv/bin/python bench/gear.py [mode=emulated] [cells=n2/two,20mbit] [rounds=3] [seed=0] [devices=FILE] [key=value]

mode=emulated  calibrated emulated compute, real messages: see bench/emulation.py. Seconds of forward and backward are
               those of the bundled model on iov, profiled first (or read from the catalogue `devices`), unscaled.
mode=real      the bundled model itself on 2 processes over loopback: see bench/real.py. CPU time and wall time.

Cells are n = 1, 2, 3 prerequisites x fleets two, half, four x links loopback, 100mbit, 20mbit; `cells` picks some by
their parts. Links are network namespaces, which need root; without, only loopback is measured. As root, emulated
processes have real-time priority: they sleep and send only, and must not wait for other programs' time slices.

Prints tables, and writes <runs_dir>/bench/gear-<mode>.json and .md, emulated also .png. All cells and 3 rounds take
about an hour.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import median

import torch.distributed as dist
from emulation import Variant, run
from gear_table import draw, report
from links import LINKS, Network, why_not
from processes import Processes
from real import measure_real, real_table
from variants import (
    ANEW,
    FLEETS,
    Cell,
    bound_s,
    describe,
    make_fleet,
    plan_variants,
    predicted_s,
    stage_mean_s,
    timed_window,
    with_prerequisites,
)

from contextlora.assembly.workloads import stage_workloads
from contextlora.commands.bench import read_arguments
from contextlora.config import RunConfig, load_config, read_devices
from contextlora.files import write_atomically
from contextlora.gear.execution.profile import measure_links
from contextlora.gear.planning.devices import Device, Fleet, Link
from contextlora.gear.planning.workload import Workload
from contextlora.tasks.tasksets import load_taskset

WARM_STEPS, TIMED_STEPS = 2, 6
KEPT_STEPS = (3, 8)  # with chains, and after; one of the latter is the change
LINK_TEST_BYTES = 500_000
MODES = ("emulated", "real")


def calibrate(config: RunConfig, catalogue: str) -> Device:
    """The bundled model's profile on this machine; in a process of its own, as this one will be forked."""
    folder = Path(config.runs_dir) / "bench"
    if not catalogue:
        settings = [f"taskset={config.taskset.name}", f"taskset.data_dir={config.taskset.data_dir}"]
        settings += [f"runs_dir={folder}", f"training.batch_size={config.training.batch_size}"]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as many as a process of the benchmark has
        subprocess.run([sys.executable, "-m", "contextlora", "profile", *settings], check=True, env=one_thread)
        catalogue = str(max((folder / "devices").glob("*.yaml"), key=lambda path: path.stat().st_mtime))
    tree, path = read_devices(catalogue)
    return Fleet.from_tree(tree, path.stem, str(path)).devices[0]


def stages(config: RunConfig) -> tuple[Workload, ...]:
    """The work of every stage of the task set."""
    return stage_workloads(config, load_taskset(config.taskset))[0]


def process_links() -> dict[tuple[int, int], Link]:
    """What a process measures of its links."""
    return measure_links(dist.get_rank(), dist.get_world_size(), LINK_TEST_BYTES)


def measure(processes: Processes, variant: Variant) -> float:
    """C of a variant in seconds: of a filled pipeline's step, or with answers kept the mean over the stage."""
    keeps = variant.candidate.later is not None
    least, later = KEPT_STEPS if keeps else (TIMED_STEPS, 0)
    warm, first = timed_window(variant, WARM_STEPS, least)
    ends = processes.call(run, variant, first, later)[variant.timed_process]
    first_s = (ends[first] - ends[warm]) / (first - warm)
    if not keeps:
        return first_s
    # The first step with kept answers pays for the change, once a stage: it counts by itself.
    later_s = (ends[-1] - ends[first + 1]) / (later - 1)
    return stage_mean_s(variant, first_s, later_s, ends[first + 1] - ends[first] - later_s)


def measure_cell(
    processes: Processes, variants: dict[str, Variant], rounds: int, order: random.Random
) -> dict[str, list]:
    """Seconds of every variant in every round; plans that are equal run once a round."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        seen: dict[tuple, float] = {}
        names = list(variants)
        order.shuffle(names)  # a machine that slows down in a round must not hit the same variant every time
        for name in names:
            groups, plan = variants[name].candidate, variants[name].plan
            key = (groups.train, groups.forward, groups.later, plan.train, plan.chains, plan.reassigned_share)
            if key not in seen:
                seen[key] = measure(processes, variants[name])
            found[name].append(seen[key])
    return found


def cell_row(cell: Cell, variants: dict[str, Variant], seconds: dict[str, list]) -> dict:
    """What is kept of a cell."""
    rows = {
        name: {
            "how": describe(variant),
            "predicted_s": predicted_s(variant),
            "measured_s": median(seconds[name]),
            "rounds_s": seconds[name],
        }
        for name, variant in variants.items()
    }
    chosen = {  # among equals the simpler one, which comes first
        "anew": min(ANEW, key=lambda name: round(rows[name]["predicted_s"], 6)),
        "kept": min((name for name in rows if name not in ANEW), key=lambda name: rows[name]["predicted_s"]),
    }
    return {"cell": asdict(cell), "bound_s": bound_s(variants["ContextGear, reassigned"]), "chosen": chosen} | {
        "variants": rows
    }


def emulated(config: RunConfig, cells: list[Cell], rounds: int, seed: int, catalogue: str) -> Iterator[dict]:
    """Measures all cells; yields the calibration, then links and cells as they are done."""
    calibrated, workload, order = calibrate(config, catalogue), stages(config)[-1], random.Random(seed)
    realtime = hasattr(os, "geteuid") and os.geteuid() == 0
    yield {"calibration": asdict(calibrated), "realtime": realtime, "work": asdict(workload)}
    networks = list(dict.fromkeys((cell.link, cell.fleet) for cell in cells))
    number = 0
    for link, fleet_name in networks:
        speeds = FLEETS[fleet_name]
        with Network(LINKS[link], len(speeds), realtime) as network, Processes(network) as processes:
            links = {pair: found for row in processes.call(process_links) for pair, found in row.items()}
            yield {"network": [link, fleet_name], "links": {f"{a}-{b}": asdict(x) for (a, b), x in links.items()}}
            fleet = make_fleet(calibrated, speeds, links)
            for cell in (cell for cell in cells if (cell.link, cell.fleet) == (link, fleet_name)):
                number += 1
                print(f"{number}/{len(cells)}: n={cell.n}, {cell.fleet}, {cell.link}", file=sys.stderr, flush=True)
                variants = plan_variants(fleet, with_prerequisites(workload, cell.n))
                yield cell_row(cell, variants, measure_cell(processes, variants, rounds, order))


def main(arguments: list[str]) -> None:
    """Runs what the command line says."""
    options, settings = read_arguments(arguments, mode="emulated", cells="", rounds=3, seed=0, devices="")
    mode, patterns, rounds, seed, catalogue = options
    if mode not in MODES:
        sys.exit(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    config = load_config(["gear.context=predicted", *settings])
    folder = Path(config.runs_dir) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` removes the networks
    if mode == "real":
        rows = measure_real(config, calibrate(config, catalogue), stages(config), rounds, seed)
    else:
        rows = emulated(config, wanted_cells(patterns), rounds, seed, catalogue)
    found: list[dict] = []
    for row in rows:
        found.append(row)
        # After every cell: an interrupted hour leaves what it has measured.
        write_atomically(folder / f"gear-{mode}.json", json.dumps(found, indent=1) + "\n")
    text = real_table(found) if mode == "real" else report(found)
    print(text)
    write_atomically(folder / f"gear-{mode}.md", text)
    if mode == "emulated":
        draw(found, folder / "gear-emulated.png")


def wanted_cells(patterns: str) -> list[Cell]:
    """The cells to measure here; without root only those of loopback."""
    cells = [Cell(n, fleet, link) for link, fleet, n in product(LINKS, FLEETS, (1, 2, 3))]
    reason = why_not()
    if reason:
        print(f"loopback only: {reason}", file=sys.stderr)
    found = [cell for cell in cells if cell.fits(patterns) and not (reason and cell.link != "loopback")]
    if not found:
        sys.exit(f"cells={patterns} picks nothing; parts are n1 n2 n3, {' '.join(FLEETS)}, {' '.join(LINKS)}")
    return found


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
