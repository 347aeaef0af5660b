"""Processes that are not alike are refused, and a dead one ends all others with its name."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist

from contextlora.errors import ConfigError, UserError
from contextlora.gear.execution import peers


def survive(folder, number, port):
    """Talks to the others for ever; what it says goes to a file."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="3", RANK=str(number))
    sys.stderr = (folder / f"errors-{number}").open("w")
    peers.LOST_S = 3.0
    me = peers.Peers(torch.device("cpu"))
    me.name_checkpoint(str(folder / "last.ckpt"))
    (folder / f"ready-{number}").touch()
    try:
        while True:
            dist.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        me.leave(error)
        raise


def compare(own):
    me = peers.Peers(torch.device("cpu"))
    try:
        me.compare(own[me.process])
    except ConfigError as error:
        text = str(error)
    else:
        text = "alike"
    dist.barrier()  # process 0 holds the store that the others still read
    dist.destroy_process_group()
    return text


def take_turns():
    """Who did which of two lists of works, process 1 being slow."""
    me = peers.Peers(torch.device("cpu"))

    def work(number):
        time.sleep(0.3 if me.process == 1 else 0.01)
        return number, me.process

    found = [me.run_in_turn([partial(work, number) for number in range(count)]) for count in (12, 1)]
    me.close()
    return found


def test_works_are_shared_by_who_has_time_and_all_get_all_results(run_processes):
    here, *others = run_processes(3, take_turns)
    assert others == [here, here]
    first, second = here
    assert [number for number, _ in first] == list(range(12))
    assert [number for number, _ in second] == [0]
    assert [process for _, process in first].count(1) <= 2


def test_a_device_with_another_version_is_named_on_every_process(run_processes):
    facts = {"torch": "2.13.0", "backbone": "abc"}
    assert run_processes(2, compare, [facts, facts]) == ["alike"] * 2
    found = run_processes(3, compare, [facts, facts, facts | {"torch": "2.12.0"}])
    assert len(set(found)) == 1
    assert "must agree on torch: process 0 has 2.13.0, process 2 has 2.12.0" in found[0]


@pytest.mark.parametrize("process, says", [(0, "process 1 of 2 did not come"), (1, "process 1 of 2 waited .* in vain")])
def test_a_process_that_waits_in_vain_says_for_whom(process, says, monkeypatch):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has one
    variables = {"RANK": process, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    for name, value in (variables | {"TORCHELASTIC_USE_AGENT_STORE": True}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(peers, "JOIN_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(UserError, match=says):
        peers.Peers(torch.device("cpu"))


def join_or_vanish():
    """Process 1 meets the others and is gone before they talk; what process 0 says of it."""
    peers.JOIN_TIMEOUT = timedelta(seconds=2)
    if os.environ["RANK"] == "1":
        meet = peers._meet
        peers._meet = lambda *args: os._exit(meet(*args) is None)
    try:
        peers.Peers(torch.device("cpu"))
    except UserError as error:
        return str(error)


def test_a_process_lost_while_all_join_is_a_clear_error(run_processes):
    assert (
        "process 0 of 2 waited up to 0:00:02 for the others in vain, or lost them: "
        in run_processes(2, join_or_vanish)[0]
    )


@pytest.mark.parametrize(
    "victim, how", [(0, signal.SIGKILL), (2, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP)]
)
def test_survivors_name_the_peer_that_was_killed_or_cut_off(victim, how, tmp_path):
    (tmp_path / "last.ckpt").touch()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=survive, args=(tmp_path, number, port)) for number in range(3)]
    for process in processes:
        process.start()
    try:
        ends = time.monotonic() + 30
        while len(list(tmp_path.glob("ready-*"))) < 3 and time.monotonic() < ends:
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(processes[victim].pid, how)
        for number in (number for number in range(3) if number != victim):
            processes[number].join(30)
            errors = (tmp_path / f"errors-{number}").read_text()
            assert processes[number].exitcode == 1
            assert f"because process {victim} is gone" in errors
            assert f"last checkpoint: {tmp_path / 'last.ckpt'}" in errors
    finally:
        for process in processes:
            process.kill()
            process.join()


def wait_long(late_s):
    """Process 0 waits for a fact of process 1, which needs longer for it than a process may be silent."""
    peers.LOST_S = 2.0
    me = peers.Peers(torch.device("cpu"))
    if me.process == 1:
        time.sleep(late_s)
    me.compare({"torch": "2.13.0"})
    me.close()
    return "alike"


def test_a_process_that_is_slow_to_load_is_not_taken_for_gone(run_processes):
    assert run_processes(2, wait_long, 6.0) == ["alike"] * 2
