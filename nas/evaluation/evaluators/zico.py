"""How steady the gradients of an untrained network are; see `nas.evaluation.proxies.zico`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt

from nas.evaluation.evaluators._untrained import Untrained, batches

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nas.evaluation.data import Data


@dataclass(frozen=True)
class Zico(Untrained):
    """ZiCo (arXiv:2301.11300).

    Attributes:
        batches: over which gradients are compared.
        images: of each.
    """

    title: ClassVar[str] = "zico"
    work: ClassVar[str] = "a few batches forward and backward"

    batches: Annotated[int, Field(ge=2)] = 4
    images: PositiveInt = 64

    def figure(self, model: nn.Module, data: Data, device: torch.device) -> float:
        from nas.evaluation.proxies import zico

        return zico(model, batches(data, self.batches, self.images, device))


EVALUATOR = Zico
