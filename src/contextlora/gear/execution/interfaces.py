"""Which network interface a run listens on: loopback on one machine, else the one that leads to process 0."""

import ipaddress
import os
import socket
import struct
import sys
from contextlib import suppress

if sys.platform == "linux":
    import fcntl

_SIOCGIFADDR = 0x8915
CHOICES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def master() -> tuple[str, int]:
    """Where process 0 or torchrun listens, as the environment says."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def is_one_machine() -> bool:
    """Whether no process of the run can be on another machine."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        return True
    host, _ = master()
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def choose_interface() -> None:
    """Tells gloo and NCCL, which else listen where this machine's name leads."""
    if is_one_machine():
        os.environ.update(dict.fromkeys(CHOICES, "lo0" if sys.platform == "darwin" else "lo"))
        return
    with suppress(OSError):  # an address that leads nowhere is reported by those who connect to it
        if found := _interface(local_address(master()[0])):
            for name in CHOICES:
                os.environ.setdefault(name, found)


def local_address(host: str) -> str:
    """This machine's address on the way to another; that one itself where it is this machine's."""
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing
        return probe.getsockname()[0]


def _interface(address: str) -> str:
    """The interface that has an IPv4 address; empty where there is no way to tell."""
    if sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # one without an address
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return ""
