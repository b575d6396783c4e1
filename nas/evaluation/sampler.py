"""Which images make up each batch of an epoch, and at which resolution: the same for the same seed, on any machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PlannedBatch(NamedTuple):
    """Images to read together.

    Attributes:
        indices: of the images in their split, int64.
        side: pixels of the images' height and width; None for the split's own size.
    """

    indices: Tensor
    side: int | None = None


class Share(NamedTuple):
    """Which of the batches are one's own: part `rank` of `world` processes, each step in `accumulate` batches."""

    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def parts(self) -> int:
        """Batches of one step, of all processes."""
        return self.world * self.accumulate


ALL = Share()


def batch_table(sides: Sequence[int], base_side: int, batch_size: int) -> dict[int, int]:
    """Images of a batch at each side, so that all batches have about as many pixels as `batch_size` at `base_side`.

    MobileViT's multi-scale sampler (arXiv:2110.02178, sec. 3.2, rounded as in its code). The paper states the batch of
    the largest side, its code that of 256 pixels.
    """
    return {side: max(1, int(round(base_side**2 * batch_size / side**2, 2))) for side in sides}


def in_order(n: int, batch_size: int) -> list[PlannedBatch]:
    """All of `n` images in their order; the last batch may be smaller."""
    return [PlannedBatch(chosen) for chosen in torch.split(torch.arange(n), batch_size)]


def shuffled(n: int, batch_size: int, seed: int, share: Share = ALL) -> list[PlannedBatch]:
    """The share of `n` images in an order drawn from `seed`, a whole number of steps of `batch_size` images.

    A step's images are the same however many processes share it.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    batches = torch.split(order[: n // batch_size * batch_size], batch_size // share.parts)
    return [PlannedBatch(chosen) for chosen in batches[share.rank :: share.world]]


def multi_scale(n: int, table: dict[int, int], seed: int, share: Share = ALL) -> list[PlannedBatch]:
    """The share of `n` images in batches whose side is drawn uniformly, each process by itself.

    Every image is read once; the last step is filled up with the first images. All processes take equally many steps.

    Args:
        n: number of images.
        table: images of a batch at each side (`batch_table`), for one process.
        seed: of order and sides, the same for all processes.
        share: which part is returned.
    """
    generator = torch.Generator().manual_seed(seed)
    order, sides = torch.randperm(n, generator=generator), list(table)
    found, start = [], 0
    while start < n:
        for part, drawn in enumerate(torch.randint(len(sides), (share.parts,), generator=generator).tolist()):
            stop = start + table[sides[drawn]]
            if part % share.world == share.rank:
                found.append(PlannedBatch(order[torch.arange(start, stop) % n], sides[drawn]))
            start = stop
    return found
