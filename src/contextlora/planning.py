"""What `contextlora plan` does, as a straight recipe. Nothing here or below imports torch: a plan answers at once."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from contextlora.config import RunConfig, read_devices
from contextlora.errors import UserError
from contextlora.evaluation.gear_report import candidates_table, devices_table, stage_tables, work_table
from contextlora.gear.devices import Fleet
from contextlora.gear.model_size import ModelSize
from contextlora.gear.plan import Plan, StagePlan, plan_training
from contextlora.gear.replay import replay
from contextlora.gear.schedule import grid
from contextlora.gear.simulate import Simulation
from contextlora.gear.workload import Workload, estimate_workloads
from contextlora.methods import build_plan
from contextlora.runs import write_atomically
from contextlora.tasks.prompts import IMAGE_PLACEHOLDER, context_of, render, resolve_image_view
from contextlora.tasks.taskset import TaskSet
from contextlora.tasks.tasksets import resolve_taskset

CONSOLE = Console()
BUNDLED = Path(__file__).parent / "backbones" / "bundled"
TOKENS_PER_WORD = 4 / 3  # English prose under a byte-pair vocabulary, where there is no tokenizer to ask
SHOWN_STAGES = 4
SHOWN_RANKS = 8
NUM_BATCHES = 6  # of a simulation: the pipeline fills in the first two
FILLED_BATCHES = 3
LATER_BATCHES = 2  # with the answers kept, of the chosen plan


def plan(config: RunConfig) -> Plan:
    """Plans the configured training over the devices of `gear.devices`, prints it, and draws its time line.

    Raises:
        UserError: the catalogue, the model's config.json or the task set cannot be read, or nothing fits the devices.
    """
    tree, path = read_devices(config.gear.devices)
    fleet = Fleet.from_tree(tree, path.stem, str(path))
    chosen = config.taskset
    taskset = resolve_taskset(chosen.name, chosen.data_dir, chosen.seed, chosen.regime)
    workloads, notes = stage_workloads(config, taskset)
    made = plan_training(fleet, workloads, config.gear.cache_answers)
    shown = list(zip(made.stages, workloads, strict=True))[:SHOWN_STAGES]
    windows = [_simulate(fleet, workload, stage, config.gear.queue_batches) for stage, workload in shown]
    CONSOLE.print(work_table(workloads[:SHOWN_STAGES]))
    for note in notes:
        CONSOLE.print(note, highlight=False)
    CONSOLE.print(devices_table(fleet, made.stages[:SHOWN_STAGES]))
    for (stage, workload), simulations in zip(shown, windows, strict=True):
        CONSOLE.print(candidates_table(stage, simulations, workload.tasks[_longest(workload)].task))
        for table in stage_tables(stage, simulations[0]):
            CONSOLE.print(table)
        _print_window(stage, simulations[0])
    if len(made.stages) > SHOWN_STAGES:
        CONSOLE.print(f"... and {len(made.stages) - SHOWN_STAGES} more stages, see the JSON file below")
    CONSOLE.print(f"predicted time of all stages: {made.seconds:.4g} s", highlight=False)
    panels = [(stage, simulations[0]) for (stage, _), simulations in zip(shown, windows, strict=True)]
    _write(config, f"{taskset.name}-{fleet.name}", made, panels)
    return made


def stage_workloads(config: RunConfig, taskset: TaskSet) -> tuple[tuple[Workload, ...], list[str]]:
    """The work of every stage, and what to know about its figures."""
    folder = _model_folder(config.model.name)
    description = _read_json(folder / "config.json")
    size = ModelSize.from_config(description, str(folder / "config.json"))
    image = resolve_image_view(config.taskset.image, size.vision is not None)
    method_plan = build_plan(taskset.graph, config.method)
    mode = "gold" if config.gear.context == "predicted" or config.taskset.context != "none" else "none"
    tokens, counted = count_tokens(config, taskset, size, image, mode, folder)
    answers_needed = config.gear.context == "predicted" or config.taskset.context == "predicted"
    tasks = taskset.graph.tasks
    workloads = estimate_workloads(
        size,
        taskset.graph,
        method_plan,
        tokens=tokens,
        images={t: image == "image" and any(i.image for i in taskset.items(t, "train")) for t in tasks},
        num_items={task: len(taskset.items(task, "train")) for task in tasks},
        batch_size=config.training.batch_size,
        steps_per_task=config.training.steps_per_task,
        answers_needed=answers_needed,
        bytes_per_number=4 if config.model.dtype == "float32" else 2,
    )
    parameters = size.num_text_parameters + (size.vision.num_parameters if size.vision else 0)
    notes = [f"model: {config.model.name}, {parameters / 1e6:,.1f} M parameters; tokens: {counted}"]
    if answers_needed and config.taskset.context != "predicted":
        notes.append(
            f"planned with the model's own answers in the prompts; your training uses taskset.context="
            f"{config.taskset.context}, which needs no prerequisite passes: plan that with gear.context=taskset"
        )
    return workloads, notes


def count_tokens(
    config: RunConfig, taskset: TaskSet, size: ModelSize, image: str, mode: str, folder: Path
) -> tuple[dict[str, int], str]:
    """Tokens of the longest prompt in a first batch of each task, and how they were counted."""
    texts: dict[str, list[str]] = {}
    for task in taskset.graph.tasks:
        names = taskset.graph.prerequisites(task, config.method.scope)
        texts[task] = [
            render(
                item,
                taskset.tasks[task],
                context_of(item, names, mode, {}),
                template=taskset.template,
                image=image,
                answer_format=config.taskset.answer_format,
                folder=taskset.folder,
            ).text
            for item in taskset.items(task, "train")[: config.training.batch_size]
        ]
    image_tokens = size.vision.num_image_tokens if size.vision else 0
    count, how = _counter(folder / "tokenizer.json")
    longest = {
        task: max(
            length + image_tokens * (IMAGE_PLACEHOLDER in text)
            for text, length in zip(rows, count([text.replace(IMAGE_PLACEHOLDER, "") for text in rows]), strict=True)
        )
        for task, rows in texts.items()
    }
    return longest, f"{how}; the longest prompt of a first batch, {', '.join(f'{t} {n}' for t, n in longest.items())}"


def _counter(tokenizer_file: Path) -> tuple[Callable[[list[str]], list[int]], str]:
    """Texts -> tokens of each, and how that is found."""
    if not tokenizer_file.is_file():
        how = f"estimated at {TOKENS_PER_WORD:.2f} a word, as the model has no tokenizer.json"
        return lambda texts: [round(TOKENS_PER_WORD * len(text.split())) for text in texts], how
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    return lambda texts: [len(row.ids) for row in tokenizer.encode_batch(texts)], "counted with tokenizer.json"


def _simulate(fleet: Fleet, workload: Workload, stage: StagePlan, queue_batches: int) -> list[Simulation]:
    """The best of each strategy on the stage's task with the longest chain, the chosen one first."""
    task = workload.tasks[_longest(workload)]
    fitting = [candidate for candidate in stage.best_of_each_strategy() if candidate.seconds is not None]
    later = [LATER_BATCHES if candidate is stage.best else 0 for candidate in fitting]
    return [
        replay(fleet, workload, candidate, task, NUM_BATCHES, num_later, queue_batches)
        for candidate, num_later in zip(fitting, later, strict=True)
    ]


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
    names = simulation.schedule.devices[:SHOWN_RANKS]
    shown = [row[: len(names)] for row in slots if any(row[: len(names)])]
    CONSOLE.print(grid(shown, names), highlight=False, soft_wrap=True, markup=False)
    hidden = len(simulation.schedule.devices) - len(names)
    CONSOLE.print(f"and {hidden} more devices\n" if hidden else "")


def _write(config: RunConfig, name: str, made: Plan, panels: list[tuple[StagePlan, Simulation]]) -> None:
    from contextlora.evaluation.plots import save_figure
    from contextlora.evaluation.timeline import timeline_figure

    picture = save_figure(timeline_figure(panels), Path(config.runs_dir) / "plans" / f"{name}.png")
    write_atomically(picture.with_suffix(".json"), made.to_json() + "\n")
    for path in (picture, picture.with_suffix(".json")):
        CONSOLE.print(f"written: {os.path.relpath(path)}", soft_wrap=True)


def _model_folder(name: str) -> Path:
    """The folder with a model's config.json: the bundled one, a local one, or a hub model's in the local cache."""
    folder = BUNDLED if name == "bundled" else Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder
    # Where huggingface_hub keeps what was downloaded; the newest, if there are several revisions.
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub")
    snapshots = hub.expanduser() / f"models--{name.replace('/', '--')}" / "snapshots"
    if name.count("/") == 1 and (found := list(snapshots.glob("*/config.json"))):
        return max(found, key=lambda path: path.stat().st_mtime).parent
    raise UserError(
        f"plan needs the config.json of model {name}; give its folder, or load the model once to download it"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(tree).__name__}")
    return tree
