"""Small messages that cross a link while both ends compute.

gloo moves a message only once its receive is open. So some receives for the next messages of every sender are open
before anybody asks for them, which takes messages of one size; a sender that is further ahead than that waits.
"""

from collections import deque
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Mail:
    """Messages of one shape from some processes to all others.

    Args:
        group: of all processes, on gloo.
        tag: of these messages and no others, such as those of a stage before whose receives are still open.
        shape: of a message, int64.
        senders: processes that ever send.
        num_open: receives that are open for each of them; a send ends when its receive is open.
    """

    def __init__(self, group: Any, tag: int, shape: tuple[int, int], senders: set[int], num_open: int) -> None:
        self.group, self.tag, self.shape, self.num_open = group, tag, shape, num_open
        self.process, self.size = dist.get_rank(), dist.get_world_size()
        self._sends: list[Any] = []
        self._open: dict[int, deque[tuple[Tensor, Any]]] = {process: deque() for process in senders - {self.process}}
        for process in sorted(self._open):
            self._fill(process)

    def send(self, message: Tensor) -> None:
        """To every other process; the message must stay as it is."""
        others = (process for process in range(self.size) if process != self.process)
        self._sends += [dist.isend(message, process, group=self.group, tag=self.tag) for process in others]

    def wait_for_sends(self) -> None:
        """Until every process is ready for all that was sent."""
        for work in self._sends:
            work.wait()
        self._sends = []

    def receive(self, process: int) -> Tensor:
        """The next message of a process."""
        waiting = self._open[process]
        # With `num_open` 0, a queue of one batch, nothing is open beforehand.
        if not waiting:
            waiting.append(self._post(process))
        message, work = waiting.popleft()
        work.wait()
        with suppress(RuntimeError):  # a process that sends no more may have gone
            self._fill(process)
        return message

    def _fill(self, process: int) -> None:
        while len(self._open[process]) < self.num_open:
            self._open[process].append(self._post(process))

    def _post(self, process: int) -> tuple[Tensor, Any]:
        message = torch.empty(self.shape, dtype=torch.long)
        return message, dist.irecv(message, process, group=self.group, tag=self.tag)
