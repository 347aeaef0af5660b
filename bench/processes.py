"""Processes of a benchmark that stand for devices: started for a network, then given work after work."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from links import Network

from contextlora.gear.execution.peers import Peers


class Processes:
    """One process for each end of a network, joined by gloo; each has the watch of a real training's processes.

    Args:
        network: entered already.
    """

    def __init__(self, network: Network) -> None:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]  # free on this machine, and in new namespaces all are
        context = multiprocessing.get_context("fork")  # what has been imported is there at once
        self.connections, self.processes = [], []
        for number in range(network.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(network, number, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for connection in self.connections:
                connection.send(None)
            for process in self.processes:
                process.join(10)
        for process in self.processes:
            process.kill()
            process.join()

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a function returns on every process; all processes call it at the same time.

        Raises:
            RuntimeError: a process has ended or raised.
        """
        for connection in self.connections:
            connection.send((function, arguments))
        values, errors = zip(*(self._receive(number) for number in range(len(self.processes))), strict=True)
        if any(errors):
            raise RuntimeError("\n".join(error for error in errors if error))
        return list(values)

    def _receive(self, number: int) -> tuple[Any, str]:
        """What the function returned, and why not; one process's end breaks the others' connections, so all say."""
        connection, process = self.connections[number], self.processes[number]
        wait([connection, process.sentinel])
        with suppress(EOFError, ConnectionError):
            if connection.poll():
                value, error = connection.recv()
                return value, error and f"process {number} failed:\n{error}"
        return None, f"process {number} ended with exit code {process.exitcode}"


def _serve(network: Network, number: int, port: int, connection: Connection) -> None:
    torch.set_num_threads(1)  # the thread pool of a forked process is dead
    network.enter_process(number)
    os.environ |= network.variables()
    os.environ |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(network.size), "RANK": str(number)}
    peers = Peers(torch.device("cpu"))
    while (work := connection.recv()) is not None:
        function, arguments = work
        try:
            connection.send((function(*arguments), ""))
        except Exception as error:  # told to the parent, which ends all
            connection.send((None, traceback.format_exc()))
            peers.leave(error)
            return
    peers.close()
