"""What the commands do that make what a run starts from: task sets, the bundled backbone, a device catalogue."""

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from contextlora.assembly import Parts, compute_device, facts, run_parts
from contextlora.backbones.scoring import option_scores
from contextlora.config import RunConfig, write_devices
from contextlora.errors import UserError
from contextlora.evaluation.report import print_in_full, skills_table
from contextlora.gear.devices import Device, Fleet, Link
from contextlora.gear.peers import Peers
from contextlora.gear.profile import measure_device, measure_links
from contextlora.ranks import LOOPBACK, is_rank_0, joined
from contextlora.tasks.checks import check_table, check_taskset
from contextlora.tasks.tasksets import load_taskset
from contextlora.workloads import stage_workloads

CONSOLE = Console()
LOG_LINES = 50  # of a long job whose output goes to a file


def data(config: RunConfig) -> None:
    """Builds the task set where it is not there yet, and prints what it holds."""
    taskset = load_taskset(config.taskset)
    CONSOLE.print(f"task set {taskset.name}: {taskset.folder}")
    for task in taskset.graph.tasks:
        counts = ", ".join(f"{len(taskset.items(task, split))} {split}" for split in ("train", "validation", "test"))
        CONSOLE.print(f"  {task}: {counts}")


def data_check(config: RunConfig) -> None:
    """Runs the probes for shortcuts and prints their table.

    Raises:
        UserError: a probe breaks its limit.
    """
    checks = check_taskset(load_taskset(config.taskset))
    print_in_full(CONSOLE, check_table(checks))
    broken = [check for check in checks if not check.ok]
    if broken:
        raise UserError(f"{len(broken)} of {len(checks)} probes break their limit, see the table; mend the task set")


def backbone(config: RunConfig) -> None:
    """Builds a backbone from scratch, as the bundled one was, into `<runs_dir>/backbone/seed-<seed>`."""
    from contextlora.backbones.build import SKILL_TARGETS, build_backbone
    from contextlora.backbones.pretrain import PretrainConfig

    settings = PretrainConfig(seed=config.seed)
    folder = Path(config.runs_dir) / "backbone" / f"seed-{config.seed}"
    columns = (
        TextColumn("pretraining"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=CONSOLE) as bars:
        bar = bars.add_task("", total=settings.num_steps, loss="")

        def show(step: int, loss: float) -> None:
            bars.update(bar, completed=step, loss=f"loss {loss:.3f}")
            if not CONSOLE.is_terminal and step % max(1, settings.num_steps // LOG_LINES) == 0:
                CONSOLE.print(f"step {step}/{settings.num_steps}, loss {loss:.3f}", highlight=False)

        card = build_backbone(folder, settings, show)
    print_in_full(CONSOLE, skills_table(card["skills"]["test"], SKILL_TARGETS))
    shown = os.path.relpath(folder)
    text = f"backbone: {shown}, {card['train_seconds'] / 60:.0f} min; use it with MODEL={shown}"
    CONSOLE.print(text, soft_wrap=True)


def profile(config: RunConfig) -> None:
    """Measures this machine, or all processes and the links between them, into a device catalogue.

    Prints the figures and writes `<runs_dir>/devices/<host>.yaml`, which `gear.devices` takes.
    """
    with joined(config, compute_device(config), profile) as peers:
        parts = run_parts(config)
        if peers is not None:
            peers.compare(facts(config, parts))
        found = _measure(config, parts, peers)
    if is_rank_0():
        name = socket.gethostname() if peers is None else f"{socket.gethostname()}-{peers.size}"
        devices = [device for device, _ in found]
        links = {pair: link for _, row in found for pair, link in row.items()}
        named = {tuple(sorted(devices[rank].name for rank in pair)): link for pair, link in links.items()}
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


def _measure(config: RunConfig, parts: Parts, peers: Peers | None) -> list[tuple[Device, dict[tuple[int, int], Link]]]:
    """Every rank's device and the links that it measured; ranks compute at the same time, as in training."""
    stage = parts.plan.stages[-1]
    workloads, _ = stage_workloads(config, parts.taskset)
    work, sizes = workloads[-1].tasks[0], (max(1, config.training.batch_size // 4), config.training.batch_size)
    parts.adapted.begin_stage({task: parts.plan.uses[task] for task in stage})
    parameters = [p for group in parts.adapted.parameter_groups().values() for p in group]
    items, device = parts.taskset.items(work.task, "train"), compute_device(config)
    batches = {
        size: parts.data.encode_items(work.task, items[:size], [i.prerequisites for i in items[:size]]).to(device)
        for size in sizes
    }

    def run(size: int, trains: bool) -> None:
        with torch.set_grad_enabled(trains), parts.adapted.active(parts.plan.uses[work.task], work.task):
            scores = option_scores(parts.adapted.model, batches[size])
            if trains:
                torch.autograd.grad(scores[:, 0].sum(), parameters, allow_unused=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    calls = {"forward": lambda size: run(size, False), "train": lambda size: run(size, True)}
    host, rank = socket.gethostname(), peers.rank if peers else 0
    workload = f"{config.model.name}, task {work.task} of {config.taskset.name}"
    measured = measure_device(f"{host}-{rank}", calls, sizes, workload, work.forward_flops, _memory_bytes(device))
    if peers is None:
        return [(measured, {})]
    found: list = [None] * peers.size
    dist.all_gather_object(found, (measured, measure_links(peers.rank, peers.size)))
    dist.barrier()
    return found


def _memory_bytes(device: torch.device) -> float:
    """A GPU's memory, or this process's part of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return total / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
