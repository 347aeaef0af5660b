"""`contextlora data`: builds a task set, and shows what is in it."""

from collections.abc import Mapping
from types import SimpleNamespace

from rich.table import Table

from contextlora.backbones.load import load_tokenizer
from contextlora.backbones.vocabulary import reads_sentences, vocabularies
from contextlora.commands import CONSOLE
from contextlora.config import RunConfig
from contextlora.errors import tail
from contextlora.evaluation.report import as_rich, percent, print_in_full
from contextlora.evaluation.statistics import Spread, shared_scenes, task_statistics, token_lengths
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.order import some_of
from contextlora.tasks.prompts import Prompt
from contextlora.tasks.task import SPLITS
from contextlora.tasks.taskset import TaskSet
from contextlora.tasks.tasksets import load_taskset

_MOST_PROMPTS = 512  # of a task and split: a second or two for long ones


def data(config: RunConfig, stats: bool = False) -> None:
    """Builds the task set where it is not there yet, and prints what it holds; with `stats` also what to expect."""
    taskset = load_taskset(config.taskset)
    CONSOLE.print(f"task set {taskset.name}: {taskset.folder}")
    if not stats:
        for task in taskset.graph.tasks:
            counts = ", ".join(f"{len(taskset.items(task, split))} {split}" for split in SPLITS)
            CONSOLE.print(f"  {task}: {counts}")
        return
    print_in_full(CONSOLE, _tasks_table(taskset))
    if edges := [(parent, task) for task in taskset.graph.tasks for parent in taskset.graph.prerequisites(task)]:
        shared = [[f"{a} -> {b}", *_shares(shared_scenes(taskset, a, b), taskset, b)] for a, b in edges]
        title = "items with an item of the prerequisite in their scene"
        print_in_full(CONSOLE, as_rich(title, ["edge", *SPLITS], shared))
    print_in_full(CONSOLE, _tokens_table(config, taskset))


def _tasks_table(taskset: TaskSet) -> Table:
    rows = []
    for task in taskset.graph.tasks:
        found = task_statistics(taskset, task)
        options = "..".join(map(str, sorted({found.fewest_options, found.most_options})))
        baselines = map(percent, (found.chance, found.majority, found.popularity))
        rows.append([task, *(str(found.num_items[split]) for split in SPLITS), options, *baselines])
    title = (
        "items, options, and accuracy in % on test without reading a question: by chance, the answer most frequent in "
        "train, and the one right most often where it is offered"
    )
    return as_rich(title, ["task", *SPLITS, "options", "chance", "majority", "popularity"], rows)


def _shares(shared: Mapping[str, int], taskset: TaskSet, child: str) -> list[str]:
    return [f"{shared[split]} of {len(taskset.items(child, split))}" for split in SPLITS]


def _tokens_table(config: RunConfig, taskset: TaskSet) -> Table:
    model = config.model
    tokenizer, takes_images = load_tokenizer(model.name, model.trust_remote_code)
    # Its checks of context are those of a training, which this comes before.
    reader = SimpleNamespace(is_multimodal=takes_images, reads_sentences=reads_sentences(tokenizer))
    chosen = config.taskset
    writer = TaskSetDataModule(taskset, reader, context="none", image=chosen.image, answer_format=chosen.answer_format)
    unknown = {one.task: one for one in vocabularies(writer.taskset, tokenizer, model.name, writer.image)}
    rows = []
    for task in taskset.graph.tasks:
        prompts = _prompts(config, writer, task)
        lengths = token_lengths(prompts, tokenizer, model.name, model.chat_template == "auto", takes_images)
        share = percent(unknown[task].unknown_share)
        rows.append([task, *(cell for spread in lengths for cell in _cells(spread)), share])
    columns = [f"{what} {share}" for what in ("prompt", "option") for share in ("median", "95 %", "most")]
    title = f"tokens of model {tail(model.name)}, without those of images; unknown: % of all"
    return as_rich(title, ["task", *columns, "unknown"], rows)


def _prompts(config: RunConfig, writer: TaskSetDataModule, task: str) -> list[Prompt]:
    """Those of an even sample of items, with the right answers to their prerequisites where a training shows any."""
    taskset, chosen = writer.taskset, config.taskset
    names = taskset.context_tasks(task, chosen.scope) if chosen.context != "none" else ()
    return [
        writer.prompt(task, item, {name: item.prerequisites[name] for name in names if name in item.prerequisites})
        for split in SPLITS
        for item in some_of(taskset.items(task, split), _MOST_PROMPTS)
    ]


def _cells(spread: Spread) -> list[str]:
    return [str(spread.median), str(spread.most_of), str(spread.largest)]
