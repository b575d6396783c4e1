"""How many directions the features of an untrained network fill; see `nas.evaluation.proxies.expressivity`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nas.evaluation.evaluators._untrained import OneBatch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Expressivity(OneBatch):
    """AZ-NAS's expressivity (arXiv:2403.19232)."""

    title: ClassVar[str] = "expressivity"
    work: ClassVar[str] = "one batch forward"

    def of_batch(self, model: nn.Module, images: Tensor) -> float:
        from nas.evaluation.proxies import expressivity

        return expressivity(model, images)


EVALUATOR = Expressivity
