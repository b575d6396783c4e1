"""Size of the weights that are deployed: norms folded into their neighbours, in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas.metrics import MB
from nas.metrics._counted import Counted

if TYPE_CHECKING:
    from nas.core.ops import Row


class Size(Counted):
    """Megabytes (1e6 bytes) of weights in deployed form at fp32: an exported file without its graph."""

    name = "size_mb"
    title = "model size"
    unit = "MB"

    def of_row(self, row: Row) -> float:
        from nas.core.tracing import deployed_bytes_of_unit

        return deployed_bytes_of_unit(row) / MB


METRIC = Size()
