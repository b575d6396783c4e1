"""Several processes that train one model together, as `torchrun` starts them, or `together`."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, is_distributed_env
from torch import Tensor

from nas.core.errors import NasError, RunError
from nas.evaluation.devices import pick_device
from nas.profiling.device.parent import die_with

_SPAWN = multiprocessing.get_context("spawn")


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


def together(count: int, work: Callable[..., Any], *args: Any, tell: Callable[[Any], None]) -> Any:
    """Run a function in processes of this machine that can join; they end with this one.

    Args:
        count: of processes.
        work: a function of a module; its first argument takes plain data that the first process tells meanwhile.
        args: its others.
        tell: gets that.

    Returns:
        What it returns in the first process.

    Raises:
        NasError: the first that a process raises.
        RunError: a process raises something else, or ends, saying which.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes: list[Connection] = []
    processes = []
    try:
        for rank in range(count):
            ours, theirs = _SPAWN.Pipe(duplex=False)
            given = (theirs, os.getpid(), rank, count, port, work, args)
            process = _SPAWN.Process(target=_member, args=given, daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        open_ones = dict(enumerate(pipes))
        while open_ones:
            ready = [rank for rank, pipe in open_ones.items() if pipe in wait(list(open_ones.values()))]
            said = {rank: _received(open_ones[rank]) for rank in ready}
            for rank, (kind, value) in sorted(said.items(), key=lambda item: item[1][0] != "failed"):
                if kind == "told":
                    tell(value)
                elif kind == "done" and rank == 0:
                    return value
                elif kind == "failed":
                    raise value
                elif kind in ("raised", "ended"):
                    raise RunError(f"process {rank + 1} of {count} that train together {kind}: {value}")
                else:
                    del open_ones[rank]
        raise RunError("no process is left of those that train together")
    finally:
        for process, pipe in zip(processes, pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()


def _received(pipe: Connection) -> tuple[str, Any]:
    try:
        found: tuple[str, Any] = pipe.recv()
    except (EOFError, OSError):
        return "ended", "the system ends a process when memory runs out"
    return found


def _member(
    pipe: Connection, parent: int, rank: int, count: int, port: int, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    die_with(parent)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})

    def tell(value: Any) -> None:
        if rank == 0:
            pipe.send(("told", value))

    with contextlib.suppress(BrokenPipeError):
        try:
            pipe.send(("done", work(tell, *args)))
        except NasError as error:
            pipe.send(("failed", error))
        except Exception as error:
            pipe.send(("raised", f"{type(error).__name__}: {error}"))
