"""A task graph and its data made in memory, trained with a Lightning Trainer: `.venv/bin/python docs/script.py`."""

import random

import lightning

import contextlora as cl

COLOURS, SIZES = ("red", "blue", "green"), {"train": 200, "validation": 50, "test": 100}
TASKS = [cl.Task("first", (), num_options=3), cl.Task("same", ("first",), num_options=2)]


def make(scene: str, task: str) -> cl.Item:
    """What is the first colour? Are both the same?"""
    a, b = random.Random(scene).choices(COLOURS, k=2)
    options, answer = (COLOURS, COLOURS.index(a)) if task == "first" else (("yes", "no"), int(a != b))
    given = {"first": a} if task == "same" else {}
    return cl.Item(scene, scene, f"c1 {a} , c2 {b} . {task} ?", options, answer, prerequisites=given)


items = {(task.name, s): [make(f"{s}-{k}", task.name) for k in range(n)] for task in TASKS for s, n in SIZES.items()}
data = cl.TaskSetDataModule(cl.TaskSet.from_items(TASKS, items), cl.load_backbone("bundled"), batch_size=16)
module = cl.ContextLoraModule(data, length=cl.StageLength(40, 20), optimizer=cl.OptimizerSettings(4e-3))
lightning.Trainer(max_epochs=-1, logger=False, enable_checkpointing=False).fit(module, datamodule=data)
print(module.accuracies("test"))
