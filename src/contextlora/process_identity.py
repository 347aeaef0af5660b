"""What tells a process from a later one with the same number."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any


def is_alive(status: dict[str, Any]) -> bool:
    """Whether the process of this identity lives, as far as can be seen from here."""
    # A process on another host cannot be seen from here: it counts as alive, and claim() says what to do.
    return status["host"] != socket.gethostname() or status | identity(status["pid"]) == status


def identity(pid: int) -> dict[str, Any]:
    """What tells a process from a later one with the same number; its start is None when it is gone."""
    # Starts count from boot, so a process of another boot may have the same number and start.
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "pid": pid,
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else None,
        "started": _start_of(pid),
    }


def parent() -> list[Any]:
    """The process that started this one: its number and start."""
    return [os.getppid(), _start_of(os.getppid())]


def _start_of(pid: int) -> str | None:
    """When a process started (clock ticks since boot on Linux, a date elsewhere), None for a dead one or a zombie."""
    if Path("/proc/self/stat").exists():
        try:
            # The name in parentheses may hold anything; after it come the state (field 3) ... the start (field 22).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    listing = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listing.stdout.strip() or None
