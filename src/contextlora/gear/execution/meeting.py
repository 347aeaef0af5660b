"""How the processes of a run find each other, and what one says that waits for others in vain."""

import os
import secrets
import time
from collections.abc import Collection
from datetime import timedelta

import torch.distributed as dist

from contextlora.errors import UserError, first_line

MEET_S = 0.02
JOIN_TIMEOUT = timedelta(minutes=5)  # processes of several machines are started by hand


def in_vain(process: int, size: int, missing: Collection[int], why: str = "") -> UserError:
    """The error of a process that waited for others: which ones, by number."""
    names = " and ".join(map(str, sorted(missing)))
    who = f"process {names}" if len(missing) == 1 else f"processes {names}"
    return UserError(
        f"process {process} of {size} waited up to {JOIN_TIMEOUT} for {who} in vain{why and f' ({why})'}. "
        "Start all of them, then begin again"
    )


def meet(process: int, size: int) -> tuple[dist.Store, str]:
    """Waits until all processes of the run are there.

    torchrun keeps its store when it starts the processes again, with the addresses of processes that are gone, and its
    own count of restarts may differ from node to node. So every process says who it is now, process 0 answers each by
    that name with the attempt's, and each begins when all have taken it.

    Returns:
        Process 0's or torchrun's store, and a name for this attempt: the same on all processes and never used before.

    Raises:
        UserError: on every process that waited, naming those that did not come.
    """
    store, own = _open_store(process, size), secrets.token_hex(8)
    attempt = _ask_for_attempt(store, process, size, own) if process else own
    missing, waits_until = set(range(size)) - {process}, time.monotonic() + JOIN_TIMEOUT.total_seconds()
    try:
        store.set(f"{attempt}/met/{process}", "")
        while missing:
            # Anew in every round: torchrun's store may still hold the name of a process that is gone.
            for other in missing if process == 0 else ():
                if store.check([f"here/{other}"]):  # a get would wait for this one and keep the others waiting
                    store.set(f"attempt/{store.get(f'here/{other}').decode()}", own)
            missing = {other for other in missing if not store.check([f"{attempt}/met/{other}"])}
            if missing and time.monotonic() > waits_until:
                raise in_vain(process, size, missing)
            time.sleep(MEET_S)
    except RuntimeError as error:  # process 0 has given up, and its store went with it
        raise in_vain(process, size, missing, f"the store does not answer: {first_line(error)}") from error
    return store, attempt


def _open_store(process: int, size: int) -> dist.Store:
    """As torch's own rendezvous, but process 0 does not wait for the others here, where it would not learn for whom."""
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # which listens at the port already
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = process == 0 and not is_agents
    try:
        return dist.TCPStore(
            host, port, None, is_master, timeout=JOIN_TIMEOUT, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        if is_master:
            raise UserError(
                f"process 0 cannot listen at {host}:{port}: {first_line(error)}. Choose another MASTER_PORT"
            ) from error
        raise in_vain(process, size, [0], first_line(error)) from error


def _ask_for_attempt(store: dist.Store, process: int, size: int, own: str) -> str:
    try:
        store.set(f"here/{process}", own)
        store.wait([f"attempt/{own}"], JOIN_TIMEOUT)
        return store.get(f"attempt/{own}").decode()
    except RuntimeError as error:
        raise in_vain(process, size, [0], first_line(error)) from error
