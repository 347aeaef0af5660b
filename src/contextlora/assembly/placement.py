"""Where a configured training runs: on how many processes, and in which roles."""

import os
from dataclasses import replace

from contextlora.assembly.workloads import stage_workloads
from contextlora.config import RunConfig, read_devices
from contextlora.errors import ConfigError, tail
from contextlora.gear.execution.strategy import NAME as GEAR
from contextlora.gear.planning.devices import Device, Fleet, Link
from contextlora.gear.planning.plan import Plan, plan_training
from contextlora.gear.planning.roles import StageRoles, stage_roles
from contextlora.tasks.taskset import TaskSet
from contextlora.training import fit

# Processes of one machine: the plan depends on no more than that they are equal, that links are fast, and that a call
# of a small model takes some milliseconds however few items it computes.
LOCAL_FLOPS_PER_S, LOCAL_OVERHEAD_S, LOCAL_MEMORY_BYTES, LOOPBACK = 1e11, 5e-3, 1e15, Link(1e10, 5e-5)


def num_processes(config: RunConfig) -> int:
    """Processes that train: those that torchrun started, else as many as `training.devices`.

    Raises:
        ConfigError: several, and a setting that their strategy does not know.
    """
    launched = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    size = int(os.environ["WORLD_SIZE"]) if launched else config.training.devices
    if size > 1 and config.training.strategy == GEAR and config.training.micro_batch_size is not None:
        raise ConfigError(
            f"training.micro_batch_size is not for contextgear, which cuts batches as its plan says: got "
            f"{config.training.micro_batch_size} with {size} devices. Set it to null."
        )
    most = 4 * (os.cpu_count() or 1)
    if not launched and size > most and fit.compute_device(config.training.accelerator).type == "cpu":
        raise ConfigError(
            f"training.devices must be at most {most}, four times the processors of this machine, got {size}; lower it"
        )
    return size


def plan_processes(config: RunConfig, taskset: TaskSet, size: int) -> tuple[Plan, list[StageRoles]]:
    """Plans every stage for this many processes.

    Raises:
        ConfigError: the catalogue has another number of devices.
    """
    if config.gear.devices:
        tree, path = read_devices(config.gear.devices)
        fleet = Fleet.from_tree(tree, path.stem, str(path))
    else:
        figures = LOCAL_MEMORY_BYTES, LOCAL_OVERHEAD_S, LOCAL_FLOPS_PER_S
        local = [Device(f"device-{i}", *figures) for i in range(size)]
        fleet = Fleet("local", tuple(local), LOOPBACK)
    if len(fleet.devices) != size:
        raise ConfigError(
            f"gear.devices must list one device for each process: {tail(config.gear.devices)} lists "
            f"{len(fleet.devices)}, there are {size} processes. Change training.devices (torchrun: their number) or "
            "the catalogue."
        )
    # The training as it is: gear.context asks what another one would take, for `plan`.
    workloads, _ = stage_workloads(replace(config, gear=replace(config.gear, context="taskset")), taskset)
    # A process keeps the whole model, also where it runs some of its layers only.
    whole = [replace(workload, whole_model=True) for workload in workloads]
    made = plan_training(fleet, whole, config.gear.cache_answers, config.gear.layouts)
    names = [device.name for device in fleet.devices]
    return made, [stage_roles(stage, names, config.gear.cache_answers) for stage in made.stages]
