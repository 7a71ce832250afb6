"""Collective operations of the ranks of a tensor-parallel engine: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

CONNECT_S = 120.0
"""Time in which all ranks must have connected."""


class RankGroup:
    """One rank's end of the connections between all ranks.

    It is made by all ranks at once. It is not the default group of `torch.distributed`: a process
    can have several engines.

    Parameters
    ----------
    store
        Name of a file in which the ranks find one another.
    rank, num_ranks
        This rank, and the number of ranks.
    device
        Device of this rank.
    """

    def __init__(self, store: str, rank: int, num_ranks: int, device: torch.device) -> None:
        shared = dist.FileStore(store, num_ranks)
        shared.set_timeout(timedelta(seconds=CONNECT_S))
        if device.type == "cuda":
            torch.cuda.set_device(device)
            self._group: dist.ProcessGroup = dist.ProcessGroupNCCL(shared, rank, num_ranks)
        else:
            # All ranks are on this machine, whose name may stand for an outer address.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            limit = timedelta(seconds=CONNECT_S)
            self._group = dist.ProcessGroupGloo(shared, rank, num_ranks, limit)
        self.sum(torch.zeros(1, device=device))  # connects, so that errors come now

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in place."""
        part = part.contiguous()
        self._group.allreduce([part]).wait()
        return part

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of rank 0, which others overwrite theirs with."""
        tensor = tensor.contiguous()
        self._group.broadcast(tensor, 0).wait()
        return tensor
