"""Learned parameters, in the training form, as papers count them."""

from __future__ import annotations

from nas.core.ops import Row
from nas.core.tracing import params_of_unit
from nas.metrics._counted import Counted


class Parameters(Counted):
    """Number of learned parameters."""

    name = "params"
    title = "parameters"

    def of_row(self, row: Row) -> float:
        return params_of_unit(row)


METRIC = Parameters()
