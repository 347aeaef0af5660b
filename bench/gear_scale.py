"""ContextGear on paper: plans and simulates fleets of 10 to 1,000 devices and graphs of 4 to 1,000 tasks.

.venv/bin/python bench/gear_scale.py [folder for gear_scale.json and .png, default runs/plans]

Nothing is trained: all times are predictions of the cost model, for a made-up fleet (speeds of 0.2 to 5 TFLOP/s, drawn
from a seed) and a language model of 0.5 B parameters. Speed-up is against the best rival that is no ContextGear (one
device, data parallel, layer pipelines, each stage its own), under the same rule about keeping answers.
"""

import json
import random
import sys
import time
from pathlib import Path

from transformers import Qwen2Config

from contextlora.backbones.size import model_size
from contextlora.commands import CONSOLE
from contextlora.evaluation.plots import plt, save_figure
from contextlora.evaluation.report import as_rich, print_in_full
from contextlora.gear.planning.devices import Device, Fleet, Link
from contextlora.gear.planning.plan import Plan, plan_training
from contextlora.gear.planning.workload import Workload, estimate_workloads
from contextlora.gear.reports.tables import batches_for_step, step_s
from contextlora.gear.simulation.replay import schedule_and_costs
from contextlora.gear.simulation.simulate import simulate
from contextlora.graph import RankPartition, SliceUse, TaskGraph, TrainingPlan

DEVICES = (10, 30, 100, 300, 1000)
TASKS = (4, 12, 100, 1000)
LINKS = {"Wi-Fi, 20 Mbit/s": Link(2e7, 0.005), "Ethernet, 1 Gbit/s": Link(1e9, 0.0005)}
# Qwen2-0.5B's dimensions; a batch of 32 items of 200 tokens, 10 epochs of 512 items.
MODEL = Qwen2Config(
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)
TOKENS, BATCH_SIZE, ITEMS, STEPS, RANK = 200, 32, 512, 160, 4
COLOURS = ("#56B4E9", "#009E73", "#E69F00", "#CC79A7")


def make_fleet(count: int, link: Link, seed: int = 0) -> Fleet:
    """Devices between a board and a workstation GPU, log-uniform in speed, with memory to match."""
    rng = random.Random(seed)
    devices = []
    for number in range(count):
        speed = 2e11 * 25 ** rng.random()
        devices.append(Device(f"d{number}", 4e9 + speed * 4e-3, overhead_s=0.02, flops_per_s=speed))
    return Fleet(f"{count} devices", tuple(devices), link)


def make_workloads(count: int, seed: int = 0) -> tuple[Workload, ...]:
    """Stages of a layered random graph, about as wide as deep, with one to three prerequisites a task."""
    rng = random.Random(seed)
    width = max(1, round(count**0.5))
    graph: dict[str, tuple[str, ...]] = {}
    for number in range(count):
        # The layer before; the first one has none.
        above = [f"t{k}" for k in range((number // width - 1) * width, number // width * width) if k >= 0]
        graph[f"t{number}"] = tuple(rng.sample(above, min(len(above), rng.randint(1, 3))))
    tasks = TaskGraph(graph)
    uses = {task: SliceUse((task,), dict.fromkeys(tasks.prerequisites(task), 1.0)) for task in tasks.tasks}
    plan = TrainingPlan(RankPartition(dict.fromkeys(tasks.tasks, RANK)), uses, tasks.generations)
    return estimate_workloads(
        model_size(MODEL),
        tasks,
        plan,
        tokens=dict.fromkeys(graph, TOKENS),
        images=dict.fromkeys(graph, False),
        num_items=dict.fromkeys(graph, ITEMS),
        batch_size=BATCH_SIZE,
        steps_per_task=STEPS,
    )


def rival_seconds(plan: Plan, only: str = "") -> float:
    """The best that is no ContextGear, stage by stage, or the best of one strategy; infinite where nothing fits."""
    total = 0.0
    for stage in plan.stages:
        rivals = [c for c in stage.candidates if c.strategy == (only or c.strategy) != "contextgear"]
        total += min((c.seconds for c in rivals if c.seconds is not None), default=float("inf"))
    return total


def measure(num_devices: int, workloads: tuple[Workload, ...], link: Link, keeps_answers: bool) -> dict[str, float]:
    """Time to plan, predicted speed-ups, and how close the last stage's simulation comes to its prediction."""
    fleet = make_fleet(num_devices, link)
    began = time.perf_counter()
    plan = plan_training(fleet, workloads, keeps_answers)
    plan_s = time.perf_counter() - began
    last, workload = plan.stages[-1], workloads[-1]
    began = time.perf_counter()
    task, num_batches = workload.tasks[0], batches_for_step(last.tasks[0].reassigned_share)
    simulated = step_s(simulate(*schedule_and_costs(fleet, workload, last.best, task, num_batches)))
    gear = [stage for stage in plan.stages if stage.best.strategy == "contextgear"]
    return {
        "devices": num_devices,
        "tasks": sum(len(stage.tasks) for stage in plan.stages),
        "stages": len(plan.stages),
        "plan_s": plan_s,
        "simulate_s": time.perf_counter() - began,
        "predicted_s": plan.seconds,
        "speedup_over_rival": rival_seconds(plan) / plan.seconds,
        "speedup_over_one_device": rival_seconds(plan, "one device") / plan.seconds,
        "contextgear_stages": len(gear) / len(plan.stages),
        "devices_used": max(len(stage.best.devices) for stage in plan.stages),
        "simulated_over_predicted_step": simulated / last.tasks[0].step_s,
    }


def draw(rows: list[dict], path: Path) -> None:
    """Speed-up over the best rival by number of devices, a panel for each link and rule about answers."""
    panels = sorted({(row["link"], row["answers"]) for row in rows}, reverse=True)
    size = (7.5, 1.0 + 2.4 * (len(panels) // 2))
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=size, sharex=True, sharey=True, layout="constrained")
    for axis, (link, answers) in zip(axes.flat, panels, strict=True):
        for colour, count in zip(COLOURS, TASKS, strict=True):
            points = [r for r in rows if (r["link"], r["answers"], r["tasks"]) == (link, answers, count)]
            xs, ys = [r["devices"] for r in points], [r["speedup_over_rival"] for r in points]
            axis.plot(xs, ys, marker="o", color=colour, markersize=4, label=f"{count:,} tasks")
        axis.axhline(1, color="#6b7280", linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.set_xticks(DEVICES, [f"{count:,}" for count in DEVICES])
        axis.set_xticks([], minor=True)
        axis.set_title(f"{link}, answers {answers}", fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    figure.supylabel("predicted speed-up over the best rival (dashed: as fast)", fontsize=10)
    figure.supxlabel("devices", fontsize=10)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), ncols=4, loc="outside upper center", frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/plans")
    graphs = {count: make_workloads(count) for count in TASKS}
    rows = []
    for name, link in LINKS.items():
        for keeps_answers in (True, False):
            for workloads in graphs.values():
                for num_devices in DEVICES:
                    found = measure(num_devices, workloads, link, keeps_answers)
                    rows.append({"link": name, "answers": "kept" if keeps_answers else "made anew"} | found)
    target.mkdir(parents=True, exist_ok=True)
    (target / "gear_scale.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, target / "gear_scale.png")
    header = list(rows[0])
    cells = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    print_in_full(CONSOLE, as_rich("ContextGear on paper", header, cells))
