"""How differently the activations of an untrained network see images; see `nas.evaluation.proxies.naswot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nas.evaluation.evaluators._untrained import OneBatch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Naswot(OneBatch):
    """NASWOT (arXiv:2006.04647)."""

    title: ClassVar[str] = "naswot"
    work: ClassVar[str] = "one batch forward"

    def of_batch(self, model: nn.Module, images: Tensor) -> float:
        from nas.evaluation.proxies import naswot

        return naswot(model, images)


EVALUATOR = Naswot
