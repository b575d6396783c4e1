"""Learned parameters, in the training form, as papers count them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas.metrics._counted import Counted

if TYPE_CHECKING:
    from nas.core.ops import Row


class Parameters(Counted):
    """Number of learned parameters."""

    name = "params"
    title = "parameters"

    def of_row(self, row: Row) -> float:
        from nas.core.tracing import params_of_unit

        return params_of_unit(row)


METRIC = Parameters()
