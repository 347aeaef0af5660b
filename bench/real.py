"""The bundled model itself on two processes over loopback: CPU time of each process, and wall time.

One thread a process. On a busy machine wall times say little; CPU time of the busier process is what two devices would
need, without what they wait for.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from statistics import median

import torch.nn.functional as F
from emulation import Variant, train
from links import LINKS, Network
from processes import Processes
from torch import Tensor
from variants import DATA, GEAR, ONE, PLAIN, describe, make_fleet, plan_variants, timed_window

from contextlora.assembly.build import build_data, build_module
from contextlora.assembly.placement import LOOPBACK
from contextlora.backbones.scoring import option_scores
from contextlora.config import RunConfig
from contextlora.evaluation.report import markdown_table
from contextlora.gear.execution.executor import Shard
from contextlora.gear.planning.devices import Device
from contextlora.gear.planning.workload import Workload
from contextlora.tasks.task import Item
from contextlora.training.module import ContextLoraModule

WARM_STEPS, TIMED_STEPS = 1, 3
NAMES = (ONE, DATA, PLAIN, GEAR)


def measure_real(
    config: RunConfig, calibrated: Device, workloads: Sequence[Workload], rounds: int, seed: int
) -> Iterator[dict]:
    """CPU and wall seconds of a step, for every task that needs answers; yields a row for each task."""
    fleet, order = make_fleet(calibrated, (1.0, 1.0), {(0, 1): LOOPBACK}), random.Random(seed)
    with Network(LINKS["loopback"], 2) as network, Processes(network) as processes:
        for workload in workloads:
            for task in (task for task in workload.tasks if task.num_prerequisites):
                print(f"{task.task}, n={task.num_prerequisites}", file=sys.stderr, flush=True)
                planned = plan_variants(fleet, replace(workload, tasks=(task,)))
                names = [name for name in NAMES if name != GEAR or planned[GEAR].plan != planned[PLAIN].plan]
                seconds: dict[str, list] = {name: [] for name in names}
                for _ in range(rounds):
                    for name in order.sample(names, len(names)):
                        seconds[name].append(processes.call(step_seconds, config, planned[name]))
                how = {name: describe(planned[name]) for name in names}
                yield {"task": task.task, "n": task.num_prerequisites, "how": how, "wall_cpu_s": seconds}


def step_seconds(config: RunConfig, variant: Variant) -> tuple[float, float]:
    """Wall and CPU seconds of a step on this process."""
    module = _module(config)
    warm, num_steps = timed_window(variant, WARM_STEPS, TIMED_STEPS)
    marks = train(variant, _Real(module, variant.task.task), num_steps, 0)[warm:]
    module.adapted.end_stage()  # the module is kept for the next variant
    return tuple((last - first) / (num_steps - warm) for first, last in zip(marks[0], marks[-1], strict=True))[:2]


@cache
def _made() -> dict[str, ContextLoraModule]:
    return {}


def _module(config: RunConfig) -> ContextLoraModule:
    """That of this process, made once."""
    if "module" not in _made():
        _made()["module"] = build_module(config, build_data(config))
    return _made()["module"]


class _Real:
    """The adapted model in the stage of one task; its slices are untrained, which costs the same.

    Steps go on from the first item when all have been seen: nothing is remembered between them.
    """

    def __init__(self, module: ContextLoraModule, task: str) -> None:
        self.module, self.use = module, module.plan.uses[task]
        self.taskset = module.data.taskset
        self.items = self.taskset.items(task, "train")
        module.adapted.begin_stage({task: self.use})
        module.adapted.train()
        self.weights = [weight for group in module.adapted.parameter_groups().values() for weight in group]
        self.chain = self.taskset.graph.prerequisites(task, module.data.scope)
        self.num_answers = len(self.chain)

    def answer(self, task: str, numbers: Sequence[int]) -> Tensor:
        return self.module.evaluator.chain_choices(task, [number % len(self.items) for number in numbers], self.chain)

    def loss(self, task: str, numbers: Sequence[int], shard: Shard) -> Tensor:
        items, module = [self.items[number % len(self.items)] for number in numbers], self.module
        contexts = [self._words(item, row) for item, row in zip(items, shard.answers.tolist(), strict=True)]
        batch = module.data.encode_items(task, items, contexts, shard.rows)
        # As `training_step` has it: dropout takes the mask of these rows.
        module.masks.rows, module.masks.batch_size = batch.rows, batch.batch_size
        with module.adapted.active(self.use, task):
            return F.cross_entropy(option_scores(module.adapted.model, batch), batch.answer)

    def _words(self, item: Item, choices: Sequence[int]) -> dict[str, str]:
        options = {name: self.taskset.parent(name, "train", item) for name in self.chain}
        chosen = zip(self.chain, choices, strict=True)
        return {name: options[name].options[choice] for name, choice in chosen if choice >= 0}


def real_table(rows: Sequence[dict]) -> str:
    """CPU seconds a step of both processes, the busier one's share of one device's, and wall time's."""
    header = ["task", "n", "variant", "plan", "CPU s, processes 0 and 1", "busier / one device", "wall / one device"]
    lines = []
    for row in rows:
        one = row["wall_cpu_s"][ONE]
        for name, rounds in row["wall_cpu_s"].items():
            cpu = [median(r[process][1] for r in rounds) for process in (0, 1)]
            ratios = []
            for part in (1, 0):
                busier = (max(process[part] for process in r) for r in rounds)
                ratios.append(median(a / max(b[0][part], b[1][part]) for a, b in zip(busier, one, strict=True)))
            figures = (f"{cpu[0]:.3f}, {cpu[1]:.3f}", f"{ratios[0]:.2f}", f"{ratios[1]:.2f}")
            lines.append([row["task"], str(row["n"]), name, row["how"][name], *figures])
    return markdown_table(header, lines)
