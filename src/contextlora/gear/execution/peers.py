"""The processes of a run: alike when they start, and each told in time when one of them is gone.

Every process counts up a beat in the TCP store and watches those of the others from a thread, because the main thread
may sit in a collective that never ends. A process whose beat stops, or that says that it leaves, ends all others:

    main thread   collective ................ blocked           (a reset connection raises at once: `explain`)
    watch thread  beat 7, beat 8, beat 9: "process 1 is gone" -> exit code 1, the checkpoint stays as it was
    its watch     beat 9, beat 9, beat 9: "process 0 is gone: its store does not answer"
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from contextlora.errors import ConfigError, PassingError, first_line, squeezed
from contextlora.gear.execution import meeting
from contextlora.gear.execution.gate import LOOPBACK
from contextlora.gear.execution.process_groups import gather_trees

BEAT_S = 1.0
LOST_S = 15.0  # without a beat: long enough for a busy machine, and every survivor has 30 s to end
STORE_TIMEOUT = timedelta(seconds=10)


class Peers:
    """This process among those of the run; there must be the environment variables that torchrun sets.

    Attributes:
        process, size: of this process, and how many there are.

    Raises:
        UserError: the others did not come, or went away again.
    """

    def __init__(self, device: torch.device) -> None:
        backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
        self._checkpoint, self._stop = "", threading.Event()
        self._num_shared = 0  # lists of works so far
        self.process, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store, attempt = meeting.meet(self.process, self.size)
        # The watch has a connection of its own: a waiting get of the main thread would hold the beats back. It begins
        # before the process group does, so that who is lost meanwhile is missed by name.
        self._store, self._beats = _connect(store.port, attempt), _connect(store.port, attempt)
        self._rounds = 0  # of the watch
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._watch_store)]
        for thread in self._threads:
            thread.start()
        try:
            where = {"store": dist.PrefixStore(attempt, store), "rank": self.process, "world_size": self.size}
            dist.init_process_group(backend, timeout=meeting.JOIN_TIMEOUT, **where)
            dist.barrier()
        except RuntimeError as error:
            self.leave(error)
            raise PassingError(
                f"process {self.process} of {self.size} has met the others but cannot talk to them: "
                f"{first_line(error)}. Check the network between them, then begin again"
            ) from error

    def compare(self, facts: Mapping[str, str]) -> None:
        """Checks that all processes have the same versions, data and settings.

        Args:
            facts: what is compared -> its value here.

        Raises:
            ConfigError: on every process, naming the first fact that differs, and where.
        """
        self._store.set(f"facts/{self.process}", json.dumps(dict(facts)))
        self._wait_for({process: f"facts/{process}" for process in range(self.size)})
        rows = [json.loads(self._store.get(f"facts/{process}")) for process in range(self.size)]
        for process, row in enumerate(rows):
            for key in sorted({*row, *rows[0]}):
                if row.get(key) != rows[0].get(key):
                    self._stop.set()  # every process finds the same and says so itself
                    raise ConfigError(
                        f"all devices must agree on {key}: process 0 has {squeezed(str(rows[0].get(key)))}, process "
                        f"{process} has {squeezed(str(row.get(key)))}. Make them alike and start again."
                    )

    def share(self, key: str, value: str) -> str:
        """Process 0's value, on every process; a key is used once."""
        if self.process == 0:
            self._store.set(f"shared/{key}", value)
        self._wait_for({0: f"shared/{key}"})
        return self._store.get(f"shared/{key}").decode()

    def _wait_for(self, keys: Mapping[int, str]) -> None:
        """Until each process has set its key.

        Raises:
            UserError: names those that have not, though there is a sign of them.
        """
        try:
            self._store.wait(list(keys.values()), meeting.JOIN_TIMEOUT)
        except dist.DistStoreError as error:
            missing = [process for process, key in keys.items() if not self._store.check([key])]
            raise meeting.in_vain(self.process, self.size, missing, first_line(error)) from error

    def run_in_turn(self, works: Sequence[Callable[[], Any]]) -> list[Any]:
        """Results of all works, on every process; each is done by the first that has time, so that none waits for long.

        Every process must call it with the same works, which give tensors and plain values.
        """
        self._num_shared += 1
        done = {}
        # `add` is atomic in the store, so that no work is taken twice.
        while (number := self._store.add(f"works/{self._num_shared}", 1) - 1) < len(works):
            done[number] = works[number]()
        results = {number: result for part in gather_trees(done) for number, result in part.items()}
        return [results[number] for number in range(len(works))]

    def name_checkpoint(self, path: str) -> None:
        """Says where the last checkpoint will lie, for the message of a process that stops."""
        self._checkpoint = self.share("checkpoint", path)

    def close(self) -> None:
        """Ends the watch once every process has come here, so that a process that ends well is not missed."""
        dist.barrier()
        self._stop.set()
        for thread in self._threads:
            thread.join()
        # Process 0 must not take the store away while another one's watch still asks it.
        dist.barrier()
        dist.destroy_process_group()

    def leave(self, error: BaseException) -> None:
        """Tells the others why this process ends; a broken connection is somebody else's end, which the watch names."""
        if _is_broken_connection(error):
            self._threads[0].join(LOST_S + STORE_TIMEOUT.total_seconds())  # ends this process where a peer is gone
        self._stop.set()
        self._announce(self._store, f"process {self.process} ended: {type(error).__name__}: {first_line(error)}")

    def _announce(self, store: dist.Store, what: str) -> None:
        """Leaves word for the others; process 0, whose end is that of the store, lets them read it."""
        with suppress(RuntimeError):  # the store's host is gone as well
            store.set("left", what)
            for _ in range(3 if self.process == 0 else 0):
                self._rounds += 1  # or `_watch_store` would take a short LOST_S for over
                time.sleep(BEAT_S)

    def _watch(self) -> None:
        others = [process for process in range(self.size) if process != self.process]
        seen = {process: ("", time.monotonic()) for process in others}
        while not self._stop.wait(BEAT_S):
            try:
                self._rounds += 1
                self._beats.set(f"beat/{self.process}", str(self._rounds))
                beats = {process: self._read(f"beat/{process}") for process in others}
                left = self._read("left")
            except RuntimeError:
                self._end("process 0 is gone: its store does not answer")
                return
            now = time.monotonic()
            # Timed here, by when a beat was seen to change: clocks of several machines differ.
            seen |= {process: (beat, now) for process, beat in beats.items() if beat != seen[process][0]}
            lost = [process for process, (_, since) in seen.items() if now - since > LOST_S]
            if lost and not left:
                left = f"process {lost[0]} is gone: no sign of it for {LOST_S:.0f} s"
                # Others may miss this process next: with word from it they name the one that was lost first.
                self._announce(self._beats, left)
            if left:
                self._end(left)

    def _read(self, key: str) -> str:
        """A key's value, or nothing: the first beat of a process that was killed at once may not have arrived."""
        return self._beats.get(key).decode() if self._beats.check([key]) else ""

    def _watch_store(self) -> None:
        """Ends this process where the watch itself hangs: a store whose host is stopped neither answers nor times out.

        Counts its own rounds and no clock, so that a machine that was suspended goes on.
        """
        seen, silent_s = -1, 0.0
        while not self._stop.wait(BEAT_S):
            silent_s = silent_s + BEAT_S if self._rounds == seen else 0.0
            seen = self._rounds
            if silent_s > LOST_S:
                self._end("process 0 is gone: its store does not answer")

    def _end(self, what: str) -> None:
        if self._stop.is_set():
            return
        last = self._checkpoint if os.path.exists(self._checkpoint) else "none yet"
        if self.process and self._checkpoint and last == "none yet":
            last = f"{self._checkpoint} on process 0, if it got that far"
        print(
            f"contextlora: process {self.process} of {self.size} stops, because {what}; last checkpoint: {last}. "
            "Continue with: make resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # the main thread may be in a collective, which nothing interrupts


def _connect(port: int, attempt: str) -> dist.Store:
    """A new connection to process 0's store, for keys of this attempt only."""
    store = dist.TCPStore(LOOPBACK, port, is_master=False, timeout=STORE_TIMEOUT)
    return dist.PrefixStore(f"{attempt}/peers", store)


def _is_broken_connection(error: BaseException) -> bool:
    # gloo raises a plain RuntimeError, which only its text tells from others.
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection"))
