"""How large a network is: a score that costs nothing, and what every other has to beat."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nas.evaluation.evaluators import Evaluator, Score

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nas.core.arch import Arch
    from nas.evaluation.data import Data


@dataclass(frozen=True)
class Size(Evaluator):
    """The larger, the better.

    Attributes:
        of: what is counted: multiply-adds or parameters.
    """

    of: Literal["macs", "params"] = "macs"

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
        from nas.networks.building import cost_of

        start = time.perf_counter()
        value = -float(getattr(cost_of(arch), self.of))
        return Score(value, f"-{self.of}", seconds=time.perf_counter() - start, cost="counted, nothing is run")


EVALUATOR = Size
