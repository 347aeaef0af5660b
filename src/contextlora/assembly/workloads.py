"""The work of every stage of a configured training, as the planner wants it.

torch is loaded for one thing, to count the model's size from its config.json; that takes a few seconds.
"""

import os
from collections.abc import Callable
from pathlib import Path

from contextlora.config import RunConfig
from contextlora.errors import UserError, first_line, tail
from contextlora.gear.planning.model_size import ModelSize
from contextlora.gear.planning.workload import Workload, estimate_workloads
from contextlora.methods import build_method
from contextlora.tasks.prompts import IMAGE_PLACEHOLDER, context_of, resolve_image_view
from contextlora.tasks.taskset import TaskSet

BUNDLED = Path(__file__).parents[1] / "backbones" / "bundled"
TOKENS_PER_WORD = 4 / 3  # English prose under a byte-pair vocabulary, where there is no tokenizer to ask


def stage_workloads(config: RunConfig, taskset: TaskSet) -> tuple[tuple[Workload, ...], list[str]]:
    """The work of every stage, and what to know about its figures."""
    from contextlora.backbones.size import model_size  # imports torch

    folder = _model_folder(config.model.name)
    size = model_size(folder, config.model.target_modules, config.model.trust_remote_code)
    image = resolve_image_view(config.taskset.image, size.vision is not None)
    method_plan = build_method(config.method).plan(taskset.graph, config.taskset.scope)
    # Right answers stand for predicted ones: as long, and known before anything has trained.
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
    notes = [f"model: {config.model.name}, {size.num_parameters / 1e6:,.1f} M parameters; tokens: {counted}"]
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
    count, how, natural = _counter(folder / "tokenizer.json")
    taskset = taskset.worded(natural)
    for task in taskset.graph.tasks:
        names = taskset.context_tasks(task, config.taskset.scope)
        texts[task] = [
            taskset.prompt(
                task, item, context_of(item, names, mode, {}), image=image, answer_format=config.taskset.answer_format
            ).text
            for item in taskset.items(task, "train")[: config.training.batch_size]
        ]
    image_tokens = size.vision.num_image_tokens if size.vision else 0
    longest = {
        task: max(
            # The model puts as many image tokens in the place of the placeholder.
            length + image_tokens * (IMAGE_PLACEHOLDER in text)
            for text, length in zip(rows, count([text.replace(IMAGE_PLACEHOLDER, "") for text in rows]), strict=True)
        )
        for task, rows in texts.items()
    }
    return longest, f"{how}; the longest prompt of a first batch, {', '.join(f'{t} {n}' for t, n in longest.items())}"


def _counter(tokenizer_file: Path) -> tuple[Callable[[list[str]], list[int]], str, bool]:
    """Texts -> tokens of each, how that is found, and whether the model reads sentences."""
    if not tokenizer_file.is_file():
        how = f"estimated at {TOKENS_PER_WORD:.2f} a word, as the model has no tokenizer.json"
        return lambda texts: [round(TOKENS_PER_WORD * len(text.split())) for text in texts], how, True
    from tokenizers import Tokenizer

    from contextlora.backbones.vocabulary import knows_sentences

    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # a bare one
        raise UserError(f"{tokenizer_file} is no tokenizer ({first_line(error)}); restore the file") from error
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "")
    natural = knows_sentences(lambda text: tokenizer.encode(text).ids, unknown)
    how = "counted with tokenizer.json"
    return lambda texts: [len(row.ids) for row in tokenizer.encode_batch(texts)], how, natural


def _model_folder(name: str) -> Path:
    """The folder with a model's config.json: the bundled one, a local one, or a hub model's in the local cache."""
    folder = BUNDLED if name == "bundled" else Path(os.path.expanduser(name))
    if os.path.isfile(folder / "config.json"):
        return folder
    # Where huggingface_hub keeps what was downloaded; the newest, if there are several revisions.
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub")
    snapshots = hub.expanduser() / f"models--{name.replace('/', '--')}" / "snapshots"
    if name.count("/") == 1 and (found := list(snapshots.glob("*/config.json"))):
        return max(found, key=lambda path: path.stat().st_mtime).parent
    raise UserError(
        f"plan needs the config.json of model {tail(name)}; give its folder, or load the model once to download it"
    )
