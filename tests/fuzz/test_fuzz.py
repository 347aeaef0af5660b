"""Gives commands damaged inputs: each must end well, or in one clear line and exit code 2.

Kinds of input (see `inputs.py`) take turns. A command runs in a forked process, which need not import torch again, in a
folder of its own in which all that it writes is found.

    make fuzz FUZZ=10000 [SEED=1] [KIND=images]     half a second an input
    make fuzz SEED=1 KIND=images/17                 the 17th input of a kind again
"""

import faulthandler
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import huggingface_hub.constants
import pytest
import torch

from contextlora import cli
from contextlora.tasks.taskset import TaskSet
from tests.messages import rule_broken

from .box import Box, snapshot
from .data_inputs import DATA_KINDS, prepare_tables
from .inputs import KINDS as BASIC_KINDS
from .inputs import WRITTEN, Input, prepare

KINDS = BASIC_KINDS | DATA_KINDS
FUZZ, SEED, KIND = int(os.environ.get("FUZZ") or 0), int(os.environ.get("SEED") or 0), os.environ.get("KIND") or ""
SAMPLE = 2  # inputs of each kind where nobody says how many
LONGEST_S = 20.0
NOTES = ("continue it with: make resume",)
MEMORY_BYTES = 4 << 30  # beyond what the tests' process has; a damaged size must not take the machine's
FORK = multiprocessing.get_context("fork")
COLUMNS = ("inputs", "exit 0", "one line", "traceback", "unclear", "hang", "outside")
GOOD = ("exit 0", "one line")
SETTINGS_HELP = list(cli._settings_help())
pytestmark = pytest.mark.slow


class Ending(NamedTuple):
    """How a command ended: its exit code (None: it hung), what it said on stderr, and what it wrote outside."""

    code: int | None
    text: str
    outside: list[str]


def judge(ending: Ending) -> str:
    """One of COLUMNS."""
    if ending.code is None:
        return "hang"
    if ending.outside:
        return "outside"
    if "Traceback" in ending.text or "probably a bug" in ending.text:
        return "traceback"
    if ending.code == 0:
        return "exit 0"
    return "one line" if ending.code == 2 and is_clear(ending.text) else "unclear"


def is_clear(text: str) -> bool:
    """Whether an error keeps the rules of `tests.messages`, apart from how to resume and what was left out."""
    lines = [line for line in text.split("\n") if line and not line.startswith((*NOTES, "contextlora: left out "))]
    if lines and lines[0].startswith("usage: "):  # argparse explains itself first
        return bool(re.match(r"contextlora[\w -]*: error: ", lines[-1])) and lines[-1].isprintable()
    return bool(lines) and lines[0].startswith("contextlora: ") and not rule_broken("\n".join(lines))


def in_process(main: Callable, arguments: list[str], box: Box, output: Path, longest_s: float) -> None:
    """In the forked process: a command, as a shell would start it."""
    os.setsid()  # what it starts ends with it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # Both the descriptors and the streams, in whose place pytest has put its own.
    for descriptor, path in ((0, Path(os.devnull)), (1, Path(os.devnull)), (2, output)):
        with path.open("rb" if descriptor == 0 else "wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    faulthandler.enable()
    signal.alarm(int(longest_s) + 5)  # should nobody be left to end it
    faulthandler.dump_traceback_later(0.95 * longest_s)  # says where it hangs
    os.chdir(box.cwd)
    os.environ |= {"HOME": str(box.root), "TMPDIR": str(box.root)}
    tempfile.tempdir = None
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    cli._settings_help = lambda: SETTINGS_HELP  # a third of a second for each command
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    limit = pages * resource.getpagesize() + MEMORY_BYTES if pages else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)  # the thread pool of a forked process is dead
    sys.exit(main(arguments))


class Run:
    """One input, while a command works on it in a box."""

    def __init__(
        self, kind: str, number: int, make: Callable[[random.Random], Input], main: Callable, box: Box
    ) -> None:
        self.kind, self.number, self.box = kind, number, box
        self.output = box.root.with_name(f"{box.root.name}.stderr")
        box.restore()
        with chdir(box.cwd):
            self.arguments, self.what = make(random.Random(f"{SEED} {kind} {number}"))
        self.before = snapshot(box.root)
        # Other programs make it wait; a hang outlasts them.
        longest_s = LONGEST_S * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        self.process = FORK.Process(target=in_process, args=(main, self.arguments, box, self.output, longest_s))
        self.process.start()
        self.began = time.monotonic()
        self.ends = self.began + longest_s

    def end(self) -> Ending:
        """Waits for its end where that has not come yet, but not for ever."""
        self.process.join(max(0.0, self.ends - time.monotonic()))
        code = self.process.exitcode
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        text = self.output.read_bytes().decode(errors="replace") if self.output.exists() else ""
        return Ending(code, text, self.box.outside(self.before, WRITTEN))

    def report(self, ending: Ending) -> str:
        lines = ascii(ending.text)[1:-1].split("\\n")
        lines = [f"    {line[-300:]}" for line in (lines[:12] if ending.code is None else lines[-6:])]
        outside = [f"    outside: {', '.join(ending.outside)}"] if ending.outside else []
        head = f"{judge(ending)}, exit code {ending.code}: SEED={SEED} KIND={self.kind}/{self.number}"
        command = f"  contextlora {' '.join(map(ascii, self.arguments))}"[:500]
        return "\n".join([head, command, f"  {self.what}", *lines, *outside])


def run_all(inputs: Iterator[tuple], boxes: Sequence[Box]) -> Iterator[tuple[Run, Ending]]:
    """Each input with its ending, a few at a time; inputs are what `Run` is made from, without the box."""
    free, running = list(boxes), {}
    try:
        while True:
            while free and (given := next(inputs, None)):
                run = Run(*given, free.pop())
                running[run.process.sentinel] = run
            if not running:
                return
            first = min(running, key=lambda sentinel: running[sentinel].ends)
            ended = wait(list(running), max(0.0, running[first].ends - time.monotonic()))
            for sentinel in ended or [first]:
                run = running.pop(sentinel)
                yield run, run.end()
                free.append(run.box)
    finally:
        for run in running.values():
            run.process.kill()


def numbered() -> Iterator[tuple]:
    """Kinds in turns, or what KIND says."""
    kind, _, number = KIND.partition("/")
    kinds = [kind] if kind else list(KINDS)
    numbers = [int(number)] if number else range(1, 1 + (-(-FUZZ // len(kinds)) or SAMPLE))  # no fewer than asked for
    for index in numbers:
        for name in kinds:
            yield name, index, KINDS[name], cli.main


def print_table(counts: Counter, note: str) -> None:
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    rows = [(kind, [counts[kind, column] for column in COLUMNS]) for kind in kinds]
    rows.append(("all", [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]))
    print("", f"{'kind':12}" + "".join(f"{column:>11}" for column in COLUMNS), sep="\n")
    for kind, numbers in rows:
        print(f"{kind:12}" + "".join(f"{number:11}" for number in numbers))
    print(note, flush=True)


@pytest.fixture(scope="module")
def boxes(
    tmp_path_factory: pytest.TempPathFactory, taskset: TaskSet, model_folder: Path, other_model_folder
) -> list[Box]:
    folder, models = tmp_path_factory.mktemp("fuzz"), {kind: other_model_folder(kind) for kind in ("llava", "gpt2")}
    prepare(folder / "prepared", taskset, models | {"llama": model_folder})
    prepare_tables(folder / "prepared" / "cwd")
    return [Box(folder / "prepared", folder / f"box-{index}") for index in range(os.cpu_count() or 1 if FUZZ else 1)]


def test_every_input_ends_well_or_in_one_clear_line(boxes: list[Box]) -> None:
    counts, findings, longest = Counter(), [], 0.0
    began = time.monotonic()
    try:
        for run, ending in run_all(numbered(), boxes):
            longest = max(longest, time.monotonic() - run.began)
            counts[run.kind, "inputs"] += 1
            counts[run.kind, judge(ending)] += 1
            if judge(ending) not in GOOD:
                findings.append(run.report(ending))
                print(findings[-1], flush=True)
    finally:  # also where somebody has seen enough
        print_table(counts, f"seed {SEED}; {time.monotonic() - began:.0f} s; the longest took {longest:.1f} s")
    assert findings == []


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], tuple[str, str]]:
    """main -> what becomes of an input that is given to it, and its report."""
    for name in ("cwd/runs", "outside"):
        (tmp_path / "prepared" / name).mkdir(parents=True)
    (tmp_path / "prepared/cwd/given").write_text("1")

    def give(main: Callable) -> tuple[str, str]:
        box = Box(tmp_path / "prepared", tmp_path / "box")
        monkeypatch.setitem(globals(), "LONGEST_S", 1.0 if main is hang else 100.0)
        [(run, ending)] = run_all(iter([("some", 7, lambda rng: Input(["a"], "nothing"), main)]), [box])
        box.restore()
        assert snapshot(box.root) == box.clean and Path(box.cwd, "given").read_text() == "1"
        return judge(ending), run.report(ending)

    return give


def hang(_: list[str]) -> int:
    while True:
        time.sleep(1)


def said(code: int, *lines: str) -> Callable[[list[str]], int]:
    return lambda _: print(*lines, sep="\n", file=sys.stderr) or code


def wrote(*names: str) -> Callable[[list[str]], int]:
    return lambda _: [Path(name).write_text("2") for name in names] and 0


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        (said(0), "exit 0"),
        (wrote("runs/own"), "exit 0"),
        (said(2, "contextlora: it must be 1, got 2"), "one line"),
        (said(2, "contextlora: task set a has 2 faults:", "  it must be 1", "  set it"), "one line"),
        (said(2, "contextlora: it must be 1", "continue it with: make resume RUN=a"), "one line"),
        (said(2, "usage: contextlora ...", "contextlora train: error: a rule"), "one line"),
        (said(2, "contextlora: it must be 1", "  set it"), "unclear"),
        (said(2, "a warning", "contextlora: it must be 1"), "unclear"),
        (said(2, "contextlora: it must be \x1b[31m"), "unclear"),
        (said(2, "contextlora: it must be:"), "unclear"),
        (said(2), "unclear"),
        (said(1, "contextlora: it must be 1"), "unclear"),
        (lambda _: os.kill(os.getpid(), signal.SIGKILL), "unclear"),
        (lambda _: {}["key"], "traceback"),
        (said(1, "contextlora: this is probably a bug in contextlora"), "traceback"),
        (hang, "hang"),
        (wrote("given"), "outside"),
        (wrote("runs/own", "../outside/new"), "outside"),
        (lambda _: Path("given").unlink() or 0, "outside"),
    ],
)
def test_the_judge_sees_what_is_wrong(ended: Callable, main: Callable, expected: str) -> None:
    verdict, report = ended(main)
    assert verdict == expected
    assert "KIND=some/7" in report and "contextlora 'a'" in report


def test_an_input_comes_back_by_its_number(boxes: list[Box]) -> None:
    for kind, make in KINDS.items():
        found = []
        for _ in range(2):
            boxes[0].restore()
            with chdir(boxes[0].cwd):
                found.append(make(random.Random(f"{SEED} {kind} 1")))
        assert found[0] == found[1]
