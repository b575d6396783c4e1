"""Where training runs: devices, number formats, memory that runs out, and seeds of the global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from nas.core.errors import InputError, NasError, suggest

OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory")


class OutOfMemory(NasError, MemoryError):  # noqa: N818
    """A model does not fit into the memory of its device at this batch size."""


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Let python's, numpy's and torch's global generators start from `seed`, and put them back afterwards.

    With a CUDA `device` its generator as well; that of an MPS device is seeded, and not put back.
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from numpy's global generator
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device is not None and device.type == "mps":
            torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def mixed_seed(seed: int, number: int, rank: int = 0) -> int:
    """One 32-bit seed for each triple."""
    return int(np.random.SeedSequence([seed, number, rank]).generate_state(1)[0])


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use so many threads on the CPU, None for as many as it does, and put that back afterwards.

    Several on cores that others use wait for each other: up to 100 times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def naming_memory(batch_size: int, input_shape: tuple[int, int, int], device: torch.device) -> Iterator[None]:
    """Turn the several errors of torch and python that mean "no memory left" into `OutOfMemory`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError, a CPU's is a plain one
        if not (isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS)):
            raise
        shape = "x".join(map(str, input_shape))
        raise OutOfMemory(
            f"out of memory on {device} with batches of {batch_size} images {shape}; "
            f"use a smaller batch_size, or fewer workers ({str(error).partition(chr(10))[0] or 'MemoryError'})"
        ) from error


def pick_device(name: torch.device | str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, `mps`, or the best there is for `auto`.

    Raises:
        InputError: unknown, or not on this machine.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if str(name) == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if here[kind]))
    kind, _, index = str(name).partition(":")
    if kind not in here or (index and not index.isdecimal()):
        raise InputError(suggest("device", str(name), ["auto", *here]))
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not here[kind] or int(index or 0) >= count:
        raise InputError(
            f"device {str(name)!r} is not on this machine; here are {', '.join(k for k in here if here[k])}"
        )
    return torch.device(str(name))


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute in `dtype` where torch's autocast does so; as it is for float32.

    On a CPU, attention and depthwise convolutions stay in float32: in bfloat16 their gradients took 3 to 10 times as
    long (torch 2.14, AVX512-BF16 without AMX), and whole steps of small DeiTs 2.5 times, of small MobileViTs 1.6 times.
    """
    if dtype == torch.float32:
        yield
        return
    with torch.autocast(device.type, dtype), _Float32Where() if device.type == "cpu" else nullcontext():
        yield


class _Float32Where(TorchFunctionMode):
    """Keeps functions out of autocast."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is not scaled_dot_product_attention and not (func is torch.conv2d and _is_depthwise(*args, **given)):
            return func(*args, **given)
        with torch.autocast("cpu", enabled=False):
            return func(*map(_float32, args), **{key: _float32(value) for key, value in given.items()})


def _is_depthwise(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> bool:
    return weight.shape[1] == 1 < weight.shape[0]


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def step_dtype(amp: str, device: torch.device) -> torch.dtype:
    """The number format in which steps are computed: float32, or the lower one of autocast.

    `auto` is bfloat16 where the processor multiplies it itself: GPUs that have it, CPUs with AMX or AVX512-BF16. With
    AMX (one thread, channels_last), steps were 1.1 times as fast as in float32 for a net of 3 MMAC, 1.25 times at 21
    and 1.75 times at 155 MMAC, with the same accuracy; where it is emulated nothing is gained.
    """
    if amp == "auto":
        return torch.bfloat16 if _multiplies_bf16(device) else torch.float32
    return {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot say
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))
