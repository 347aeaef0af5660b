"""Who can reach a run over the network: nobody on one machine, those who know the secret on several.

Two network namespaces stand for two machines; what needs them needs root. Listening sockets are read from /proc.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch
import torch.distributed as dist

from contextlora.errors import UserError
from contextlora.gear.execution import meeting
from contextlora.gear.execution.gate import SECRET
from contextlora.gear.execution.peers import Peers

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks /proc who listens where"),
]
ADDRESSES = ("10.78.0.1", "10.78.0.2")
LINK, CLONE_NEWNET, LISTENS = "link0", 0x40000000, "0A"
PATIENCE_S = 60


def run_ip(command):
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines():
    """Names of two namespaces that reach each other at ADDRESSES."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the program ip (iproute2)")
    names = [f"clnet-{os.getpid()}-{number}" for number in range(2)]
    try:
        for name in names:
            run_ip(f"netns add {name}")
            run_ip(f"-n {name} link set lo up")
        run_ip(f"-n {names[0]} link add {LINK} type veth peer name {LINK} netns {names[1]}")
        for name, address in zip(names, ADDRESSES, strict=True):
            run_ip(f"-n {name} address add {address}/24 dev {LINK}")
            run_ip(f"-n {name} link set {LINK} up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def enter(name):
    with (Path("/run/netns") / name).open() as file:
        assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0, name  # os.setns needs Python 3.12


def listeners(pid="self"):
    """(address, port) of the sockets that listen in a process's network."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            place, state, inode = (line.split()[column] for column in (1, 3, 9))
            address, port = place.split(":")
            if state == LISTENS:
                words = [bytes.fromhex(address[n : n + 8])[::-1] for n in range(0, len(address), 8)]
                family = socket.AF_INET if name == "tcp" else socket.AF_INET6
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16), inode))
    return found


def own_listeners():
    """Addresses at which this process itself listens."""
    ours = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()}
    return {address for address, _, inode in listeners() if f"socket:[{inode}]" in ours}


def wait_for(path):
    ends = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < ends, f"no {path.name}"
        time.sleep(0.02)


def by_peers():
    return Peers(torch.device("cpu")).close


def by_lightning():
    settings = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", strategy="contextgear", devices=2, **settings)
    trainer.strategy.setup_environment()
    assert trainer.strategy.broadcast({"a": (1, trainer.global_rank)}) == {"a": (1, 0)}
    return dist.destroy_process_group


def listen(join, **variables):
    os.environ.update(variables)
    leave = join()
    dist.all_reduce(torch.zeros(1))
    found = own_listeners()
    dist.barrier()
    leave()
    return found


@pytest.mark.parametrize("join", [by_peers, by_lightning])
@pytest.mark.parametrize("interface", ["", "eth0"])
def test_on_one_machine_all_sockets_are_on_loopback(join, interface, run_processes):
    found = run_processes(2, partial(listen, GLOO_SOCKET_IFNAME=interface) if interface else listen, join)
    assert found == [{"127.0.0.1"}] * 2


@pytest.fixture
def script(tmp_path):
    """A program that joins its peers and writes down where it listens."""
    file = tmp_path / "listen.py"
    file.write_text(
        f"import sys, os; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_network as here\n"
        "found = here.listen(here.by_peers)\n"
        f"open({str(tmp_path)!r} + '/found-' + os.environ['RANK'], 'w').write(' '.join(sorted(found)))\n"
    )
    return file


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.mark.slow
def test_under_torchrun_too(script):
    """Torchrun's own store is its parent's."""
    subprocess.run([*TORCHRUN, "--standalone", "--nproc-per-node=2", script], check=True, timeout=PATIENCE_S)
    assert [(script.parent / f"found-{rank}").read_text() for rank in range(2)] == ["127.0.0.1"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("by_hand", [False, True])
def test_machines_started_by_torchrun_or_by_hand(by_hand, machines, script):
    runs, place = [], {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500"}
    for rank, name in enumerate(machines):
        where = [f"--node-rank={rank}", f"--master-addr={ADDRESSES[0]}", "--master-port=29500"]
        launch = [sys.executable] if by_hand else [*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", *where]
        own = place | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"} if by_hand else {}
        command = ["ip", "netns", "exec", name, *launch, script]
        runs.append(subprocess.Popen(command, env=os.environ | own | {SECRET: "one secret for all"}))
    try:
        assert [run.wait(PATIENCE_S) for run in runs] == [0, 0]
    finally:
        for run in runs:
            run.terminate()
            run.wait()
    assert [(script.parent / f"found-{rank}").read_text() for rank in range(2)] == [f"{a} 127.0.0.1" for a in ADDRESSES]


def is_reachable(port):
    try:
        socket.create_connection((ADDRESSES[0], port), 2).close()
    except OSError:
        return False
    return True


def stay(machines, folder, join):
    """Processes 0 and 1 are a run on the first machine; process 2 is a stranger on the second."""
    rank = int(os.environ["RANK"])
    enter(machines[rank // 2])
    if rank < 2:
        os.environ.update(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        leave = join()
        if rank == 0:
            open_to_all = socket.create_server(("", 0))
            ports = [open_to_all.getsockname()[1], *(port for _, port, _ in listeners())]
            (folder / "ports.tmp").write_text(" ".join(map(str, ports)))
            (folder / "ports.tmp").rename(folder / "ports")
        wait_for(folder / "done")
        leave()
        return None
    wait_for(folder / "ports")
    control, *ports = map(int, (folder / "ports").read_text().split())
    found = is_reachable(control), len(ports), [port for port in ports if port != control and is_reachable(port)]
    (folder / "done").touch()
    return found


@pytest.mark.parametrize("join", [by_peers, by_lightning])
def test_nothing_of_a_run_on_one_machine_is_reached_from_another(join, machines, run_processes, tmp_path):
    control, num_ports, reached = run_processes(3, stay, machines, tmp_path, join)[2]
    assert control  # a socket for all is reached, so that the test can fail
    assert num_ports > 2
    assert reached == []


def own_secret(rank, secrets):
    os.environ.update(LOCAL_WORLD_SIZE="1", MASTER_ADDR=ADDRESSES[0], MASTER_PORT="29400")
    os.environ.pop(SECRET, None)
    if secrets[rank]:
        os.environ[SECRET] = secrets[rank]


def meet_across(machines, secrets, timeout_s):
    """One process on each machine: what they say, and where they listen."""
    rank = int(os.environ["RANK"])
    enter(machines[rank])
    own_secret(rank, secrets)
    meeting.JOIN_TIMEOUT = timedelta(seconds=timeout_s)
    try:
        peers = Peers(torch.device("cpu"))
    except UserError as error:
        return str(error), set()
    peers.compare({"torch": "2.13.0"})
    works = peers.run_in_turn([partial(torch.full, (2,), float(number)) for number in range(4)])
    found = f"{[work.tolist() for work in works]} {peers.share('a', f'of {rank}')}", own_listeners()
    peers.close()
    return found


def test_two_machines_with_the_same_secret_meet_on_the_interface_between_them(machines, run_processes):
    found = run_processes(2, meet_across, machines, ["one secret for all"] * 2, 30)
    assert [text for text, _ in found] == ["[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]] of 0"] * 2
    assert [addresses for _, addresses in found] == [{"127.0.0.1", own} for own in ADDRESSES]


@pytest.mark.parametrize("theirs", ["another secret, longer", ""])
def test_a_peer_without_the_secret_is_refused(theirs, machines, run_processes, capfd):
    (first, _), (second, _) = run_processes(2, meet_across, machines, ["one secret for all", theirs], 1)
    assert "process 0 of 2 waited up to 0:00:01 for process 1 in vain" in first
    if theirs:
        assert f"process 1 of 2 and process 0 do not know the same secret. Set {SECRET} alike" in second
        assert f"refused {ADDRESSES[1]}" in capfd.readouterr().err
    else:
        assert f"{SECRET}: here it has 0. Set it alike on every machine" in second


def attack(machines, folder):
    """Processes 0 and 1 are a run on two machines; process 2 is a stranger, with torch's own client of the store."""
    rank = int(os.environ["RANK"])
    enter(machines[rank % 2])
    if rank < 2:
        os.environ["WORLD_SIZE"] = "2"
        own_secret(rank, ["one secret for all"] * 2)
        peers = Peers(torch.device("cpu"))
        (folder / f"here-{rank}").touch()
        wait_for(folder / "done")
        peers.close()
        return "undisturbed"
    wait_for(folder / "here-1")
    enter(machines[1])
    try:
        dist.TCPStore(ADDRESSES[0], 29400, is_master=False, timeout=timedelta(seconds=1)).set("left", "stop")
    except dist.DistError:
        return "kept out"
    finally:
        (folder / "done").touch()


def test_a_stranger_does_not_get_to_the_store_of_several_machines(machines, run_processes, tmp_path):
    assert run_processes(3, attack, machines, tmp_path) == ["undisturbed", "undisturbed", "kept out"]
