"""`contextlora profile`: measures devices and links into a catalogue."""

import os
import socket
from dataclasses import asdict
from pathlib import Path

import torch

from contextlora.assembly.build import build_data, build_module, compute_device
from contextlora.assembly.placement import LOOPBACK, num_processes
from contextlora.assembly.provenance import facts
from contextlora.assembly.workloads import stage_workloads
from contextlora.backbones.scoring import option_scores
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig, write_devices
from contextlora.gear.execution.peers import Peers
from contextlora.gear.execution.process_groups import gather_trees
from contextlora.gear.execution.profile import measure_device, measure_links
from contextlora.gear.planning.devices import Device, Fleet, Link, Measured
from contextlora.gear.processes import is_first_process, joined
from contextlora.training.module import ContextLoraModule


def profile(config: RunConfig) -> None:
    """Measures this machine, or all processes and the links between them, into a device catalogue.

    Prints the figures and writes `<runs_dir>/devices/<host>.yaml`, which `gear.devices` takes.
    """
    with joined(num_processes(config), compute_device(config), profile, config) as peers:
        module = build_module(config, build_data(config))
        if peers is not None:
            peers.compare(facts(config, module.data))
        found = _measure(config, module, peers)
    if is_first_process():
        name = socket.gethostname() if peers is None else f"{socket.gethostname()}-{peers.size}"
        devices = [device for device, _ in found]
        links = {pair: link for _, row in found for pair, link in row.items()}
        named = {tuple(sorted(devices[process].name for process in pair)): link for pair, link in links.items()}
        fleet = Fleet(name, tuple(devices), next(iter(links.values()), LOOPBACK), named)
        path = Path(config.runs_dir) / "devices" / f"{name}.yaml"
        header = f"Measured by `contextlora profile` with model {config.model.name} on task set {config.taskset.name}."
        write_devices(fleet.to_tree(), path, header)
        for device in devices:
            seconds = f"{1e3 * device.measured.forward_s:.3g} ms forward, {1e3 * device.measured.train_s:.3g} ms with"
            text = f"{device.name}: {seconds} backward an item, {1e3 * device.overhead_s:.3g} ms a call"
            CONSOLE.print(text, highlight=False)
        for (first, second), link in named.items():
            text = f"{first} - {second}: {link.bandwidth_bits_per_s / 1e6:.4g} Mbit/s, {1e3 * link.latency_s:.3g} ms"
            CONSOLE.print(text, highlight=False)
        CONSOLE.print(f"catalogue: {os.path.relpath(path)}; use it with gear.devices=...", soft_wrap=True)


def _measure(
    config: RunConfig, module: ContextLoraModule, peers: Peers | None
) -> list[tuple[Device, dict[tuple[int, int], Link]]]:
    """Every process's device and the links that it measured; processes compute at the same time, as in training."""
    adapted, data, uses = module.adapted, module.data, module.uses
    workloads, _ = stage_workloads(config, data.taskset)
    # Two sizes of a call tell its fixed overhead from the time of an item.
    work, sizes = workloads[-1].tasks[0], (max(1, config.training.batch_size // 4), config.training.batch_size)
    adapted.begin_stage({task: uses[task] for task in module.plan.stages[-1]})
    parameters = [p for group in adapted.parameter_groups().values() for p in group]
    items, device = data.taskset.items(work.task, "train"), compute_device(config)
    batches = {
        size: data.encode_items(work.task, items[:size], [data.right_context(work.task, i) for i in items[:size]]).to(
            device
        )
        for size in sizes
    }

    def run(size: int, trains: bool) -> None:
        with torch.set_grad_enabled(trains), adapted.active(uses[work.task], work.task):
            scores = option_scores(adapted.model, batches[size])
            if trains:
                # Any loss costs the same backward; leaves of other tasks of the stage have no part in this one.
                torch.autograd.grad(scores[:, 0].sum(), parameters, allow_unused=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # kernels run on after the call returns

    calls = {"forward": lambda size: run(size, False), "train": lambda size: run(size, True)}
    host, process = socket.gethostname(), peers.process if peers else 0
    workload = f"{config.model.name}, task {work.task} of {config.taskset.name}"
    measured = measure_device(f"{host}-{process}", calls, sizes, workload, work.forward_flops, _memory_bytes(device))
    if peers is None:
        return [(measured, {})]
    links = {pair: asdict(link) for pair, link in measure_links(peers.process, peers.size).items()}
    return [
        (Device(**device | {"measured": Measured(**device["measured"])}), {p: Link(**link) for p, link in row.items()})
        for device, row in gather_trees((asdict(measured), links))
    ]


def _memory_bytes(device: torch.device) -> float:
    """A GPU's memory, or this process's part of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return total / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
