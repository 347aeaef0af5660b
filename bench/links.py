"""Emulated links between processes of one Linux machine, with root: a network namespace for each process.

    100 Mbit/s          process namespace -- veth (tc tbf) -- bridge in its own namespace -- veth -- process namespace
    20 Mbit/s, 5 ms     process namespace: TUN device (tc tbf) -> relay, which keeps each packet 5 ms -> TUN device

Nothing of the machine's own network is touched. Names begin with PREFIX and this process's id; what a killed run has
left is removed by the next one.
"""

import ctypes
import fcntl
import multiprocessing
import os
import secrets
import select
import shutil
import struct
import subprocess
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from contextlora.gear.execution.gate import SECRET

PREFIX = "clgear"
INTERFACE = "link0"
NAMESPACES, TUN = Path("/run/netns"), Path("/dev/net/tun")
REALTIME_PRIORITY = 10
BURST_BYTES = 6000  # what the bucket lets through at once: 2 ms at 20 Mbit/s
QUEUE_S = 2.0  # longer than anything queues here, so that nothing is dropped
_CLONE_NEWNET, _TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x40000000, 0x400454CA, 0x0001, 0x1000
_DESTINATION = slice(16, 20)  # of an IPv4 packet


@dataclass(frozen=True)
class LinkKind:
    """What joins the processes.

    Attributes:
        name: for tables.
        mbit_per_s: bandwidth of each process's connection, each way; 0 for loopback as it is.
        delay_s: one way.
    """

    name: str
    mbit_per_s: float = 0.0
    delay_s: float = 0.0


LINKS = {
    "loopback": LinkKind("loopback"),
    "100mbit": LinkKind("100 Mbit/s", 100.0),
    "20mbit": LinkKind("20 Mbit/s, 5 ms", 20.0, 0.005),
}


def why_not() -> str:
    """Why links cannot be emulated here; empty where they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "emulated links need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing or not TUN.exists():
        return f"emulated links need {missing[0] if missing else TUN}, which is not here"
    return ""


class Network:
    """Joins processes by links of one kind while it is entered.

    Args:
        kind: of the links.
        size: number of processes.
        realtime: whether what sleeps and sends only goes before all ordinary processes.
    """

    def __init__(self, kind: LinkKind, size: int, realtime: bool = False) -> None:
        self.kind, self.size, self.realtime = kind, size, realtime
        self.relay: multiprocessing.Process | None = None
        self.secret = secrets.token_hex(32)  # without one no process gets to the run's store

    def __enter__(self) -> "Network":
        if self.kind.mbit_per_s:
            _remove_left()
            try:
                self._build()
            except BaseException:
                self.__exit__()  # a `with` whose __enter__ raises does not call it
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.relay is not None:
            self.relay.kill()
            self.relay.join()
        if self.kind.mbit_per_s:
            _remove(os.getpid())

    def variables(self) -> dict[str, str]:
        """Environment of every process: where process 0 listens, gloo's interface, and what lets a process in."""
        if not self.kind.mbit_per_s:
            return {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        return {"MASTER_ADDR": _address(0), "GLOO_SOCKET_IFNAME": INTERFACE, SECRET: self.secret}

    def enter_process(self, process: int) -> None:
        """Moves the calling thread, and what it starts from now on, to a process's end of the network."""
        _prioritize(self.realtime)
        if self.kind.mbit_per_s:
            # Names hold the id of the process that made the network, which started this one.
            _enter(_namespace(os.getppid(), process))

    def _build(self) -> None:
        names = [_namespace(os.getpid(), process) for process in range(self.size)]
        for name in names:
            _run(f"ip netns add {name}")
            _run(f"ip -n {name} link set lo up")
        (self._join_by_relay if self.kind.delay_s else self._join_by_bridge)(names)
        for process, name in enumerate(names):
            _run(f"ip -n {name} address add {_address(process)}/24 dev {INTERFACE}")
            _run(f"ip -n {name} link set {INTERFACE} up")
            shaped = f"rate {self.kind.mbit_per_s}mbit burst {BURST_BYTES} latency {1000 * QUEUE_S:.0f}ms"
            _run(f"tc -n {name} qdisc add dev {INTERFACE} root tbf {shaped}")

    def _join_by_bridge(self, names: list[str]) -> None:
        hub = _namespace(os.getpid(), "hub")
        _run(f"ip netns add {hub}")
        _run(f"ip -n {hub} link add bridge type bridge")
        _run(f"ip -n {hub} link set bridge up")
        for process, name in enumerate(names):
            _run(f"ip -n {hub} link add port{process} type veth peer name {INTERFACE} netns {name}")
            _run(f"ip -n {hub} link set port{process} master bridge up")

    def _join_by_relay(self, names: list[str]) -> None:
        ready, said = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        self.relay = context.Process(target=_relay, args=(names, self.kind.delay_s, self.realtime, said), daemon=True)
        self.relay.start()
        said.close()  # else recv would wait for ever on a relay that died
        ready.recv()  # the TUN devices are there


def _relay(names: list[str], delay_s: float, realtime: bool, said: Connection) -> None:
    """Hands packets from one namespace's TUN device to another's, each `delay_s` after it was read."""
    _prioritize(realtime)
    files = [_open_tun(name) for name in names]
    said.send(True)
    target = {bytes(map(int, _address(process).split("."))): file for process, file in enumerate(files)}
    waiting: deque[tuple[float, int, bytes]] = deque()
    while True:
        timeout_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for file in select.select(files, (), (), timeout_s)[0]:
            with suppress(BlockingIOError):
                while True:
                    packet = os.read(file, 65536)  # a TUN device gives one packet a read
                    to = target.get(packet[_DESTINATION])  # none for multicast and the like
                    if to is not None:
                        waiting.append((time.monotonic() + delay_s, to, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, to, packet = waiting.popleft()
            with suppress(OSError):  # the interface is not up yet, or no longer
                os.write(to, packet)


def _prioritize(realtime: bool) -> None:
    """A packet that waits for another program's time slice, up to 4 ms, would count as the link's delay."""
    if realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))


def _open_tun(namespace: str) -> int:
    """A TUN device in a namespace; it lives as long as the file is open."""
    _enter(namespace)
    file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
    return file


def _enter(namespace: str) -> None:
    with (NAMESPACES / namespace).open() as file:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns needs Python 3.12
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def _namespace(pid: int, end: object) -> str:
    return f"{PREFIX}-{pid}-{end}"


def _address(process: int) -> str:
    return f"10.77.0.{process + 1}"


def _remove(pid: int) -> None:
    """Removes a process's namespaces, and with them the devices in them."""
    for path in NAMESPACES.glob(f"{PREFIX}-{pid}-*"):
        subprocess.run(["ip", "netns", "delete", path.name], check=False)


def _remove_left() -> None:
    """Removes what processes that are gone have left."""
    for pid in {path.name.split("-")[1] for path in NAMESPACES.glob(f"{PREFIX}-*-*")}:
        if not Path(f"/proc/{pid}").exists():
            _remove(int(pid))


def _run(command: str) -> None:
    subprocess.run(command.split(), check=True)
