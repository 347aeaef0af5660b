"""The gate lets through who knows the secret, and nobody else; the tunnel trusts no stranger at the gate's address."""

import contextlib
import socket
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from contextlora.errors import ConfigError
from contextlora.gear.execution import gate

SECRET, OTHER = b"s" * 32, b"t" * 32


@pytest.fixture
def guests():
    """What came to the service behind the gate."""
    return []


@pytest.fixture
def gate_port(guests):
    """The port of a gate before a service that sends all back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            guests.append(connection)
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    def echo(connection):
        with contextlib.suppress(OSError):
            while part := connection.recv(1 << 16):
                connection.sendall(part)
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    yield gate.open_gate("127.0.0.1", 0, listener.getsockname()[1], SECRET)
    listener.close()


def read(connection, size):
    found = b""
    while len(found) < size and (part := connection.recv(1 << 16)):
        found += part
    return found


def test_who_knows_the_secret_reaches_the_store(gate_port):
    port = gate.open_tunnel("127.0.0.1", gate_port, SECRET, 1.0)
    content = bytes(range(256)) * 4000
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            threading.Thread(target=connection.sendall, args=(content,)).start()
            assert read(connection, len(content)) == content
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""  # the end comes through too


def test_a_wrong_secret_is_refused_at_once_by_both_and_named_once(gate_port, guests, capfd):
    for _ in range(3):
        with pytest.raises(gate.Refused):
            gate.open_tunnel("127.0.0.1", gate_port, OTHER, 60.0)
    assert not guests
    assert capfd.readouterr().err.count("refused 127.0.0.1") == 1


def answer_of(nonce, secret):
    """What a tunnel would say."""
    return b"n" * gate.NONCE_BYTES + gate._prove(secret, b"tunnel", nonce + b"n" * gate.NONCE_BYTES)


@pytest.mark.parametrize(
    "say",
    [
        lambda nonce: b"",
        lambda nonce: b"GET / HTTP/1.1\r\n\r\n" * 20,
        lambda nonce: bytes(64),
        lambda nonce: nonce * 2,  # its own words
        lambda nonce: answer_of(nonce, OTHER),
        lambda nonce: answer_of(bytes(32), SECRET),  # of another connection, overheard
    ],
)
def test_a_stranger_gets_nothing(say, gate_port, guests, monkeypatch):
    monkeypatch.setattr(gate, "PATIENCE_S", 0.2)
    with socket.create_connection(("127.0.0.1", gate_port), 5) as stranger:
        nonce = read(stranger, gate.NONCE_BYTES)
        said = say(nonce)
        with contextlib.suppress(OSError):  # the gate hangs up, and resets what comes after
            if said:
                stranger.sendall(said)
            assert stranger.recv(100) in (b"", gate.REFUSAL)
    assert not guests
    with socket.create_connection(("127.0.0.1", gate_port), 5) as friend:  # by the same road, so that it can fail
        friend.sendall(answer_of(read(friend, gate.NONCE_BYTES), SECRET))
        read(friend, gate.PROOF_BYTES)
        friend.sendall(b"hello")
        assert read(friend, 5) == b"hello"


def test_strangers_who_say_nothing_do_not_keep_others_out_for_long(gate_port, monkeypatch):
    monkeypatch.setattr(gate, "PATIENCE_S", 0.5)
    silent = [socket.create_connection(("127.0.0.1", gate_port)) for _ in range(gate.MOST_GUESTS + 5)]
    gate.open_tunnel("127.0.0.1", gate_port, SECRET, 5.0)
    for connection in silent:
        connection.close()


@pytest.mark.parametrize("proof", [bytes(32), b"x" * 32, "echo"])
def test_a_stranger_at_the_gates_address_is_not_trusted(proof):
    def impersonate(listener):
        connection, _ = listener.accept()
        connection.sendall(b"n" * 32)
        said = read(connection, 64)
        connection.sendall(said[32:] if proof == "echo" else proof)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=impersonate, args=(listener,), daemon=True).start()
        with pytest.raises(gate.Refused):
            gate.open_tunnel("127.0.0.1", listener.getsockname()[1], SECRET, 5.0)


def test_a_gate_that_is_not_there_is_waited_for(free_port):
    with pytest.raises(ConnectionRefusedError):
        gate.open_tunnel("127.0.0.1", free_port(), SECRET, 0.3)


@pytest.mark.parametrize("value", [None, "", "fifteen letters"])
def test_a_secret_must_be_there_and_long(value, monkeypatch):
    monkeypatch.delenv(gate.SECRET, raising=False)
    if value is not None:
        monkeypatch.setenv(gate.SECRET, value)
    with pytest.raises(ConfigError, match=f"at least 16 characters .* {gate.SECRET}: here it has {len(value or '')}"):
        gate.run_secret()
    monkeypatch.setenv(gate.SECRET, "sixteen letters!")
    assert gate.run_secret() == b"sixteen letters!"


def test_torchs_store_serves_through_the_gate():
    listener = gate.listen_on_loopback(0)
    port = listener.getsockname()[1]
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
    door = gate.open_gate("127.0.0.1", 0, port, SECRET)
    tunnel = gate.open_tunnel("127.0.0.1", door, SECRET, 1.0)
    guest = dist.TCPStore("127.0.0.1", tunnel, is_master=False, timeout=timedelta(seconds=5))
    store.set("key", "value")
    assert guest.get("key") == b"value"
    assert guest.add("count", 2) == 2
    with pytest.raises(dist.DistError):
        dist.TCPStore("127.0.0.1", door, is_master=False, timeout=timedelta(seconds=1))
