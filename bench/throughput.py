# ruff: noqa: D102 - Lightning's hooks say what they are by their names
"""Items per processor second of a training step: stock PEFT, PEFT with this project's way to read options, and ours.

    make bench-throughput [ARGS="rounds=3 steps=12 batch_size=16 taskset=data/failuresensoriq model=smollm2-135m"]

stock    PEFT and Lightning as their documentation has it: a row is a prompt with its right answer, `labels` leave the
         prompt out, batches are drawn at random, and every column gets logits
tricks   PEFT's layers; batches of like lengths, all options packed behind the prompt, logits for their tokens alone
ours     this project's layers and module, with the same batches as `tricks`

Each arm trains the first task of the set in a real Trainer and in a process of its own, in turn, in an order drawn anew
each round; ratios are medians over rounds. The floor is the operations that torch counts in a step of ours, at the rate
of one large matrix product in the model's dtype.
"""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from contextlora.adapters.targets import resolve_targets
from contextlora.assembly.build import build_data, build_module, optimizer_settings
from contextlora.backbones.encoding import OptionBatch
from contextlora.backbones.scoring import option_scores
from contextlora.commands.bench import read_arguments
from contextlora.config import RunConfig, load_config
from contextlora.evaluation.report import markdown_table
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.taskset import TaskSet
from contextlora.training.fit import silence
from contextlora.training.memory import estimate_memory, peak_memory_bytes
from contextlora.training.optimizer import build_optimizer

ARMS = ("stock", "tricks", "ours")
WARM_STEPS = 2


def first_task_data(config: RunConfig) -> tuple[TaskSetDataModule, str]:
    """The data of the set's first task alone, which needs no other."""
    data = build_data(config)
    taskset, task = data.taskset, data.taskset.graph.tasks[0]
    items = {key: value for key, value in taskset.splits.items() if key[0] == task}
    data.taskset = TaskSet.from_items(
        [taskset.tasks[task]], items, name=taskset.name, folder=taskset.folder, template=taskset.template
    )
    return data, task


def with_right_answer(batch: OptionBatch) -> dict[str, torch.Tensor]:
    """A batch as transformers trains on it: the right option behind every prompt, and `labels` for its tokens."""
    rows = torch.arange(len(batch.answer))
    ids, mask = batch.option_ids[rows, batch.answer], batch.option_mask[rows, batch.answer]
    inputs, shape = {}, batch.inputs["input_ids"].shape
    for name, value in batch.inputs.items():
        behind = {"input_ids": ids, "attention_mask": mask.long()}.get(name, torch.zeros_like(ids))
        if name == "position_ids":
            behind = value[:, -1:] + mask.cumsum(dim=1)
        inputs[name] = torch.cat([value, behind], dim=1) if value.shape == shape else value
    ignored = torch.full(shape, -100)
    return inputs | {"labels": torch.cat([ignored, ids.masked_fill(~mask, -100)], dim=1)}


class PeftModule(lightning.LightningModule):
    """One ordinary LoRA, of the rank and scale that a task has in this project."""

    def __init__(self, config: RunConfig, data: TaskSetDataModule, steps: int) -> None:
        super().__init__()
        model, method = data.backbone.model, config.method
        lora = LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            target_modules=resolve_targets(model, config.model.target_modules),
        )
        self.model = get_peft_model(model, lora)
        self.settings, self.steps = optimizer_settings(config), steps

    def on_train_epoch_start(self) -> None:
        self.model.train()  # a backbone is loaded for inference

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if isinstance(batch, OptionBatch):
            return F.cross_entropy(option_scores(self.model.base_model.model, batch), batch.answer)
        return self.model(**batch).loss

    def configure_optimizers(self) -> dict[str, Any]:
        """Rates as in this project, so that all arms learn alike."""
        trainable = {"own": [p for p in self.model.parameters() if p.requires_grad]}
        optimizer, rates = build_optimizer(trainable, self.settings, lambda _, rate: rate, 0, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}


class Seconds(Callback):
    """Processor seconds from the end of a step to the end of the next, reading of its batch included."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self.mark = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.process_time()
        self.taken.append(now - self.mark)
        self.mark = now


def stock_loader(data: TaskSetDataModule, task: str, steps: int) -> DataLoader:
    """Batches of random items, each read a first time outside of what is timed."""
    items = data.taskset.items(task, "train")
    data.backbone.encode([data.prompt(task, item, None) for item in items])
    order = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(items), (steps * data.batch_size,), generator=order).tolist()

    def collate(numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        return with_right_answer(data.encode_items(task, [items[n] for n in numbers], None))

    return DataLoader(drawn, data.batch_size, collate_fn=collate)


def step_flops(module: lightning.LightningModule, batch: OptionBatch) -> int:
    """Of a forward and a backward of ours."""
    with FlopCounterMode(display=False) as counter:
        module.step_loss(batch).backward()
    return counter.get_total_flops()


def flops_per_cpu_s(dtype: torch.dtype) -> float:
    """The best of a large matrix product."""
    a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    seconds = []
    for _ in range(8):
        began = time.process_time()
        a @ b
        seconds.append(time.process_time() - began)
    return 2 * 2048**3 / min(seconds)


def measure(arm: str, config: RunConfig, steps: int) -> dict[str, float]:
    """An arm's figures, in this process."""
    silence()
    torch.manual_seed(0)
    data, task = first_task_data(config)
    seconds, found = Seconds(), {}
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    options |= {"enable_model_summary": False, "gradient_clip_val": 1.0, "callbacks": [seconds]}
    if arm == "ours":
        training = replace(config.training, steps_per_task=steps, validate_every_steps=steps, patience=0)
        module = build_module(replace(config, training=training), data)
        memory = estimate_memory(module)
        found["predicted_bytes"] = memory.total_bytes(data.batch_size, data.eval_batch_size)
        lightning.Trainer(max_epochs=-1, num_sanity_val_steps=0, **options).fit(module, datamodule=data)
        model = module.adapted.model
    else:
        module = PeftModule(config, data, steps)
        data.set_interval(0, (task,), 0, steps)
        loader = stock_loader(data, task, steps) if arm == "stock" else data.train_dataloader()
        lightning.Trainer(max_epochs=1, **options).fit(module, loader)
        model = module.model.base_model.model
    found["peak_bytes"] = peak_memory_bytes()
    taken = seconds.taken[WARM_STEPS:]
    found["item_cpu_s"] = sum(taken) / len(taken) / data.batch_size
    if arm == "ours":
        found["accuracy"] = module.accuracies("validation")[task]
        module.adapted.begin_stage({task: module.uses[task]})
        data.set_interval(0, (task,), 0, steps)
        flops = [step_flops(module, batch) for batch, _ in zip(data._train_batches(), range(4), strict=False)]
        found["floor_cpu_s"] = median(flops) / data.batch_size / flops_per_cpu_s(model.dtype)
    else:
        found["accuracy"] = accuracy(model.eval(), data, task)
    return found


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: TaskSetDataModule, task: str) -> float:
    """On the validation split."""
    data.set_interval(0, (task,), 0, 0)
    right = [option_scores(model, batch).argmax(dim=-1) == batch.answer for batch in data.val_dataloader()]
    return float(torch.cat(right).float().mean())


def rounds_of(arms: Sequence[str], settings: Sequence[str], rounds: int, steps: int) -> Iterator[dict[str, dict]]:
    """Each arm's figures, round by round."""
    order = random.Random(0)
    for number in range(rounds):
        found = {}
        for arm in order.sample(arms, len(arms)):
            command = [sys.executable, __file__, f"arm={arm}", f"steps={steps}", *settings]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            found[arm] = json.loads(done.stdout.splitlines()[-1])
            print(f"round {number + 1} of {rounds}, {arm}: {found[arm]}", file=sys.stderr, flush=True)
        yield found


def main() -> None:
    """All arms, or one of them in this process."""
    (arm, rounds, steps, batch_size), settings = read_arguments(sys.argv[1:], arm="", rounds=3, steps=12, batch_size=16)
    # Of all arms alike: no prompt holds answers, no validation but the last.
    config = load_config([*settings, f"training.batch_size={batch_size}", "taskset.context=none"])
    if arm:
        print(json.dumps(measure(arm, config, steps)))
        return
    settings += [f"batch_size={batch_size}"]
    found = list(rounds_of(ARMS, settings, rounds, steps))
    header = [
        "arm",
        "CPU s an item",
        "times stock",
        "times tricks",
        "validation %",
        "peak MiB",
        "predicted MiB",
        "floor",
    ]
    rows = []
    for arm in ARMS:
        ratios = [
            f"{median(one[other]['item_cpu_s'] / one[arm]['item_cpu_s'] for one in found):.2f}" for other in ARMS[:2]
        ]
        figure = {key: median(one[arm][key] for one in found) for key in found[0][arm]}
        mib = [f"{figure[key] / 2**20:.0f}" if key in figure else "" for key in ("peak_bytes", "predicted_bytes")]
        floor = f"{100 * figure['floor_cpu_s'] / figure['item_cpu_s']:.0f} %" if "floor_cpu_s" in figure else ""
        right = f"{100 * figure['accuracy']:.1f}"
        rows.append([arm, f"{figure['item_cpu_s']:.4f}", *ratios, right, *mib, floor])
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
