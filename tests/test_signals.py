"""SIGTERM and SIGHUP end a command with one line, the run's state and the exit code that shells expect."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contextlora.runs import RunFolder
from contextlora.signals import Terminated, ending_in_order

SRC = Path(__file__).parents[1] / "src"
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])


@BOTH
def test_a_signal_becomes_an_exception_that_nothing_takes_for_an_error(number):
    with ending_in_order():
        with pytest.raises(Terminated) as caught:
            try:
                os.kill(os.getpid(), number)
            except Exception:
                pytest.fail("taken for an error")
        os.kill(os.getpid(), number)  # the second one of `timeout`
    assert (caught.value.exit_code, str(caught.value)) == (128 + number, f"ended by {signal.Signals(number).name}")
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("own", [signal.SIG_IGN, lambda *_: None])
def test_what_nohup_or_another_program_has_set_stays(own):
    before = signal.signal(signal.SIGHUP, own)
    try:
        with ending_in_order():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is own
        assert signal.getsignal(signal.SIGHUP) is own
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_somebody_passed_over_is_not_the_last(monkeypatch):
    monkeypatch.setattr("contextlora.signals.REPEAT_S", 0.01)
    with ending_in_order():
        for _ in range(2):
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.02)


@BOTH
def test_a_run_is_interrupted_and_says_how_to_go_on(tmp_path, number):
    run = RunFolder.create(tmp_path, "iov", "joint", 0, "")
    with pytest.raises(Terminated) as caught, run.recording():
        raise Terminated(number)
    assert run.state == "interrupted"
    assert caught.value.__notes__ == [run.how_to_resume]


def start(code, **options):
    code = f"""
import sys, time
from types import ModuleType
from contextlora.cli import main
from contextlora.runs import RunFolder
def train(config, dry_run):
    run = RunFolder.create('runs', 'iov', 'joint', 0, '')
    with run.recording():
        {code}
sys.modules['contextlora.commands.train'] = module = ModuleType('train')
module.train = train
sys.exit(main(['train']))
"""
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, **options)


@BOTH
@pytest.mark.parametrize("times", [1, 2])
def test_the_command_ends_with_one_line_and_128_plus_the_number(tmp_path, number, times):
    process = start("print('ready', flush=True); time.sleep(60)", cwd=tmp_path, stdout=subprocess.PIPE)
    process.stdout.readline()
    for _ in range(times):
        process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    (run,) = tmp_path.glob("runs/iov/joint/*")
    resume = f"make resume RUN=runs/iov/joint/{run.name}"
    assert error == f"contextlora: ended by {signal.Signals(number).name}; continue it with: {resume}\n"
    assert RunFolder(run).state == "interrupted"


def test_a_terminal_that_is_gone_ends_the_run_in_order(tmp_path):
    leader, follower = os.openpty()
    code = "from contextlora.commands import CONSOLE; CONSOLE.print('ready')\n        try: time.sleep(60)\n"
    process = start(f"{code}        finally: CONSOLE.print('end')", cwd=tmp_path, stdout=follower)
    os.close(follower)
    os.read(leader, 100)
    os.close(leader)  # from here on every print fails
    process.send_signal(signal.SIGHUP)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error.count("\n")) == (129, 1), error
    (run,) = tmp_path.glob("runs/iov/joint/*")
    assert RunFolder(run).state == "interrupted"
