"""Limits: budgets resolved to numbers on a space and its tables, and whether an arch keeps them."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.core.arch import Arch, calls_of
from nas.core.errors import BudgetError, InputError
from nas.core.ops import Row
from nas.core.space import Space
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.core.units import show_count, to_ms
from nas.search.budgets import OF_TABLES, Budget
from nas.tables.table import Latency, Table

SAMPLE = 4000  # archs behind a quantile: at p40, chance moves the share of the space that fits by less than a point
MB = 1e6  # bytes
ROUNDING = 1e-9  # sums of the same rows in another order differ by less


@dataclass(frozen=True)
class Limit:
    """A resolved budget.

    Attributes:
        metric: in `nas.search.budgets.METRICS`.
        limit: the most that is allowed, in the unit of the metric.
        asked: the budget's text.
        table: path of the table that predicts latency or memory; None for the request's, and for other metrics.
        quantile_of: which sample the limit is a quantile of, None where a number was asked for.
        confidence: with which a measured latency has to keep it; None where the prediction has to.
    """

    metric: str
    limit: float
    asked: str
    table: str | None
    quantile_of: str | None
    confidence: float | None = None

    def excess(self, used: float) -> float:
        """By how much `used` exceeds the limit, as a share of it: positive only beyond rounding errors."""
        share = used / self.limit - 1
        return 0.0 if abs(share) < ROUNDING else share

    def misfit(self, used: float) -> str:
        """`0.56 ms > 0.55 ms` where `used` exceeds the limit, "" where it does not."""
        return f"{_show(self.metric, used)} > {_show(self.metric, self.limit)}" if self.excess(used) > 0 else ""

    @property
    def title(self) -> str:
        """`latency_ms<=5`, with the confidence where there is one."""
        sure = f" with {100 * self.confidence:g} % confidence" if self.confidence is not None else ""
        return f"{self.metric}<={self.limit:.6g}{sure}"

    def as_data(self) -> dict[str, Any]:
        """Plain data, as results keep it; `Limit(**data)` reads it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Estimate:
    """What an arch is expected to cost before anything is trained.

    Attributes:
        latency: predicted by the request's table.
        params: learned parameters.
        macs: multiply-adds.
        used: of each limit, in the unit of its metric; a latency that is asked for with a confidence is what it stays
            below with that.
        memory_bytes: peak memory by the request's table; None where it has too few networks with measured memory.
    """

    latency: Latency
    params: int
    macs: int
    used: tuple[float, ...]
    memory_bytes: float | None = None


@dataclass(frozen=True)
class Estimator:
    """Says what archs cost and whether they fit.

    Attributes:
        table: the request's table.
        limits: the resolved budgets.
        tables: further tables that limits name, by path.
    """

    table: Table
    limits: tuple[Limit, ...] = ()
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)

    def estimate(self, arch: Arch) -> Estimate:
        """Price an arch.

        Raises:
            MissingLatency: where a table lacks one of its rows.
        """
        calls = calls_of(arch)
        latency = self.table.price(calls)
        params = sum([params_of_unit(call.row) for call in calls])
        macs = sum([macs_of_unit(call.row) for call in calls])
        used = []
        for limit in self.limits:
            table = _table_of(limit.table, self.table, self.tables)
            if limit.metric in OF_TABLES:
                used.append(_cost(arch, limit.metric, table, limit.confidence))
            else:
                used.append(float(params if limit.metric == "params" else macs))
        memory = self.table.memory(arch) if self.table.knows_memory else None
        return Estimate(latency, params, macs, tuple(used), memory)

    def constraints(self, estimate: Estimate) -> dict[str, float]:
        """By how much each limit is exceeded, as a share of it, by the budget's text; positive means infeasible."""
        return {limit.asked: limit.excess(used) for limit, used in zip(self.limits, estimate.used, strict=True)}

    def misfit(self, estimate: Estimate) -> str:
        """Why an arch does not fit, "" where it does."""
        pairs = zip(self.limits, estimate.used, strict=True)
        return "; ".join(filter(None, (limit.misfit(used) for limit, used in pairs)))


def _show(metric: str, value: float) -> str:
    unit = {"latency_ms": "ms", "memory_mb": "MB"}.get(metric)
    return f"{value:.4g} {unit}" if unit else f"{show_count(value)} {metric}"


def _cost(arch: Arch, metric: str, table: Table, confidence: float | None) -> float:
    """Latency in ms, or what it stays below with a confidence, or memory in MB."""
    if metric == "memory_mb":
        return table.memory(arch) / MB
    calls = calls_of(arch)
    return to_ms(table.price(calls).total_us if confidence is None else table.bound_us(calls, confidence))


class Survey:
    """What a seeded random sample of a space costs: quantiles, its median network, how much of the space fits.

    Args:
        space: the space.
        seed: of the sample.
        size: how many archs are drawn.
    """

    def __init__(self, space: Space, seed: int, size: int = SAMPLE) -> None:
        self.space, self.seed = space, seed
        rng = random.Random(seed)
        self.archs = [space.sample(rng) for _ in range(size)]

    def __str__(self) -> str:
        return f"{len(self.archs)} random archs of {self.space.name}, seed {self.seed}"

    @functools.cached_property
    def _matrix(self) -> np.ndarray:
        return self.space.encode(self.archs)

    def costs(self, metric: str, table: Table, confidence: float | None = None) -> np.ndarray:
        """The cost of every arch of the sample, in the unit of the metric; see `Estimate.used`. Shape: (size,)"""
        if metric == "memory_mb" or confidence is not None:
            return np.array([_cost(arch, metric, table, confidence) for arch in self.archs])
        if metric == "latency_ms":
            return table.price_matrix(self.space, self._matrix) / 1000
        cost = _row_cost(metric, table, self.space)
        per_row = np.array([*map(cost, self.space.rows()), 0.0])  # the last: an empty slot
        totals: np.ndarray = per_row[self._matrix].sum(1)
        return totals

    def share_that_fits(self, estimator: Estimator) -> float:
        """Share of the sample that meets all limits at once, in 0..1."""
        fits = np.ones(len(self.archs), dtype=bool)
        for limit in estimator.limits:
            table = _table_of(limit.table, estimator.table, estimator.tables)
            costs = self.costs(limit.metric, table, limit.confidence)
            fits &= costs <= limit.limit * (1 + ROUNDING)
        return float(fits.mean())

    def median(self, table: Table) -> Arch:
        """The arch of median latency."""
        order = np.argsort(self.costs("latency_ms", table), kind="stable")
        return self.archs[int(order[len(order) // 2])]


def _row_cost(metric: str, table: Table, space: Space) -> Callable[[Row], float]:
    costs: dict[str, Callable[[Row], float]] = {"params": params_of_unit, "macs": macs_of_unit}
    return costs.get(metric) or table.cost_of_row(space)


def _table_of(path: str | None, table: Table, tables: Mapping[str, Table]) -> Table:
    return table if path is None else tables[path]


def smallest(space: Space, metric: str, table: Table) -> tuple[float, Arch]:
    """The smallest cost that the space can reach, in the unit of the metric, and an arch that reaches it; exact.

    Memory is no sum over blocks: of that it is a bound that no arch reaches, with the arch of the fewest parameters.
    """
    least, arch = space.extreme(_row_cost("params" if metric == "memory_mb" else metric, table, space))
    if metric == "memory_mb":
        return table.memory_fit.least_bytes(least) / MB, arch
    return (to_ms(table.total_us(space, least)) if metric == "latency_ms" else least), arch


def resolve(budgets: Sequence[Budget], survey: Survey, table: Table, tables: Mapping[str, Table]) -> tuple[Limit, ...]:
    """Turn budgets into limits: quantiles become numbers, and what no arch can meet is refused.

    Args:
        budgets: as asked for.
        survey: the sample that quantiles are taken of.
        table: the request's table.
        tables: the tables that budgets name, by path.

    Raises:
        BudgetError: a budget below the smallest arch, naming that arch and what it costs; a confidence for which a
            table has too few calibration networks.
        MissingLatency: a table lacks rows of the space.
        TableError: a table has too few networks with measured memory.
    """
    limits = []
    for budget in budgets:
        used = _table_of(budget.table, table, tables)
        limit, quantile_of = budget.limit, None
        if limit is None:
            if budget.quantile is None:
                raise InputError(f"{budget.asked}: neither a number nor a quantile")
            limit = float(np.quantile(survey.costs(budget.metric, used), budget.quantile))
            quantile_of = str(survey)
        _require_reachable(budget, limit, survey.space, used)
        limits.append(Limit(budget.metric, limit, budget.asked, budget.table, quantile_of, budget.confidence))
    return tuple(limits)


def _require_reachable(budget: Budget, limit: float, space: Space, table: Table) -> None:
    least, arch = smallest(space, budget.metric, table)
    if budget.confidence is not None:  # a bound is a factor on the prediction, and more where rows are doubtful
        least *= table.bound(space.input_shape, budget.confidence)
    if limit >= least * (1 - ROUNDING):
        return
    needed = least if budget.metric not in OF_TABLES else _cost(arch, budget.metric, table, budget.confidence)
    params = " ".join(f"{name}={value}" for name, value in space.params_of(arch).items())
    sure = f" with {100 * budget.confidence:g} % confidence" if budget.confidence is not None else ""
    by = f" by {table.where}" if budget.metric in OF_TABLES else ""
    again = f" @ {budget.confidence:g}" if budget.confidence is not None else ""
    raise BudgetError(
        f"budget {budget.asked} is below the smallest architecture of space {space.name}, which takes "
        f"{_show(budget.metric, needed)}{sure}{by}: arch {arch.id} with {params}. "
        f"Ask for {budget.metric}<={rounded_up(needed):g}{again} or more."
    )


def rounded_up(value: float) -> float:
    """To four digits, never below the value."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return math.ceil(value / step) * step
