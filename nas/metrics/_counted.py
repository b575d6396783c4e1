"""Metrics that are counted on the architecture: a sum over its blocks, the same on every device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from nas.metrics import Metric

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.core.ops import Row
    from nas.core.space import Space
    from nas.tables.table import Table


class Counted(Metric):
    """A sum over blocks that no table is needed for."""

    @abstractmethod
    def of_row(self, row: Row) -> float:
        """What a block adds."""

    def predict(self, arch: Arch, table: Table, confidence: float | None = None) -> float:
        from nas.core.arch import steps_of

        return float(sum([self.of_row(call.row) for call in steps_of(arch)]))

    def per_row(self, space: Space, table: Table) -> Callable[[Row], float]:
        return self.of_row
