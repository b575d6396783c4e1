"""How evenly gradients pass the blocks of an untrained network; see `nas.evaluation.proxies.trainability`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nas.evaluation.evaluators._untrained import OneBatch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Trainability(OneBatch):
    """AZ-NAS's trainability (arXiv:2403.19232)."""

    title: ClassVar[str] = "trainability"
    work: ClassVar[str] = "one batch forward and backward"

    def of_batch(self, model: nn.Module, images: Tensor) -> float:
        from nas.evaluation.proxies import trainability

        return trainability(model, images)


EVALUATOR = Trainability
