"""The processes of a run on several devices: how many there are, starting them, and the roles planned for them."""

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Any

import torch

from contextlora.config import RunConfig, read_devices
from contextlora.errors import ConfigError, UserError
from contextlora.gear.devices import Device, Fleet, Link
from contextlora.gear.peers import Peers
from contextlora.gear.plan import Plan, plan_training
from contextlora.gear.roles import StageRoles, stage_roles
from contextlora.gear.strategy import NAME as GEAR
from contextlora.tasks.taskset import TaskSet
from contextlora.workloads import stage_workloads

_JOINED = threading.Event()
POLL_S = 0.5
# Processes of one machine: the plan depends on no more than that they are equal, that links are fast, and that a call
# of a small model takes some milliseconds however few items it computes.
LOCAL_FLOPS_PER_S, LOCAL_OVERHEAD_S, LOCAL_MEMORY_BYTES, LOOPBACK = 1e11, 5e-3, 1e15, Link(1e10, 5e-5)


def num_ranks(config: RunConfig) -> int:
    """Processes that train: those that torchrun started, else as many as `training.devices`.

    Raises:
        ConfigError: several, and another strategy than contextgear.
    """
    launched = "WORLD_SIZE" in os.environ and "RANK" in os.environ
    size = int(os.environ["WORLD_SIZE"]) if launched else config.training.devices
    if size > 1 and config.training.strategy != GEAR:
        raise ConfigError(
            f"training on several devices needs training.strategy={GEAR}: got {config.training.strategy} with {size} "
            f"devices. Set it, or training.devices=1."
        )
    return size


@contextmanager
def joined(config: RunConfig, device: torch.device, work: Callable[[RunConfig], Any]) -> Iterator[Peers | None]:
    """This process among those of the run; starts the others where torchrun has not.

    Args:
        config: of the run.
        device: where this process computes.
        work: (configuration) -> what the other processes do; it must join them by this function too.

    Yields:
        The peers, or None where one process does everything.
    """
    size = num_ranks(config)
    if size == 1:
        yield None
        return
    variables = _start(config, work, size) if "RANK" not in os.environ else {}
    try:
        peers = Peers(device)
    except UserError:
        time.sleep(4 * POLL_S)  # one that was started here and has ended is named by the watch, which ends this process
        raise
    _JOINED.set()  # from here on the peers watch each other
    try:
        yield peers
    except BaseException as error:
        peers.leave(error)
        raise
    finally:
        _JOINED.clear()
        for name in variables:
            del os.environ[name]


@contextmanager
def together(peers: Peers | None, checkpoint: str) -> Iterator[None]:
    """Around what the peers do together, training and evaluation; `checkpoint` is where the last one will lie."""
    if peers is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // int(os.environ["LOCAL_WORLD_SIZE"])))
    peers.name_checkpoint(checkpoint)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
    peers.close()


def is_rank_0() -> bool:
    """Whether this process writes and prints; torchrun and `joined` say so in the environment."""
    return os.environ.get("RANK", "0") == "0"


def plan_ranks(config: RunConfig, taskset: TaskSet, size: int) -> tuple[Plan, list[StageRoles]]:
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
            f"gear.devices must list one device for each process: {config.gear.devices} lists {len(fleet.devices)}, "
            f"there are {size} processes. Change training.devices (torchrun: the number of processes) or the catalogue."
        )
    workloads, _ = stage_workloads(replace(config, gear=replace(config.gear, context="taskset")), taskset)
    whole = [replace(workload, whole_model=True) for workload in workloads]
    made = plan_training(fleet, whole, config.gear.cache_answers, config.gear.layouts)
    names = [device.name for device in fleet.devices]
    return made, [stage_roles(stage, names, config.gear.cache_answers) for stage in made.stages]


def _start(config: RunConfig, work: Callable[[RunConfig], Any], size: int) -> dict[str, str]:
    """Starts ranks 1 to size - 1 on this machine, and makes this process rank 0 by the variables that it returns."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "TORCHELASTIC_RUN_ID": "contextlora",  # by which Lightning knows that its processes have been started
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # a store that went away comes with a page of stack frames
    }
    os.environ.update(variables)  # the other processes inherit them
    context, sentinels = multiprocessing.get_context("spawn"), {}
    for rank in range(1, size):
        arguments = (config, work, {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        process = context.Process(target=_enter, args=arguments, daemon=True)
        process.start()
        sentinels[process.sentinel] = rank
    _watch_until_joined(sentinels)
    return variables


def _enter(config: RunConfig, work: Callable[[RunConfig], Any], variables: dict[str, str]) -> None:
    """What a process that `_start` started does."""
    os.environ.update(variables)
    _watch_until_joined({multiprocessing.parent_process().sentinel: 0})
    try:
        work(config)
    except UserError as error:
        print(f"contextlora: rank {variables['RANK']}: {error}", file=sys.stderr)
        sys.exit(2)


def _watch_until_joined(sentinels: dict[int, int]) -> None:
    """Ends this process if another one (sentinel -> rank) ends before all have found each other."""

    def watch() -> None:
        while not _JOINED.is_set():
            ended = wait(list(sentinels), timeout=POLL_S)
            if ended and not _JOINED.is_set():
                print(
                    f"contextlora: rank {sentinels[ended[0]]} ended before training began", file=sys.stderr, flush=True
                )
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
