"""Statistics of batch norms, taken anew where weights come from another network than those were taken of."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.evaluation.data import Split
from nas.evaluation.devices import naming_memory, pick_device
from nas.evaluation.metrics import EVAL_BATCH, laid_out
from nas.evaluation.sampler import shuffled

SEED = 0  # of the images


@torch.no_grad()
def recalibrate(
    model: nn.Module, split: Split, images: int, *, device: torch.device | str = "cpu", channels_last: bool = True
) -> None:
    """Set the statistics of all batch norms to their mean over batches of these images, as inference sees them.

    The model moves to `device` and ends in eval mode. One without batch norms stays as it is.

    Args:
        model: gets them.
        split: to take images from, the same ones for all networks.
        images: how many; all, where there are fewer.
        device: where.
        channels_last: memory format of the images.

    Raises:
        OutOfMemory: naming batch size, input and device.
    """
    where = pick_device(device)
    model.to(where).eval()
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    images = min(images, len(split))
    size = min(EVAL_BATCH, images)
    try:
        with naming_memory(size, split.input_shape, where):
            for batch, _ in split.read(shuffled(len(split), size, SEED)[: images // size], device=where):
                model(laid_out(batch, channels_last))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
