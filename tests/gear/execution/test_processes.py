"""A process that ends while the others still look for it ends them too, unless a signal is ending all of them."""

import errno
import multiprocessing
import os
import signal
import sys
import time

import pytest

from contextlora.errors import UserError
from contextlora.gear import processes
from contextlora.signals import Terminated, ending_in_order

FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.processes


def end_in_order():
    with ending_in_order(), pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)


def lose_another(folder, signal_before, signal_after):
    """A process that waits for one that has ended, for as long as it is let."""
    sys.stderr = (folder / "errors").open("w")
    if signal_before:
        end_in_order()
    other = FORK.Process(target=int)
    other.start()
    processes._watch_until_joined({other.sentinel: 1})
    if signal_after:
        end_in_order()
    time.sleep(6 * processes.POLL_S)


@pytest.mark.parametrize(
    "before, after, exit_code, says",
    [
        (False, False, 1, "contextlora: process 1 ended before training began\n"),
        (True, False, 1, "contextlora: process 1 ended before training began\n"),
        (False, True, 0, ""),
    ],
)
def test_a_process_that_never_comes_ends_the_others_unless_a_signal_does(before, after, exit_code, says, tmp_path):
    process = FORK.Process(target=lose_another, args=(tmp_path, before, after))
    process.start()
    process.join(60)
    assert (process.exitcode, (tmp_path / "errors").read_text()) == (exit_code, says)


def fail(error):
    raise error


def enter(folder, error):
    sys.stderr = (folder / "errors").open("w", buffering=1)
    processes._enter(fail, (error,), {"RANK": "3"})


@pytest.mark.parametrize(
    "error, exit_code, says",
    [
        (UserError("mend this"), 2, "mend this"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "the disk, a quota or a limit of file sizes is full"),
        (PermissionError(errno.EACCES, "Permission denied", "data"), 2, "data cannot be read or written"),
        (MemoryError(), 2, "the memory is full; set training.micro_batch_size=auto"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "the memory is full"),
        (ZeroDivisionError("oops"), 1, None),
    ],
)
def test_an_error_in_another_process_ends_as_in_the_first(error, exit_code, says, tmp_path):
    process = FORK.Process(target=enter, args=(tmp_path, error))
    process.start()
    process.join(60)
    text = (tmp_path / "errors").read_text()
    assert process.exitcode == exit_code
    if says is None:
        assert "Traceback" in text and "ZeroDivisionError: oops" in text
    else:
        assert text.startswith(f"contextlora: process 3: {says}") and text.count("\n") == 1
