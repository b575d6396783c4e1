"""Multiply-adds of one inference at batch 1: convolutions, linears and matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas.metrics._counted import Counted

if TYPE_CHECKING:
    from nas.core.ops import Row


class MultiplyAdds(Counted):
    """Number of multiply-adds."""

    name = "macs"
    title = "MACs"

    def of_row(self, row: Row) -> float:
        from nas.core.tracing import macs_of_unit

        return macs_of_unit(row)


METRIC = MultiplyAdds()
