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
from nas.core.errors import BudgetError, InputError, NasError
from nas.core.parts import held_text, loosened
from nas.core.space import Space
from nas.metrics import load_metric
from nas.networks.building import cost_of
from nas.search.budgets import Budget
from nas.tables.kinds import line_of
from nas.tables.table import Latency, Table

SAMPLE = 4000  # archs behind a quantile: at p40, chance moves the share of the space that fits by less than a point
ROUNDING = 1e-9  # sums of the same rows in another order differ by less


@dataclass(frozen=True)
class Limit:
    """A resolved budget.

    Attributes:
        metric: name of a metric.
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
        return f"{self._show(used)} > {self._show(self.limit)}" if self.excess(used) > 0 else ""

    @property
    def title(self) -> str:
        """`latency_ms<=5`, with the confidence where there is one."""
        sure = f" with {100 * self.confidence:g} % confidence" if self.confidence is not None else ""
        return f"{self.metric}<={self.limit:.6g}{sure}"

    def _show(self, value: float) -> str:
        metric = load_metric(self.metric)
        return metric.show(value) + ("" if metric.unit else f" {metric.name}")

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
        latency = self.table.price(calls_of(arch), line_of(arch))
        cost = cost_of(arch)
        used = []
        for limit in self.limits:
            table = _table_of(limit.table, self.table, self.tables)
            used.append(load_metric(limit.metric).predict(arch, table, limit.confidence))
        memory = self.table.memory(arch) if self.table.knows_memory else None
        return Estimate(latency, cost.params, cost.macs, tuple(used), memory)

    def constraints(self, estimate: Estimate) -> dict[str, float]:
        """By how much each limit is exceeded, as a share of it, by the budget's text; positive means infeasible."""
        return {limit.asked: limit.excess(used) for limit, used in zip(self.limits, estimate.used, strict=True)}

    def misfit(self, estimate: Estimate) -> str:
        """Why an arch does not fit, "" where it does."""
        pairs = zip(self.limits, estimate.used, strict=True)
        return "; ".join(filter(None, (limit.misfit(used) for limit, used in pairs)))


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
        held = f" with {held_text(self.space.held)}" if self.space.held else ""
        return f"{len(self.archs)} random archs of {self.space.name}{held}, seed {self.seed}"

    @functools.cached_property
    def _matrix(self) -> np.ndarray:
        return self.space.encode(self.archs)

    def costs(self, metric: str, table: Table, confidence: float | None = None) -> np.ndarray:
        """The cost of every arch of the sample, in the unit of the metric; see `Estimate.used`. Shape: (size,)"""
        return load_metric(metric).of_archs(self.space, self.archs, self._matrix, table, confidence)

    def median(self, table: Table) -> Arch:
        """The arch of median latency."""
        order = np.argsort(self.costs("latency_ms", table), kind="stable")
        return self.archs[int(order[len(order) // 2])]


def _table_of(path: str | None, table: Table, tables: Mapping[str, Table]) -> Table:
    return table if path is None else tables[path]


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
    metric = load_metric(budget.metric)
    least, arch = metric.smallest(space, table, budget.confidence)
    if limit >= least * (1 - ROUNDING):
        return
    needed = metric.predict(arch, table, budget.confidence)
    params = " ".join(f"{name}={value}" for name, value in space.params_of(arch).items())
    sure = f" with {100 * budget.confidence:g} % confidence" if budget.confidence is not None else ""
    by = f" by {table.where}" if metric.of_table else ""
    again = f" @ {budget.confidence:g}" if budget.confidence is not None else ""
    raise BudgetError(
        f"budget {budget.asked} is below the smallest architecture of space {space.name}, which takes "
        f"{metric.show(needed)}{'' if metric.unit else f' {metric.name}'}{sure}{by}: arch {arch.id} with {params}. "
        f"Ask for {budget.metric}<={rounded_up(needed):g}{again} or more"
        f"{to_loosen(space, lambda part: metric.smallest(part, table, budget.confidence)[0] <= limit)}"
    )


def to_loosen(space: Space, fits: Callable[[Space], bool]) -> str:
    """What to say, behind a refusal, of the choices that a space holds: which one keeps out what fits.

    Args:
        space: of which nothing fits.
        fits: whether something does in another part of its whole.
    """
    if not space.held:
        return ""

    def helps(part: Space) -> bool:
        try:
            return fits(part)
        except NasError:  # a table of these rows alone does not know those of the part
            return False

    free = [text for text, part in loosened(space).items() if helps(part)]
    if free:
        return f"; some do where fix does not hold {' or not '.join(free)}"
    return f"; none does either where fix holds one thing less of {held_text(space.held)}"


def rounded_up(value: float) -> float:
    """To four digits, never below the value."""
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return math.ceil(value / step) * step
