"""The processes of a run on several devices: starting them, joining them, and what they do together."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

import torch

from contextlora import signals
from contextlora.errors import UserError, explained
from contextlora.gear.execution.peers import Peers
from contextlora.signals import Terminated

_JOINED = threading.Event()
POLL_S = 0.5


@contextmanager
def joined(size: int, device: torch.device, work: Callable[..., Any], *arguments: Any) -> Iterator[Peers | None]:
    """This process among those of the run; starts the others where torchrun has not.

    Args:
        size: number of processes.
        device: where this process computes.
        work: (*arguments) -> what the other processes do; it must join them by this function too.
        arguments: of the work; they are pickled.

    Yields:
        The peers, or None where one process does everything.
    """
    if size == 1:
        yield None
        return
    variables = _start(size, work, arguments) if "RANK" not in os.environ else {}
    try:
        peers = Peers(device)
    except UserError:
        time.sleep(4 * POLL_S)  # one that was started here and has ended is named by the watch, which ends this process
        raise
    _JOINED.set()  # from here on the peers watch each other
    try:
        yield peers
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | Terminated):
            # At once, and without a word of theirs: this process says what there is to say.
            for process in multiprocessing.active_children():
                process.terminate()
        peers.leave(error)
        raise
    finally:
        _JOINED.clear()
        # Or this process's next run would take itself for one of torchrun's.
        for name in variables:
            del os.environ[name]


@contextmanager
def together(peers: Peers | None, checkpoint: str) -> Iterator[None]:
    """Around what the peers do together, training and evaluation; `checkpoint` is where the last one will lie."""
    if peers is None:
        yield
        return
    threads = torch.get_num_threads()
    # Processes of one machine share its cores; each with all threads would slow down all.
    torch.set_num_threads(max(1, threads // int(os.environ["LOCAL_WORLD_SIZE"])))
    peers.name_checkpoint(checkpoint)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
    # Not in `finally`: after an error nobody else may come to its barriers.
    peers.close()


def is_first_process() -> bool:
    """Whether this process writes and prints; torchrun and `joined` say so in the environment."""
    return os.environ.get("RANK", "0") == "0"


def _start(size: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, str]:
    """Starts processes 1 to size - 1 here, and makes this one process 0 by the variables that it returns."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "TORCHELASTIC_RUN_ID": "contextlora",  # by which Lightning knows that its processes have been started
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # a store that went away comes with a page of stack frames
    }
    os.environ.update(variables)  # the other processes inherit them
    # Not fork: where torch has started threads or CUDA, a forked process may hang or fail.
    context, sentinels = multiprocessing.get_context("spawn"), {}
    for number in range(1, size):
        own = {"RANK": str(number), "LOCAL_RANK": str(number)}
        process = context.Process(target=_enter, args=(work, arguments, own), daemon=True)
        process.start()
        sentinels[process.sentinel] = number
    _watch_until_joined(sentinels)
    return variables


def _enter(work: Callable[..., Any], arguments: tuple[Any, ...], variables: dict[str, str]) -> None:
    """What a process that `_start` started does."""
    os.environ.update(variables)  # process 0's came with its environment
    # A terminal tells all processes of Ctrl-C: process 0 answers it, and this one just ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _watch_until_joined({multiprocessing.parent_process().sentinel: 0})
    try:
        work(*arguments)
    except Exception as error:
        if not (known := explained(error)):
            raise
        text, exit_code = known
        print(f"contextlora: process {variables['RANK']}: {text}", file=sys.stderr)
        sys.exit(exit_code)


def _watch_until_joined(sentinels: dict[int, int]) -> None:
    """Ends this process if another one (sentinel -> number) ends before all have found each other."""
    num_signals = signals.num_come()  # a program that calls this one may have lived through some

    def watch() -> None:
        while not _JOINED.is_set():
            ended = wait(list(sentinels), timeout=POLL_S)
            if ended:
                time.sleep(4 * POLL_S)  # a signal to the whole group ends this one too, in order
            if ended and not _JOINED.is_set() and signals.num_come() == num_signals:
                print(
                    f"contextlora: process {sentinels[ended[0]]} ended before training began",
                    file=sys.stderr,
                    flush=True,
                )
                # The main thread may be waiting in the store, for minutes.
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
