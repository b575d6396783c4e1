"""How much flows through the weights of an untrained network; see `nas.evaluation.proxies.synflow`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from nas.evaluation.evaluators._untrained import Untrained

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nas.evaluation.data import Data


@dataclass(frozen=True)
class Synflow(Untrained):
    """SynFlow (arXiv:2006.05467), without norms."""

    title: ClassVar[str] = "synflow"
    work: ClassVar[str] = "one input of ones forward and backward"

    def figure(self, model: nn.Module, data: Data, device: torch.device) -> float:
        from nas.evaluation.proxies import synflow

        return synflow(model, data.train.input_shape)


EVALUATOR = Synflow
