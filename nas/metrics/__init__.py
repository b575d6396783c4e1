"""Metrics: what a network costs. One file a metric; the file is the registration.

Such a file ends in a constant `METRIC`, an object derived from `Metric`. Budgets, limits, finalists, results, plots and
the report read it: a budget `NAME<=5` is legal where a metric of that name stands here.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from nas.core import plugins
from nas.core.errors import BudgetError, suggest
from nas.core.units import show_count

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.core.ops import Row
    from nas.core.space import Space
    from nas.tables.table import Table

MB = 1e6  # bytes


class Metric(ABC):
    """Something that a network costs, known before it is trained; less is better.

    Attributes:
        name: as budgets spell it, with its unit: `latency_ms`.
        title: for people: `latency`.
        unit: `ms`; empty for a mere count.
        of_table: whether it depends on a device, so on a table; else it is counted.
        has_confidence: whether a budget on it may ask for one.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str] = ""
    of_table: ClassVar[bool] = False
    has_confidence: ClassVar[bool] = False

    @abstractmethod
    def predict(self, arch: Arch, table: Table, confidence: float | None = None) -> float:
        """What a network is expected to take, or with a confidence stays below.

        Raises:
            MissingLatency, TableError, BudgetError: where the table does not know.
        """

    def show(self, value: float) -> str:
        """A value with its unit, for people."""
        return f"{value:.4g} {self.unit}" if self.unit else show_count(value)

    def per_row(self, space: Space, table: Table) -> Callable[[Row], float] | None:
        """What each block adds to a sum that `of_sum` turns into the metric; None where it is no sum over blocks."""
        return None

    def of_sum(self, space: Space, table: Table, total: np.ndarray) -> np.ndarray:
        """The metric for sums of `per_row`; it grows with them, so extremes stay extremes. Shape: (n,) -> (n,)"""
        return total

    def floor(
        self, space: Space, table: Table
    ) -> tuple[Callable[[Row], float], Callable[[np.ndarray], np.ndarray]] | None:
        """A sum over blocks that bounds the metric from below, and the bound for its sums, which grows with them: the
        metric itself where it is a sum; None for no bound.
        """
        cost = self.per_row(space, table)
        return None if cost is None else (cost, functools.partial(self.of_sum, space, table))

    def of_archs(
        self, space: Space, archs: Sequence[Arch], matrix: np.ndarray, table: Table, confidence: float | None = None
    ) -> np.ndarray:
        """`predict` for many networks, at once where it is a sum.

        Args:
            matrix: their rows, (archs, slots) int, from `space.encode`.

        Shape: (archs,)
        """
        cost = self.per_row(space, table) if confidence is None else None
        if cost is None:
            return np.array([self.predict(arch, table, confidence) for arch in archs])
        per_row = np.array([*map(cost, space.all_rows()), 0.0])  # the last: an empty slot
        return self.of_sum(space, table, per_row[matrix].sum(1))

    def smallest(self, space: Space, table: Table, confidence: float | None = None) -> tuple[float, Arch]:
        """The least that a network of a space can take, exact, and a network that does.

        Where the metric is no sum it is a bound that none stays below, with the network of the fewest parameters.
        """
        from nas.core.tracing import params_of_unit

        cost = self.per_row(space, table)
        if cost is None:
            return 0.0, space.extreme(params_of_unit)[1]
        least, arch = space.extreme(cost)
        return float(self.of_sum(space, table, np.array([least]))[0]), arch


def names() -> list[str]:
    """All metrics, sorted."""
    return plugins.names("metrics")


@functools.cache
def load_metric(name: str) -> Metric:
    """The metric `name`.

    Raises:
        BudgetError: unknown metric, naming the closest ones.
    """
    if name not in names():
        raise BudgetError(suggest("metric", name, names()))
    metric: Metric = plugins.load("metrics", name)
    return metric
