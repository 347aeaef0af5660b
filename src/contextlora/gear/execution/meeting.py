"""How the processes of a run find each other, and what one says that waits for others in vain."""

import os
import secrets
import time
from collections.abc import Collection
from datetime import timedelta

import torch.distributed as dist

from contextlora.errors import PassingError, first_line
from contextlora.gear.execution import gate
from contextlora.gear.execution.interfaces import choose_interface, is_one_machine, local_address, master

MEET_S = 0.02
_MOST_NAMED = 8  # processes in a message
JOIN_TIMEOUT = timedelta(minutes=5)  # processes of several machines are started by hand


def in_vain(process: int, size: int, missing: Collection[int], why: str = "") -> PassingError:
    """The error of a process that waited for others: which ones, by number."""
    names = " and ".join(map(str, sorted(missing)[:_MOST_NAMED]))
    names += f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    who = f"process {names}" if len(missing) == 1 else f"processes {names}"
    return PassingError(
        f"process {process} of {size} waited up to {JOIN_TIMEOUT} for {who} in vain{why and f' ({why})'}. "
        "Start all of them, then begin again"
    )


def meet(process: int, size: int) -> tuple[dist.TCPStore, str]:
    """Waits until all processes of the run are there.

    torchrun keeps its store when it starts the processes again, with the addresses of processes that are gone, and its
    own count of restarts may differ from node to node. So every process says who it is now, process 0 answers each by
    that name with the attempt's, and each begins when all have taken it.

    Nothing but that passes through torchrun's store, which anyone on the network may read and write: process 0 opens
    one of its own, and answers where it is.

    Returns:
        Process 0's store, and a name for this attempt: the same on all processes and never used before. Whatever lies
        between, each process reaches the store at its port on loopback.

    Raises:
        UserError: on every process that waited, naming those that did not come.
    """
    choose_interface()
    agents, own = _agents_store(process, size), secrets.token_hex(8)
    if process:
        store, attempt = _find_store(agents, process, size, own)
    else:
        (store, where), attempt = _host_store(agents), own
    front = agents or store
    missing, waits_until = set(range(size)) - {process}, time.monotonic() + JOIN_TIMEOUT.total_seconds()
    try:
        store.set(f"{attempt}/met/{process}", "")
        while missing:
            # Anew in every round: torchrun's store may still hold the name of a process that is gone.
            for other in missing if process == 0 else ():
                if front.check([f"here/{other}"]):  # a get would wait for this one and keep the others waiting
                    front.set(f"attempt/{front.get(f'here/{other}').decode()}", f"{own} {where}")
            missing = {other for other in missing if not store.check([f"{attempt}/met/{other}"])}
            if missing and time.monotonic() > waits_until:
                raise in_vain(process, size, missing)
            time.sleep(MEET_S)
    except RuntimeError as error:  # process 0 has given up, and its store went with it
        raise in_vain(process, size, missing, f"the store does not answer: {first_line(error)}") from error
    return store, attempt


def join(process: int, size: int, backend: str, timeout: timedelta) -> None:
    """Waits for all processes of the run and makes them the default process group."""
    os.environ["WORLD_SIZE"] = str(size)
    store, attempt = meet(process, size)
    where = {"store": dist.PrefixStore(attempt, store), "rank": process, "world_size": size}
    dist.init_process_group(backend, timeout=timeout, **where)


def _agents_store(process: int, size: int) -> dist.Store | None:
    """torchrun's, where that has started the processes: it listens at the port already."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = master()
    try:
        return dist.TCPStore(host, port, is_master=False, timeout=JOIN_TIMEOUT)
    except RuntimeError as error:
        raise in_vain(process, size, [0], first_line(error)) from error


def _host_store(agents: dist.Store | None) -> tuple[dist.TCPStore, str]:
    """Process 0's store, and where the others find it; process 0 does not wait for them here, but in `meet`."""
    host, port = master()
    port = 0 if agents else port
    try:
        listener = gate.listen_on_loopback(port if is_one_machine() else 0)
        store_port = listener.getsockname()[1]
        store = dist.TCPStore(
            gate.LOOPBACK, store_port, None, True, JOIN_TIMEOUT, False, master_listen_fd=listener.detach()
        )
        if is_one_machine():
            return store, f"{gate.LOOPBACK} {store_port}"
        own = local_address(host) if agents else host
        return store, f"{own} {gate.open_gate(own, port, store_port, gate.run_secret())}"
    except OSError as error:
        raise PassingError(
            f"process 0 cannot listen at {host}:{port}: {first_line(error)}. Choose another MASTER_PORT, or as "
            "MASTER_ADDR an address of process 0's machine"
        ) from error


def _find_store(agents: dist.Store | None, process: int, size: int, own: str) -> tuple[dist.TCPStore, str]:
    """Process 0's store as another process reaches it, and the attempt's name."""
    try:
        if agents is None:
            store = _reach(*master())
            return store, _ask(store, process, own)[0]
        attempt, host, port = _ask(agents, process, own)
        return _reach(host, int(port)), attempt
    except gate.Refused as error:
        raise PassingError(
            f"process {process} of {size} and process 0 do not know the same secret. "
            f"Set {gate.SECRET} alike on every machine, then begin again"
        ) from error
    except (RuntimeError, OSError) as error:
        raise in_vain(process, size, [0], first_line(error)) from error


def _reach(host: str, port: int) -> dist.TCPStore:
    # On one machine never at an address that came over torchrun's store.
    if not is_one_machine():
        port = gate.open_tunnel(host, port, gate.run_secret(), JOIN_TIMEOUT.total_seconds())
    return dist.TCPStore(gate.LOOPBACK, port, is_master=False, timeout=JOIN_TIMEOUT)


def _ask(front: dist.Store, process: int, own: str) -> list[str]:
    """Process 0's answer: the attempt's name, and the address of its store."""
    front.set(f"here/{process}", own)
    front.wait([f"attempt/{own}"], JOIN_TIMEOUT)
    return front.get(f"attempt/{own}").decode().split(" ")
