"""Several processes that train one model together, as `torchrun` starts them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, is_distributed_env
from torch import Tensor

from nas.evaluation.devices import pick_device


@contextmanager
def joined(device: torch.device | str) -> Iterator[torch.device]:
    """Join the processes that torchrun or Slurm started beside this one, if it did; gives this process's device.

    They talk over NCCL on CUDA GPUs, one a process, and over gloo elsewhere.
    """
    where = pick_device(device)
    if not is_distributed_env() or dist.is_initialized():
        yield where
        return
    found = init_distributed_device_so(where.type)
    try:
        yield torch.device(found["device"])
    finally:
        dist.destroy_process_group()


def own_process() -> tuple[int, int]:
    """The number of this process and how many there are: (0, 1) for one alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def summed(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def of_first(value: Any) -> Any:
    """A plain value of the first process, in all of them."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
