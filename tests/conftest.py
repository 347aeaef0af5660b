"""A tiny task set and a tiny random language model that reads it: made from configurations, nothing is downloaded."""

import faulthandler
import multiprocessing
import os
import queue
import random
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One thread a process, set before torch is loaded: the number of threads changes the last digits of a product, and
# tests that compare several processes with one, bit by bit, must give each the same.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from contextlora.config import RunConfig, load_config
from contextlora.tasks.task import Item, Task
from contextlora.tasks.taskset import TaskSet, write_taskset
from tests.messages import recorded_errors, rule_broken
from tests.paired import paired_folder  # noqa: F401 - a fixture

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup leaves it ignored, here and in what is started from here

WORDS = ("red", "blue", "green")
LETTERS = ("p", "q", "r", "s")
GRAPH = {"a": (), "b": (), "c": ("a", "b"), "d": ("a", "c")}  # two roots that join, and an edge over a generation
NUM_SCENES = {"train": 24, "validation": 12, "test": 12}


def answers(first: int, second: int) -> dict[str, str]:
    """The four tasks' answers for a scene that shows two letters: sums modulo 3 along the graph."""
    a, b = first % 3, second % 3
    c = (a + b) % 3
    return {"a": WORDS[a], "b": WORDS[b], "c": WORDS[c], "d": WORDS[(a + c) % 3]}


def make_items(split: str, task: str) -> list[Item]:
    items = []
    for number in range(NUM_SCENES[split]):
        rng = random.Random(f"{split} {number}")
        first, second = rng.randrange(4), rng.randrange(4)
        right = answers(first, second)
        options = rng.sample(WORDS, 3)
        items.append(
            Item(
                id=f"{split}-{number}",
                scene=f"{split}-{number}",
                question=f"sees {LETTERS[first]} {LETTERS[second]} . {task} ?",
                options=tuple(options),
                answer=options.index(right[task]),
                prerequisites={name: right[name] for name in ("a", "b", "c") if name in _ancestors(task)},
            )
        )
    return items


def _ancestors(task: str) -> set[str]:
    return {name for above in GRAPH[task] for name in (above, *_ancestors(above))}


@pytest.fixture(scope="session")
def taskset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks") / "tiny"
    tasks = [Task(name, prerequisites, num_options=3) for name, prerequisites in GRAPH.items()]
    items = {(task.name, split): make_items(split, task.name) for task in tasks for split in NUM_SCENES}
    write_taskset(folder, "tiny", tasks, items)
    return folder


@pytest.fixture(scope="session")
def taskset(taskset_folder: Path) -> TaskSet:
    return TaskSet.load(taskset_folder)


SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}


def _save_llava(tokenizer: hf.PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves a random LLaVA of two layers; the tokenizer knows `<image>`."""
    vision = hf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = hf.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_key_value_heads=1,
        head_dim=8,
        **SMALL,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    size = {"height": 16, "width": 16}
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def save_llava() -> Callable[[hf.PreTrainedTokenizerFast, Path], None]:
    return _save_llava


def save_model(kind: str, folder: Path) -> None:
    """Saves a random model of two layers whose words are single tokens; kind: llama, qwen2, gemma, gpt2 or llava."""
    words = ("<unk>", *WORDS, *LETTERS, *GRAPH, "sees", "given", "options", "answer", ".", ",", ":", "?")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    torch.manual_seed(0)
    if kind == "llava":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        _save_llava(tokenizer, folder)
        return
    tokenizer.save_pretrained(folder)
    if kind == "gpt2":
        config = hf.GPT2Config(vocab_size=len(words), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    else:
        config = {"llama": hf.LlamaConfig, "qwen2": hf.Qwen2Config, "gemma": hf.GemmaConfig}[kind](
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=48,
            num_key_value_heads=2,
            head_dim=16,
            **SMALL,
        )
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    save_model("llama", folder)
    return folder


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind -> folder of a tiny qwen2, gemma, gpt2 or llava."""

    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / kind
        save_model(kind, folder)
        return folder

    return make


# All that could break bit identity is on: dropout, weight decay, open prerequisite ranks, gates, predicted answers.
SETTINGS = (
    "method.rank=2",
    "method.dropout=0.1",
    "model.dtype=float32",
    "training.learning_rate=1e-2",
    "training.weight_decay=0.1",
    "training.batch_size=4",
    "training.steps_per_task=5",
    "training.validate_every_steps=2",
    "training.patience=0",
    "taskset.context=predicted",
    "tracking.mode=off",
    "training.progress=false",
)
CONTEXTLORA = ("method.delta=0.5", "method.variant=gated")  # which other methods do not have


@pytest.fixture
def tiny_settings(taskset_folder: Path, model_folder: Path, tmp_path: Path) -> list[str]:
    """Dotted settings of a tiny run, as for the command line."""
    return [f"taskset={taskset_folder}", f"model={model_folder}", f"runs_dir={tmp_path / 'runs'}", *SETTINGS]


@pytest.fixture(autouse=True)
def own_environment():
    """What a test's program puts into the environment, such as the interface that it listens on, ends with the test."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def messages_keep_the_rules():
    """A user can act on the message of every error that a test meets."""
    with recorded_errors() as errors:
        yield
    broken = [f"{place}: {rule}: {message}" for place, message in errors if (rule := rule_broken(message))]
    assert not broken, "\n".join(["a message must be a line that says what to change (tests/messages.py):", *broken])


@pytest.fixture
def make_config(tiny_settings: list[str]) -> Callable[..., RunConfig]:
    """(dotted settings ...) -> configuration of a tiny run, of ContextLoRA unless they name another method."""

    def make(*settings: str) -> RunConfig:
        others = [value for key, _, value in (s.partition("=") for s in settings) if key == "method"]
        own = CONTEXTLORA if set(others) <= {"contextlora"} else ()
        return load_config([*tiny_settings, *own, *settings])

    return make


LONGEST_S = 240.0  # of all that processes do in one test; several of them may share a core


def _process(function: Callable[..., Any], arguments: tuple, variables: dict[str, str], results: Any) -> None:
    os.environ.update(variables)
    faulthandler.dump_traceback_later(0.9 * LONGEST_S, file=sys.__stderr__)  # pytest may have put another one there
    torch.set_num_threads(1)  # the thread pool of a forked process is dead
    results.put((int(variables["RANK"]), function(*arguments)))
    results.close()
    results.join_thread()


@pytest.fixture(params=["pipe", "socket", "device", "folder"])
def no_file(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Puts what is no ordinary file at a path: reading it would wait for ever, have no end, or fail."""

    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()

    return put


@pytest.fixture
def free_port() -> Callable[[], int]:
    """() -> a TCP port that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture
def run_processes(free_port: Callable[[], int]) -> Callable[..., list[Any]]:
    """(number, function, arguments ...) -> what the function returned in each process, None where the process ended.

    Processes are forked: what the test's process has imported and made is there at once.
    """

    def run(number: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        context = multiprocessing.get_context("fork")
        results, found = context.Queue(), {}
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "tests"}
        shared |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "GROUP_RANK": "0"}
        own = [shared | {"RANK": str(index), "LOCAL_RANK": str(index)} for index in range(number)]
        processes = [context.Process(target=_process, args=(function, arguments, row, results)) for row in own]
        for process in processes:
            process.start()
        ends = time.monotonic() + LONGEST_S
        try:
            while len(found) < number and time.monotonic() < ends:
                alive = any(process.is_alive() for process in processes)
                try:
                    index, value = results.get(timeout=0.2)
                    found[index] = value
                except queue.Empty:
                    if not alive:
                        break
            for process in processes:
                process.join(max(0.1, ends - time.monotonic()))
        finally:
            for process in processes:
                process.kill()
        return [found.get(index) for index in range(number)]

    return run
