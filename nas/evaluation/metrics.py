"""What a model reaches on held-out images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nas.core.errors import InputError, NasError
from nas.evaluation.data import Split
from nas.evaluation.devices import naming_memory, pick_device
from nas.evaluation.distributed import own_process, summed
from nas.evaluation.sampler import in_order

EVAL_BATCH = 64  # at 32 pixels and 128 channels, 256 images take 130 MB for one activation


class TrainingDiverged(NasError):  # noqa: N818  the name of the situation
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class Metrics:
    """What a model reaches on `n` images: mean cross entropy in nats, and the share of right answers, 0..1."""

    loss: float
    accuracy: float
    n: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = EVAL_BATCH,
    channels_last: bool = True,
    first: int | None = None,
) -> Metrics:
    """Cross entropy and accuracy of a model on a split, or its first so many images; in float32, as it gets exported.

    The model moves to `device`; its training or eval mode is put back. Processes that train together share the work.

    Raises:
        InputError: the model has another number of classes than the data.
        TrainingDiverged: the loss is infinite or not a number.
        OutOfMemory: naming batch size, input and device.
    """
    where, was_training = pick_device(device), model.training
    model.to(where).eval()
    rank, world = own_process()
    count = len(split) if first is None else min(first, len(split))
    kind = torch.float64 if where.type != "mps" else torch.float32
    # two tensors: a process without a batch sums these very ones in place
    loss, right = (torch.zeros((), dtype=kind, device=where) for _ in range(2))
    try:
        with naming_memory(batch_size, split.input_shape, where):
            for images, labels in split.read(in_order(count, batch_size)[rank::world], device=where):
                logits = model(laid_out(images, channels_last))
                check_classes(logits, split.classes)
                loss = loss + nn.functional.cross_entropy(logits, labels, reduction="sum")
                right = right + (logits.argmax(1) == labels).sum()
    finally:
        model.train(was_training)
    loss, right = summed(loss), summed(right)
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the loss on {count} held-out images is {float(loss)}; try a lower lr or clip")
    return Metrics(float(loss) / count, float(right) / count, count)


def check_classes(logits: Tensor, classes: int) -> None:
    """Raises: InputError, where logits are not (N, classes)."""
    if logits.ndim != 2 or logits.shape[1] != classes:
        raise InputError(
            f"the model gives {tuple(logits.shape)} logits, the data has {classes} classes: build it with so many"
        )


def laid_out(images: Tensor, channels_last: bool) -> Tensor:
    """The same images in the memory format that a recipe asks for."""
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
