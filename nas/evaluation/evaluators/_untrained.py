"""What evaluators without a training share: they look at a fresh network once, and more is better."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from nas.evaluation.evaluators import Evaluator, Score

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nas.core.arch import Arch
    from nas.evaluation.data import Data


@dataclass(frozen=True)
class Untrained(Evaluator):
    """Compares candidates by the negative of a figure of their fresh network.

    Attributes:
        title: name of the figure.
        work: what one figure takes, in words.
    """

    title: ClassVar[str]
    work: ClassVar[str]

    @abstractmethod
    def figure(self, model: nn.Module, data: Data, device: torch.device) -> float:
        """The figure of a model on this device, which it may change."""

    def score(
        self,
        build_model: Callable[[], nn.Module],
        data: Data,
        *,
        arch: Arch,
        prepared: Mapping[str, Any],
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_epoch: Callable[[int, int], None] | None = None,
    ) -> Score:
        from nas.evaluation.devices import pick_device, seeded

        start, place = time.perf_counter(), pick_device(device)
        with seeded(seed):
            model = build_model().to(place)
        value = -self.figure(model, data, place)
        return Score(value, f"-{self.title}", seconds=time.perf_counter() - start, cost=f"no training, {self.work}")


@dataclass(frozen=True)
class OneBatch(Untrained):
    """A figure from one batch of training images.

    Attributes:
        images: of the batch.
    """

    images: PositiveInt = 64

    @abstractmethod
    def of_batch(self, model: nn.Module, images: Tensor) -> float:
        """The figure from images (N, C, H, W)."""

    def figure(self, model: nn.Module, data: Data, device: torch.device) -> float:
        ((images, _),) = batches(data, 1, self.images, device)
        return self.of_batch(model, images)


def batches(data: Data, count: int, size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Training images with their labels, the same ones for every candidate.

    Raises:
        InputError: there are too few.
    """
    from nas.core.errors import InputError
    from nas.evaluation.sampler import shuffled

    plan = shuffled(len(data.train), size, 0)[:count]
    if len(plan) < count:
        raise InputError(f"{data.name}: {len(data.train)} training images are not {count} batches of {size}")
    return list(data.train.read(plan, device=device))
