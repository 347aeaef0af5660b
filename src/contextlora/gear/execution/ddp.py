# ruff: noqa: D102 - Lightning's hooks say what they are by their names
"""Lightning's `ddp` among processes that may be on machines of their own, of which only the first has files."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from contextlora.gear.execution.meeting import join
from contextlora.gear.execution.process_groups import ProcessGroups, broadcast_tree

NAME = "peers_ddp"
TIMEOUT = timedelta(minutes=10)  # a dead peer is noticed long before, see gear.execution.peers


class PeersDDPStrategy(DDPStrategy):
    """Nothing listens on all interfaces, nothing is pickled for another process, and process 0 reads and writes.

    Attributes:
        groups: of the processes.
    """

    groups: ProcessGroups

    def __init__(self, timeout: timedelta = TIMEOUT, **kwargs: Any) -> None:
        super().__init__(timeout=timeout, **kwargs)

    def setup_environment(self) -> None:
        super().setup_environment()
        # Only now: DDP's own set-up makes the processes join.
        self.groups = ProcessGroups()

    def setup_distributed(self) -> None:
        if not dist.is_initialized():
            # What Lightning would open listens on all interfaces.
            self.set_world_ranks()
            place = self.cluster_environment
            os.environ |= {"MASTER_ADDR": place.main_address, "MASTER_PORT": str(place.main_port)}
            join(self.global_rank, self.world_size, self._get_process_group_backend(), self._timeout)
        super().setup_distributed()

    def setup(self, trainer: Trainer) -> None:
        # Lightning asks process 0 before every step whether it got SIGTERM. Nobody could run ahead of it. Without that,
        # the process that got the signal ends (see `signals`) and its peers notice, as with any other end.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        super().setup(trainer)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        # Lightning's own would unpickle what arrives.
        return broadcast_tree(obj, src, self.groups) if hasattr(self, "groups") else obj

    def load_checkpoint(self, checkpoint_path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Process 0 reads, the others need no file."""
        found = super().load_checkpoint(checkpoint_path, *args, **kwargs) if self.is_global_zero else None
        return broadcast_tree(found, 0, self.groups)

    def remove_checkpoint(self, filepath: str | Path) -> None:
        if self.is_global_zero:
            super().remove_checkpoint(filepath)


StrategyRegistry.register(NAME, PeersDDPStrategy, description="ddp of processes that have found each other")
