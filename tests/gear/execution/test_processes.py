"""A process that ends while the others still look for it ends them too, unless a signal is ending all of them."""

import multiprocessing
import signal
import sys
import time

import pytest

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
