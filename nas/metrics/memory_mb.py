"""Peak memory of loading and running a network on a table's device and runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from nas.metrics import MB, Metric

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.core.ops import Row
    from nas.core.space import Space
    from nas.tables.table import Table


class Memory(Metric):
    """Megabytes (1e6 bytes), predicted by a fit on the networks of a table whose peak was measured."""

    name = "memory_mb"
    title = "memory"
    unit = "MB"
    of_table = True

    def predict(self, arch: Arch, table: Table, confidence: float | None = None) -> float:
        return table.memory(arch) / MB

    def floor(self, space: Space, table: Table) -> tuple[Callable[[Row], float], Callable[[np.ndarray], np.ndarray]]:
        """The memory of the weights alone."""
        from nas.core.tracing import params_of_unit

        fit = table.memory_fit
        return lambda row: float(params_of_unit(row)), lambda params: np.vectorize(fit.least_bytes)(params) / MB

    def smallest(self, space: Space, table: Table, confidence: float | None = None) -> tuple[float, Arch]:
        """A bound that no network stays below: the most of a network's activations is no sum over its blocks."""
        from nas.core.tracing import params_of_unit

        least, arch = space.extreme(params_of_unit)
        return table.memory_fit.least_bytes(least) / MB, arch


METRIC = Memory()
