"""Disturbs a tiny training at random instants and resumes it: the same weights bit by bit, and nothing lost.

Disturbances take turns: SIGKILL, a full disk, two resumes at one instant, SIGTERM, SIGINT, SIGHUP. Some runs are
disturbed twice, then while they resume. Commands run in forked processes, which need not import torch again.

    make soak SOAK=200 [SEED=1]     a few seconds a disturbance
"""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contextlora import cli
from contextlora.errors import UserError
from contextlora.runs import RunFolder

SOAK, SEED = int(os.environ.get("SOAK") or 3), int(os.environ.get("SEED") or 0)
LONGEST_S = 120.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FULL_DISK, DOUBLE_START = "full disk", "double start"
KINDS = ("SIGKILL", FULL_DISK, DOUBLE_START, *(number.name for number in SIGNALS))
FILE_LIMIT = 8192  # bytes; less than any checkpoint, more than the output of a command
COMMANDS = [import_module(f"contextlora.commands.{name}") for name in ("train", "resume")]  # seconds, once for all
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.slow


def in_process(arguments, output):
    """In the forked process: a command, as a shell would start it."""
    parse = cli._parse

    def parse_with_signals(*args):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return parse(*args)

    cli._parse = parse_with_signals
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # Both the descriptors and the streams, in whose place pytest has put its own.
    for descriptor, path in ((1, Path(os.devnull)), (2, output)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    torch.set_num_threads(1)  # the thread pool of a forked process is dead
    os._exit(cli.main(arguments))


class Command:
    """A command in a process of its own."""

    def __init__(self, arguments, output):
        self.output = output
        # Until the program can take them signals wait: the forked process is still pytest for a while.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self.process = FORK.Process(target=in_process, args=(arguments, output))
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def end(self):
        """Its exit code, None where it hangs."""
        self.process.join(LONGEST_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            return None
        return self.process.exitcode

    def complaints(self, code, *allowed):
        """What is wrong with how it ended; an error is one line of the program's."""
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        lines = sum(line.startswith("contextlora: ") for line in text.splitlines())
        right = code in allowed and "Traceback" not in text and (code in (0, -signal.SIGKILL) or lines == 1)
        return [] if right else [f"exit code {code}, {allowed} expected: {text[-3000:]}"]


@pytest.fixture
def disk(tmp_path):
    """A folder on a small disk of its own where this may be mounted, and whether it is one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "soak", str(folder)]
    is_own = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    yield folder, is_own
    if is_own:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Soak:
    """A number of disturbed runs on a disk."""

    def __init__(self, settings, folder, disk):
        self.settings, self.folder = settings, folder
        self.disk, self.disk_is_own = disk
        self.rng = random.Random(SEED)
        self.num_commands = self.num_missed = 0
        began = time.monotonic()
        whole = self.start(self.train(self.disk / "whole"))
        assert whole.complaints(whole.end(), 0) == []
        self.whole_s = time.monotonic() - began
        self.expected = weights(find_run(self.disk / "whole"))

    def train(self, runs_dir):
        return ["train", *self.settings, f"runs_dir={runs_dir}"]

    def start(self, arguments):
        self.num_commands += 1
        return Command(arguments, self.folder / f"errors-{self.num_commands}")

    def disturb(self, kind, runs_dir):
        """One disturbed run; returns (what is wrong with exits, whether it is lost, whether bits are the same)."""
        wrong = []
        for _ in range(self.rng.choice((1, 1, 2))):
            command = self.start(self.begin_or_go_on(runs_dir))
            time.sleep(self.rng.uniform(0.0, 1.0) * self.whole_s)
            wrong += self.hit(command, kind)
            if is_finished(runs_dir):
                break
        if not is_finished(runs_dir):
            wrong += self.go_on_twice(runs_dir) if kind == DOUBLE_START else self.go_on(runs_dir)
        run = find_run(runs_dir)
        try:
            lost = run is None or not run.results
        except UserError:
            lost = True
        found = weights(run) if not lost else {}
        same = found.keys() == self.expected.keys() and all(torch.equal(found[n], self.expected[n]) for n in found)
        return wrong, lost, same

    def begin_or_go_on(self, runs_dir):
        run = find_run(runs_dir)
        return ["resume", "--run", str(run.path)] if run else self.train(runs_dir)

    def hit(self, command, kind):
        """Disturbs a command, waits for its end, and says what is wrong with that; it may be done already."""
        if kind == FULL_DISK:
            with self.full_disk(command):
                return self.end(command, 1)
        number = signal.SIGKILL if kind == DOUBLE_START else signal.Signals[kind]
        with suppress(ProcessLookupError):
            os.kill(command.process.pid, number)
        return self.end(command, -number if number == signal.SIGKILL else 128 + number)

    def end(self, command, expected):
        code = command.end()
        self.num_missed += code == 0
        return command.complaints(code, 0, expected)

    def full_disk(self, command):
        return FullDisk(self.disk / "filler", command.process.pid, self.disk_is_own)

    def go_on(self, runs_dir):
        command = self.start(self.begin_or_go_on(runs_dir))
        return command.complaints(command.end(), 0)

    def go_on_twice(self, runs_dir):
        if find_run(runs_dir) is None:
            return self.go_on(runs_dir)
        commands = [self.start(self.begin_or_go_on(runs_dir)) for _ in range(2)]
        codes = [command.end() for command in commands]
        wrong = [] if sorted(codes, key=str) == [0, 2] else [f"two at one instant ended with {codes}"]
        return wrong + [text for c, code in zip(commands, codes, strict=True) for text in c.complaints(code, 0, 2)]


class FullDisk:
    """Fills the disk for a while; without a disk of its own, limits the size of what a process writes."""

    def __init__(self, filler, pid, is_own):
        self.filler, self.pid, self.is_own = filler, pid, is_own

    def __enter__(self):
        if not self.is_own:
            with suppress(ProcessLookupError):
                resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
            return
        with self.filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))

    def __exit__(self, *_):
        self.filler.unlink(missing_ok=True)


def find_run(runs_dir):
    """The run of a folder of runs, if one began."""
    paths = sorted(path.parent for path in runs_dir.glob("*/*/*/config.yaml"))
    assert len(paths) <= 1, paths
    return RunFolder.open(paths[0]) if paths else None


def is_finished(runs_dir):
    run = find_run(runs_dir)
    return run is not None and run.state == "finished"


def weights(run):
    """What every stage trained, by the stage's file and the tensor's name."""
    files = sorted((run.path / "checkpoints").glob("stage-*.safetensors"))
    return {f"{path.stem}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


COLUMNS = ("number", "same bits", "lost", "wrong exit")


def print_table(counts, note):
    rows = [(kind, [counts[kind, column] for column in COLUMNS]) for kind in KINDS]
    rows.append(("all", [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]))
    print("", f"{'disturbance':14}" + "".join(f"{column:>12}" for column in COLUMNS), sep="\n")
    for kind, numbers in rows:
        print(f"{kind:14}" + "".join(f"{number:12}" for number in numbers))
    print(note, flush=True)


def test_disturbed_runs_resume_to_the_same_bits(tiny_settings, tmp_path, disk):
    settings = [text for text in tiny_settings if not text.startswith("runs_dir=")]
    soak = Soak(settings, tmp_path, disk)
    assert soak.expected
    counts, complaints = Counter(), []
    try:
        for number in range(SOAK):
            kind, runs_dir = KINDS[number % len(KINDS)], soak.disk / str(number)
            wrong, lost, same = soak.disturb(kind, runs_dir)
            for column, count in zip(COLUMNS, (True, same, lost, bool(wrong)), strict=True):
                counts[kind, column] += count
            if not same or lost or wrong:
                complaints.append(f"disturbance {number + 1}, {kind}: same bits {same}, lost {lost}, {wrong}")
                print(complaints[-1], flush=True)
            shutil.rmtree(runs_dir, ignore_errors=True)
    finally:  # also where somebody has seen enough
        where = "a disk of its own" if soak.disk_is_own else "a limit of file sizes"
        missed = f"{soak.num_missed} commands ended before they were disturbed"
        print_table(counts, f"seed {SEED}; full disk: {where}; {missed}")
    assert complaints == []
