"""Latency of one inference at batch 1 on a table's device and runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from nas.core.units import US_PER_MS, to_ms
from nas.metrics import Metric

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.core.ops import Row
    from nas.core.space import Space
    from nas.tables.table import Table


class Latency(Metric):
    """Milliseconds by a table: the calibrated sum of its rows."""

    name = "latency_ms"
    title = "latency"
    unit = "ms"
    of_table = True
    has_confidence = True

    def predict(self, arch: Arch, table: Table, confidence: float | None = None) -> float:
        from nas.core.arch import calls_of
        from nas.tables.kinds import line_of

        calls = calls_of(arch)
        return to_ms(
            table.price(calls).total_us if confidence is None else table.bound_us(calls, confidence, line_of(arch))
        )

    def per_row(self, space: Space, table: Table) -> Callable[[Row], float]:
        return table.cost_of_row(space)

    def of_sum(self, space: Space, table: Table, total: np.ndarray) -> np.ndarray:
        return table.total_us(space, total) / US_PER_MS

    def smallest(self, space: Space, table: Table, confidence: float | None = None) -> tuple[float, Arch]:
        least, arch = super().smallest(space, table)
        if confidence is not None:  # a factor on the prediction, and more for some families and doubtful rows
            least *= table.bound(space.input_shape, confidence)
        return least, arch


METRIC = Latency()
