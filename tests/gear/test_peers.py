"""Processes that are not alike are refused, and a dead one ends all others with its name."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from contextlora.errors import ConfigError
from contextlora.gear.peers import Peers

SURVIVOR = """
import sys, torch, torch.distributed as dist
import contextlora.gear.peers as peers
peers.LOST_S = 3.0
me = peers.Peers(torch.device("cpu"))
me.compare({})
open(sys.argv[1] + f"/pid-{me.rank}", "w").close()
me.name_checkpoint(sys.argv[1] + "/last.ckpt")
try:
    while True:
        dist.all_reduce(torch.zeros(1))
except RuntimeError as error:
    me.leave(error)
    raise
"""


def compare(own):
    peers = Peers(torch.device("cpu"))
    try:
        peers.compare(own[peers.rank])
    except ConfigError as error:
        text = str(error)
    else:
        text = "alike"
    dist.barrier()  # rank 0 holds the store that the others still read
    dist.destroy_process_group()
    return text


def test_a_device_with_another_version_is_named_on_every_rank(run_ranks):
    facts = {"torch": "2.13.0", "backbone": "abc"}
    assert run_ranks(2, compare, [facts, facts]) == ["alike"] * 2
    found = run_ranks(3, compare, [facts, facts, facts | {"torch": "2.12.0"}])
    assert len(set(found)) == 1
    assert "must agree on torch: rank 0 has 2.13.0, rank 2 has 2.12.0" in found[0]


@pytest.mark.parametrize("victim, how", [(0, signal.SIGKILL), (2, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_survivors_name_the_peer_that_was_killed_or_cut_off(victim, how, tmp_path):
    (tmp_path / "last.ckpt").touch()
    port = 20000 + os.getpid() % 20000 + victim
    variables = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "3"}
    variables |= {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SURVIVOR, str(tmp_path)],
            env=variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    try:
        ends = time.monotonic() + 50
        while len(list(tmp_path.glob("pid-*"))) < 3 and time.monotonic() < ends:
            time.sleep(0.1)
        time.sleep(2.0)
        ranks[victim].send_signal(how)
        for rank in (rank for rank in range(3) if rank != victim):
            _, errors = ranks[rank].communicate(timeout=30)
            assert ranks[rank].returncode == 1
            assert f"because rank {victim} is gone" in errors
            assert f"last checkpoint: {tmp_path / 'last.ckpt'}" in errors
    finally:
        for process in ranks:
            process.kill()
            process.wait()
