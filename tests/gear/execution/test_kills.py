"""Kills one process of a real training at random instants: clean reports, and a restart that ends in the same weights.

Instants are random within a phase, and the phases take turns: start-up, a training step, a validation, the writing of a
checkpoint, the final evaluation. A process arms its own end: after a random number of entries into the phase and some
random milliseconds it gets SIGKILL, or (once the processes watch each other) SIGSTOP, which looks like a cut
connection.

    make test-kills KILLS=50 [SEED=1]     about half a minute a kill, with the product's own time-outs
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contextlora.commands.resume import resume
from contextlora.commands.train import train
from contextlora.gear import processes
from contextlora.gear.execution import peers
from contextlora.gear.execution.strategy import ContextGearStrategy
from contextlora.runs import find_runs
from contextlora.training.checkpoint import AtomicCheckpointIO

KILLS, SEED = int(os.environ.get("KILLS") or 2), int(os.environ.get("SEED") or 0)
SHORT = KILLS <= 4  # in the suite: a lost process is missed sooner than in the product
LONGEST_S = 30.0
START_UP = "start-up"
PHASES = {
    START_UP: None,
    "training": (ContextGearStrategy, "training_step"),
    "validation": (ContextGearStrategy, "on_validation_start"),
    "checkpoint": (ContextGearStrategy, "lightning_module_state_dict"),  # on all processes; process 0 then writes
    "writing": (AtomicCheckpointIO, "save_checkpoint"),  # process 0 only
    "evaluation": (peers.Peers, "run_in_turn"),
}
pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc whether a process has ended"),
]


class Kill:
    """What happens to whom and when; drawn at random."""

    def __init__(self, number, rng):
        self.size = 2 if SHORT else rng.choice((2, 2, 3))
        self.phase = list(PHASES)[number % len(PHASES)] if not SHORT else ("training", START_UP)[number % 2]
        self.victim = 0 if self.phase == "writing" else rng.randrange(self.size)
        self.entry, self.delay_s = rng.randint(1, 4), rng.uniform(0.0, 0.02)
        if self.phase == START_UP:
            self.delay_s = rng.uniform(0.0, 0.3)  # forked processes meet after about a tenth of a second
        self.how = signal.SIGSTOP if self.phase != START_UP and rng.random() < 0.25 else signal.SIGKILL
        self.devices = rng.choice(range(1, self.size + 1))  # of the restart

    def __str__(self):
        return f"{self.how.name} of process {self.victim} of {self.size} in {self.phase}, restart on {self.devices}"

    def arm(self, folder):
        """In the victim: makes it end as drawn."""

        def end():
            (folder / "killed").write_text(str(time.monotonic()))
            os.kill(os.getpid(), self.how)

        timer = threading.Timer(self.delay_s, end)
        timer.daemon = True
        if PHASES[self.phase] is None:
            timer.start()
            return
        owner, name = PHASES[self.phase]
        wrapped, entries, armed = getattr(owner, name), [], os.getpid()

        def enter(*args, **kwargs):
            entries.append(1)
            if len(entries) == self.entry and os.getpid() == armed:  # process 0 hands this on to those that it forks
                timer.start()
            return wrapped(*args, **kwargs)

        setattr(owner, name, enter)


def begin_process(number, folder, kill):
    """In each process of a run: where its errors go, who it is, and whether it will be killed."""
    sys.stderr = (folder / f"errors-{number}").open("w", buffering=1)
    (folder / f"pid-{number}").write_text(str(os.getpid()))
    torch.set_num_threads(1)  # the thread pool of a forked process is dead
    if SHORT and kill is not None:  # a restart has nobody to miss, and a busy machine may need the product's time
        peers.LOST_S = 4.0
    if kill is not None and number == kill.victim:
        kill.arm(folder)


def launch(work, folder, kill):
    """Process 0 of a run, which starts the others as the program does, but forks them: nothing is imported anew."""
    fork, enter = multiprocessing.get_context("fork"), processes._enter

    def enter_forked(work, arguments, variables):
        begin_process(int(variables["RANK"]), folder, kill)
        enter(work, arguments, variables)

    multiprocessing.get_context = lambda _: fork
    processes._enter = enter_forked
    begin_process(0, folder, kill)
    work()


def run(work, folder, kill=None):
    folder.mkdir()
    process = multiprocessing.get_context("fork").Process(target=launch, args=(work, folder, kill))
    process.start()
    return process


def ended(folder, number):
    """Whether a process is gone or a zombie; one that has not begun has ended before it could."""
    file = folder / f"pid-{number}"
    try:
        stat = Path(f"/proc/{int(file.read_text())}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def end_all(folder, size):
    for number in range(size):
        if not ended(folder, number):
            os.kill(int((folder / f"pid-{number}").read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def expected_weights(tmp_path_factory):
    """configuration -> the stages' weights after a run by one process, done once."""
    made = []

    def find(config):
        if not made:
            folder = tmp_path_factory.mktemp("alone")
            alone = replace(config, runs_dir=str(folder), training=replace(config.training, strategy="auto", devices=1))
            made.append(final_weights(train(alone)))
        return made[0]

    return find


def final_weights(run_folder):
    files = sorted((run_folder.path / "checkpoints").glob("stage-*.safetensors"))
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same(found, expected):
    """Within tolerance: a restart may be on another number of devices than what came before it."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)


def check_reports(kill, process, folder):
    """Every survivor ends within 30 s and says who is gone, and what there is to go on from."""
    survivors = [number for number in range(kill.size) if number != kill.victim]
    waits_until = time.monotonic() + 60
    while not (folder / "killed").exists():
        assert time.monotonic() < waits_until, f"{kill}: the run ended without it"
        time.sleep(0.02)
    began = float((folder / "killed").read_text() or time.monotonic())
    while not all(ended(folder, survivor) for survivor in survivors):
        if kill.victim:
            process.join(0)  # reaps process 0
        assert time.monotonic() - began < LONGEST_S, f"{kill}: somebody hangs"
        time.sleep(0.05)
    for survivor in survivors:
        if not (folder / f"errors-{survivor}").exists():
            continue  # it had not begun
        text = (folder / f"errors-{survivor}").read_text()
        lines = [line for line in text.splitlines() if line.startswith("contextlora: ")]
        before = [line for line in lines if "ended before training began" in line]
        assert lines, f"{kill}: process {survivor} says nothing, but\n{text[-500:]}"
        assert before or ("last checkpoint: " in lines[-1] and "Continue with: make resume" in lines[-1]), lines
        assert f"process {kill.victim} " in lines[-1] or kill.size > 2, lines  # of three, the second may name the first
    return time.monotonic() - began


def restart(kill, config, folder):
    left = find_runs(config.runs_dir, finished=False)
    work = partial(resume, left[-1], kill.devices) if left else partial(train, config)
    process = run(work, folder)
    process.join(120)
    errors = (folder / "errors-0").read_text()
    end_all(folder, kill.size)
    assert process.exitcode == 0, f"{kill}: the restart failed\n{errors}"


def test_a_killed_process_is_reported_and_the_run_goes_on_to_the_same_weights(make_config, expected_weights, tmp_path):
    rng, seconds = random.Random(SEED), []
    for number in range(KILLS):
        kill, folder = Kill(number, rng), tmp_path / f"kill-{number}"
        gear = ("training.strategy=contextgear", f"training.devices={kill.size}")
        config = make_config(*gear, f"runs_dir={folder}-runs")
        process = run(partial(train, config), folder, kill)
        try:
            seconds.append(check_reports(kill, process, folder))
        finally:
            end_all(folder, kill.size)
            process.join()
        restart(kill, config, tmp_path / f"restart-{number}")
        (done,) = find_runs(config.runs_dir, finished=True)
        assert_same(final_weights(done), expected_weights(config))
        print(f"{number + 1}/{KILLS}: {kill}: all ended within {seconds[-1]:.1f} s, same weights", flush=True)
    print(f"{KILLS} kills, {KILLS} reports within {max(seconds):.0f} s, {KILLS} restarts to the same weights")


def worker(agent):
    """Process id of what a torchrun of one process has started."""
    (child,) = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    return int(child)


def test_torchrun_starts_again_after_a_kill_and_ends_in_the_same_weights(
    make_config, tiny_settings, free_port, expected_weights, tmp_path
):
    rng = random.Random(SEED)
    program = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=1"]
    for number in range(max(1, KILLS // 10)):
        folder, output = tmp_path / f"torchrun-{number}", tmp_path / f"output-{number}"
        where = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
        settings = [*tiny_settings, "method.delta=0.5", "training.strategy=contextgear", f"runs_dir={folder}"]
        work = ["-m", "contextlora", "train", *settings]
        agents = []
        with output.open("w") as file:
            for node in range(2):
                command = [*program, *where, f"--node-rank={node}", *work]
                agents.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
        try:
            waits_until = time.monotonic() + 120
            while not list(folder.glob("*/*/*/checkpoints/*")):
                assert agents[0].poll() is None and time.monotonic() < waits_until, output.read_text()
                time.sleep(0.02)
            time.sleep(rng.uniform(0.0, 0.3))
            victim = rng.randrange(2)
            os.kill(worker(agents[victim]), signal.SIGKILL)
            assert [agent.wait(120) for agent in agents] == [0, 0], output.read_text()
        finally:
            for agent in agents:
                agent.terminate()  # and with it its worker
                agent.wait()
        (done,) = find_runs(folder, finished=True)
        assert not find_runs(folder, finished=False)
        assert_same(final_weights(done), expected_weights(make_config()))
        print(f"torchrun {number + 1}: SIGKILL of process {victim}, started again, same weights", flush=True)
