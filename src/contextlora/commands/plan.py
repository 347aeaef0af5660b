"""`contextlora plan`: plans a training and draws it.

torch is loaded to count the model's size, after the devices and the task set have been read: mistakes in those show at
once, a plan takes a few seconds.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from contextlora.assembly.workloads import stage_workloads
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig, read_devices
from contextlora.evaluation.report import print_in_full
from contextlora.files import slug, write_atomically
from contextlora.gear.planning.candidates import plan_task
from contextlora.gear.planning.cost import StageCost
from contextlora.gear.planning.devices import Fleet
from contextlora.gear.planning.plan import Plan, StagePlan, plan_training
from contextlora.gear.planning.workload import Workload
from contextlora.gear.reports.tables import (
    NUM_BATCHES,
    batches_for_step,
    candidates_table,
    devices_table,
    stage_tables,
    work_table,
)
from contextlora.gear.simulation.replay import schedule_and_costs
from contextlora.gear.simulation.schedule import grid
from contextlora.gear.simulation.simulate import Simulation, simulate
from contextlora.tasks.tasksets import load_taskset

DEFAULT_FLEET = "jetson4"
SHOWN_STAGES = 4
SHOWN_DEVICES = 8
FILLED_BATCHES = 3
LATER_BATCHES = 2  # with the answers kept, of the chosen plan


def plan(config: RunConfig) -> Plan:
    """Plans the configured training over the devices of `gear.devices`, prints it, and draws its time line.

    Raises:
        UserError: the catalogue, the model's config.json or the task set cannot be read, or nothing fits the devices.
    """
    tree, path = read_devices(config.gear.devices or DEFAULT_FLEET)
    fleet = Fleet.from_tree(tree, path.stem, str(path))
    taskset = load_taskset(config.taskset)
    workloads, notes = stage_workloads(config, taskset)
    made = plan_training(fleet, workloads, config.gear.cache_answers, config.gear.layouts)
    shown = list(zip(made.stages, workloads, strict=True))[:SHOWN_STAGES]
    windows = [_simulate(fleet, workload, stage, config.gear.queue_batches) for stage, workload in shown]
    print_in_full(CONSOLE, work_table(workloads[:SHOWN_STAGES]))
    for note in notes:
        CONSOLE.print(note, highlight=False)
    print_in_full(CONSOLE, devices_table(fleet, made.stages[:SHOWN_STAGES]))
    for (stage, workload), simulations in zip(shown, windows, strict=True):
        longest = workload.tasks[_longest(workload)].task
        for table in (candidates_table(stage, simulations, longest), *stage_tables(stage, simulations[0])):
            print_in_full(CONSOLE, table)
        _print_window(stage, simulations[0])
    if len(made.stages) > SHOWN_STAGES:
        CONSOLE.print(f"... and {len(made.stages) - SHOWN_STAGES} more stages, see the JSON file below")
    CONSOLE.print(f"predicted time of all stages: {made.seconds:.4g} s", highlight=False)
    drawn = stages_to_draw(made, workloads)
    panels = [(stage, _simulate_best(fleet, workload, stage, config.gear.queue_batches)) for stage, workload in drawn]
    _write(config, f"{slug(taskset.name)}-{slug(fleet.name)}", made, panels)
    return made


def stages_to_draw(made: Plan, workloads: Sequence[Workload]) -> list[tuple[StagePlan, Workload]]:
    """Stages with forward-only passes, those first where they run ahead of training; any where there are no passes."""
    planned = list(zip(made.stages, workloads, strict=True))
    with_chains = [(s, workload) for s, workload in planned if workload.tasks[_longest(workload)].num_prerequisites]
    return sorted(with_chains or planned, key=lambda pair: pair[0].best.forward is None)[:SHOWN_STAGES]


def _simulate(fleet: Fleet, workload: Workload, stage: StagePlan, queue_batches: int) -> list[Simulation]:
    """The best of each strategy on the stage's task with the longest chain, the chosen one first."""
    cost, task, found = StageCost(fleet, workload), workload.tasks[_longest(workload)], []
    for candidate in (candidate for candidate in stage.best_of_each_strategy() if candidate.seconds is not None):
        # A reassigned chain may come once in many batches, and the mean needs some of them.
        count = batches_for_step(plan_task(cost, candidate, task).reassigned_share)
        found.append(simulate(*schedule_and_costs(fleet, workload, candidate, task, count, 0, queue_batches)))
    return found


def _simulate_best(fleet: Fleet, workload: Workload, stage: StagePlan, queue_batches: int) -> Simulation:
    """A few batches of the chosen candidate, then with the answers kept: what is drawn."""
    task = workload.tasks[_longest(workload)]
    return simulate(*schedule_and_costs(fleet, workload, stage.best, task, NUM_BATCHES, LATER_BATCHES, queue_batches))


def _longest(workload: Workload) -> int:
    return max(range(len(workload.tasks)), key=lambda index: workload.tasks[index].num_prerequisites)


def _print_window(stage: StagePlan, simulation: Simulation) -> None:
    ends = simulation.batch_ends_s
    slots = simulation.slots(ends[FILLED_BATCHES - 1], ends[FILLED_BATCHES])
    CONSOLE.print(
        f"{stage.stage}, one step with the pipeline filled, time downwards (0F3: pipeline stage 0, forward,\n"
        "micro-batch 3; B backward; P3/1 pass 1 of the chain of micro-batch 3, R the same on D_t):",
        highlight=False,
        soft_wrap=True,
    )
    names = simulation.schedule.devices[:SHOWN_DEVICES]
    shown = [row[: len(names)] for row in slots if any(row[: len(names)])]
    CONSOLE.print(grid(shown, names), highlight=False, soft_wrap=True, markup=False)
    hidden = len(simulation.schedule.devices) - len(names)
    CONSOLE.print(f"and {hidden} more devices\n" if hidden else "")


def _write(config: RunConfig, name: str, made: Plan, panels: list[tuple[StagePlan, Simulation]]) -> None:
    # matplotlib is loaded when the plan has been printed, and not before a mistake is found.
    from contextlora.evaluation.plots import save_figure
    from contextlora.gear.reports.timeline import timeline_figure

    names = {stage.stage for stage, _ in panels}
    figure = timeline_figure(panels, left_out=[stage for stage in made.stages if stage.stage not in names])
    picture = save_figure(figure, Path(config.runs_dir) / "plans" / f"{name}.png")
    write_atomically(picture.with_suffix(".json"), made.to_json() + "\n")
    for path in (picture, picture.with_suffix(".json")):
        CONSOLE.print(f"written: {os.path.relpath(path)}", soft_wrap=True)
