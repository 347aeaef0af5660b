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
from contextlora.gear.execution import meeting, peers

pytestmark = pytest.mark.processes


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


def join_in_vain(absent):
    """Those that are absent never come; what the others say."""
    meeting.JOIN_TIMEOUT = timedelta(seconds=2)
    if int(os.environ["RANK"]) in absent:
        return "absent"
    try:
        peers.Peers(torch.device("cpu"))
    except UserError as error:
        time.sleep(1)  # process 0 holds the store in which the others look up who came
        return str(error)


@pytest.mark.parametrize(
    "absent, says",
    [((2,), "for process 2 in vain"), ((1, 3), "for processes 1 and 3 in vain"), ((0,), "for process 0")],
)
def test_every_process_that_waits_in_vain_says_for_whom(absent, says, run_processes):
    found = run_processes(4, join_in_vain, absent)
    for process in set(range(4)) - set(absent):
        assert f"process {process} of 4 waited up to 0:00:02 {says}" in found[process]


@pytest.mark.parametrize("process, missing", [(0, 1), (1, 0)])
def test_with_the_store_of_torchrun_too(process, missing, monkeypatch):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {"RANK": process, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port}
    for name, value in (variables | {"TORCHELASTIC_USE_AGENT_STORE": True}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(meeting, "JOIN_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(UserError, match=f"process {process} of 2 waited up to 0:00:01 for process {missing} in vain"):
        peers.Peers(torch.device("cpu"))


def test_a_taken_port_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        variables = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.getsockname()[1]}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(
            UserError, match=r"process 0 cannot listen at 127\.0\.0\.1:\d+: .*Choose another MASTER_PORT"
        ):
            peers.Peers(torch.device("cpu"))


def join_or_vanish(folder):
    """Process 1 meets the others and is gone before they talk; where the others say so."""
    number = int(os.environ["RANK"])
    sys.stderr, peers.LOST_S = (folder / f"errors-{number}").open("w"), 2.0
    if number == 1:
        dist.init_process_group = lambda *args, **kwargs: os._exit(0)
    peers.Peers(torch.device("cpu"))


def test_a_process_lost_while_all_join_is_named_by_all_others(run_processes, tmp_path):
    run_processes(3, join_or_vanish, tmp_path)
    for number in (0, 2):
        text = (tmp_path / f"errors-{number}").read_text()
        assert f"process {number} of 3 stops, because process 1 is gone" in text


def wait_for_fact():
    """Process 1 is there, but says nothing."""
    me = peers.Peers(torch.device("cpu"))
    meeting.JOIN_TIMEOUT = timedelta(seconds=2)
    try:
        if me.process != 1:
            me.compare({})
    except UserError as error:
        return str(error)
    finally:
        time.sleep(0 if me.process else 1)
        dist.barrier()


def test_whoever_says_nothing_when_all_compare_is_named(run_processes):
    first, _, third = run_processes(3, wait_for_fact)
    assert "process 0 of 3 waited up to 0:00:02 for process 1 in vain" in first
    assert "process 2 of 3 waited up to 0:00:02 for process 1 in vain" in third


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
    assert run_processes(2, wait_long, 4.0) == ["alike"] * 2
