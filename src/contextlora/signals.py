"""SIGTERM (docker stop, SLURM) and SIGHUP (a terminal that is closed) end the program in order, as Ctrl-C does."""

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)
REPEAT_S = 2.0  # `timeout` and SLURM send a signal to the process and to its group, which is once too many


_waits, _number = False, 0  # whether signals wait now, and the one that does
_num_come = 0  # signals that began to end the program


class Terminated(BaseException):
    """Another program wants this one to end. Like KeyboardInterrupt no Exception, which somebody might pass over.

    Attributes:
        exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Has the signals raise `Terminated` in the main thread, where they would kill the process."""
    latest = -REPEAT_S
    forget()

    def leave(number: int, _frame: FrameType | None) -> None:
        nonlocal latest
        global _number, _num_come
        # Not again while the first one is on its way out. Later it counts: somebody may have passed over the first.
        if time.monotonic() - latest < REPEAT_S:
            return
        latest = time.monotonic()
        _num_come += 1
        if number == signal.SIGHUP:
            _leave_the_terminal()
        if _waits and not _number:
            _number = number
            return
        raise Terminated(number)

    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    # What nohup has ignored stays so, and a program that calls this one keeps its own ways.
    taken = [number for number in ENDING if is_main and signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def num_come() -> int:
    """How many signals have begun to end the program; for other threads, which see by it whether one has come since."""
    return _num_come


def wait() -> None:
    """From now on a signal waits for `wait_no_more`; a second one does not."""
    global _waits
    _waits = True


def is_waiting() -> bool:
    """Whether a signal has come since `wait`."""
    return bool(_number)


def wait_no_more() -> None:
    """Raises `Terminated` where a signal has come since `wait`; from now on it is raised at once."""
    number = _number
    forget()
    if number:
        raise Terminated(number)


def forget() -> None:
    """From now on signals are raised at once; one that waited is lost, as when something else ends the work."""
    global _waits, _number
    _waits, _number = False, 0


def _leave_the_terminal() -> None:
    """Where a terminal is gone each print fails, that of a progress bar's end too."""
    # Not isatty, which says no of a terminal that is gone.
    with suppress(OSError), open(os.devnull, "w") as nowhere:  # the output may be closed
        if stat.S_ISCHR(os.fstat(1).st_mode):
            os.dup2(nowhere.fileno(), 1)
