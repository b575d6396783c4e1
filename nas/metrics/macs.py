"""Multiply-adds of one inference at batch 1: convolutions, linears and matrix products."""

from __future__ import annotations

from nas.core.ops import Row
from nas.core.tracing import macs_of_unit
from nas.metrics._counted import Counted


class MultiplyAdds(Counted):
    """Number of multiply-adds."""

    name = "macs"
    title = "MACs"

    def of_row(self, row: Row) -> float:
        return macs_of_unit(row)


METRIC = MultiplyAdds()
