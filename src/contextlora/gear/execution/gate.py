"""The way to a run's store from other machines: only who knows the run's secret gets to it.

torch's store serves whoever connects, so it listens on loopback alone, and two relays lie between machines:

    process 1 -- loopback -- tunnel ~~~~ network ~~~~ gate -- loopback -- store of process 0

    gate -> tunnel   a number drawn for this connection
    tunnel -> gate   another, and the HMAC of both under the secret: or the gate hangs up
    gate -> tunnel   their HMAC as the gate's: or the tunnel hangs up, as a stranger may sit at the address
"""

import hmac
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from contextlora.errors import ConfigError

SECRET = "CONTEXTLORA_SECRET"
LEAST_CHARACTERS = 16  # whoever overhears the HMACs can try short secrets one by one
LOOPBACK = "127.0.0.1"
NONCE_BYTES = PROOF_BYTES = 32
REFUSAL = bytes(PROOF_BYTES)
PATIENCE_S = 5.0  # with a stranger who connects and says nothing
RETRY_S = 0.2
CHUNK_BYTES = 1 << 16
MOST_GUESTS = 64  # that have not proved themselves yet: each holds a file of this process


class Refused(ConnectionError):
    """One side does not know the other's secret."""


def run_secret() -> bytes:
    """The secret that all machines of a run share.

    Raises:
        ConfigError: there is none, or a short one.
    """
    found = os.environ.get(SECRET, "")
    if len(found) < LEAST_CHARACTERS:
        raise ConfigError(
            f"A run over several machines needs a secret of at least {LEAST_CHARACTERS} characters in the environment "
            f"variable {SECRET}: here it has {len(found)}. Set it alike on every machine, such as to what "
            "`openssl rand -hex 32` prints once"
        )
    return found.encode()


def open_gate(host: str, port: int, store_port: int, secret: bytes) -> int:
    """Lets those who know the secret through to a store of this process, until the process ends.

    Args:
        host, port: where the gate listens, on this interface alone; port 0 takes a free one.
        store_port: of the store, on loopback.
        secret: of the run.

    Returns:
        The gate's port.
    """
    named: set[str] = set()

    def admit(guest: socket.socket) -> socket.socket:
        try:
            _admit(guest, secret)
        except Refused:
            address = guest.getpeername()[0]
            if address not in named:  # once each, or a stranger could fill the terminal
                named.add(address)
                print(f"contextlora: refused {address}, which does not know this run's {SECRET}", file=sys.stderr)
            raise
        return socket.create_connection((LOOPBACK, store_port), PATIENCE_S)

    return _relay(_listen(host, port), admit)


def open_tunnel(host: str, port: int, secret: bytes, patience_s: float) -> int:
    """A loopback port that leads through the gate at this address, which is tried first.

    Raises:
        Refused: by the gate, or it is another run's.
        OSError: there is no gate, for so many seconds.
    """
    waits_until = time.monotonic() + patience_s
    while True:
        try:
            _knock(host, port, secret).close()
            break
        except Refused:
            raise
        except OSError:  # process 0 may be the last to start
            if time.monotonic() > waits_until:
                raise
            time.sleep(RETRY_S)
    return _relay(_listen(LOOPBACK, 0), lambda _: _knock(host, port, secret))


def listen_on_loopback(port: int) -> socket.socket:
    """A socket for a store that only this machine reaches; torch's own would listen on all interfaces."""
    return _listen(LOOPBACK, port)


def _listen(host: str, port: int) -> socket.socket:
    ((family, *_, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return socket.create_server(address[:2], family=family, backlog=128)


def _prove(secret: bytes, who: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, who + nonces, "sha256")


def _admit(guest: socket.socket, secret: bytes) -> None:
    guest.settimeout(PATIENCE_S)
    ours = secrets.token_bytes(NONCE_BYTES)
    guest.sendall(ours)
    said = _read(guest, NONCE_BYTES + PROOF_BYTES)
    nonces = ours + said[:NONCE_BYTES]
    if not hmac.compare_digest(said[NONCE_BYTES:], _prove(secret, b"tunnel", nonces)):
        guest.sendall(REFUSAL)
        raise Refused("a wrong secret")
    guest.sendall(_prove(secret, b"gate", nonces))


def _knock(host: str, port: int, secret: bytes) -> socket.socket:
    """A connection through the gate."""
    gate = socket.create_connection((host, port), PATIENCE_S)
    try:
        theirs, ours = _read(gate, NONCE_BYTES), secrets.token_bytes(NONCE_BYTES)
        gate.sendall(ours + _prove(secret, b"tunnel", theirs + ours))
        if not hmac.compare_digest(_read(gate, PROOF_BYTES), _prove(secret, b"gate", theirs + ours)):
            raise Refused("a wrong secret")
    except BaseException:
        gate.close()
        raise
    return gate


def _read(connection: socket.socket, num_bytes: int) -> bytes:
    found, ends = b"", time.monotonic() + PATIENCE_S  # of all bytes: one a second would hold a thread for a minute
    while len(found) < num_bytes:
        part = connection.recv(num_bytes - len(found))
        if not part or time.monotonic() > ends:
            raise ConnectionError("the other side hung up")
        found += part
    return found


def _relay(listener: socket.socket, reach: Callable[[socket.socket], socket.socket]) -> int:
    """Joins every connection that arrives to the one that `reach` makes for it; gives the listener's port."""

    places = threading.Semaphore(MOST_GUESTS)

    def join(near: socket.socket) -> None:
        try:
            far = reach(near)
        except OSError:
            near.close()
            return
        finally:
            places.release()
        for connection in (near, far):
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small messages, each waited for
        threading.Thread(target=_copy, args=(near, far), daemon=True).start()
        _copy(far, near)

    def serve() -> None:
        while places.acquire():
            near, _ = listener.accept()
            threading.Thread(target=join, args=(near,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(CHUNK_BYTES):
            target.sendall(part)
    for connection in (source, target):  # either end gone is both gone, as on one connection
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
