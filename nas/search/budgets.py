"""Budgets as they are written: hard upper bounds on a metric (`nas.metrics`).

A budget is `latency_ms<=5`, `latency_ms<=p40` (the 40 % quantile of the space), `memory_mb<=50`, `params<=3e6`,
`macs<=1e9`, or `latency_ms[path/table.csv]<=5` for a table other than the request's. `latency_ms<=5 @ 0.95` is kept by
a network whose measured latency is below 5 ms with 95 % confidence. `nas.search.limits` resolves it to a number.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from nas.core.errors import BudgetError
from nas.metrics import load_metric

_FORM = re.compile(
    r"\s*(?P<metric>\w+)\s*(?:\[(?P<table>[^\[\]]+)\])?\s*<=\s*(?P<bound>[^\s@]+)\s*(?:@\s*(?P<confidence>\S+)\s*)?"
)
_EXPECTED = (
    "expected a bound such as latency_ms<=5, latency_ms<=p40, latency_ms<=5 @ 0.95, memory_mb<=50, size_mb<=8, "
    "params<=3e6 or macs<=1e9"
)


@dataclass(frozen=True)
class Budget:
    """An upper bound as it was asked for.

    Attributes:
        asked: its text in the usual spelling.
        metric: of a file in `nas.metrics`; a megabyte is 1e6 bytes.
        limit: the bound in the unit of the metric, None for a quantile.
        quantile: share of the space that may fit, in 0..1, None for a number.
        table: path of the table that predicts latency or memory, None for the request's.
        confidence: with which the measured latency has to keep it, in 0.5..1; None for the prediction.
    """

    asked: str
    metric: str
    limit: float | None
    quantile: float | None
    table: str | None
    confidence: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget.

        Raises:
            BudgetError: saying what was expected, or naming the closest metric.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise BudgetError(f"{_EXPECTED}, got {text!r}")
        metric, table, bound = found["metric"], found["table"], found["bound"]
        known = load_metric(metric)
        if table is not None and not known.of_table:
            raise BudgetError(f"{metric} does not depend on a table, got {text!r}")
        percent = bound.startswith("p")
        number = _number(bound.removeprefix("p"))
        if percent and not 0 < number < 100:
            raise BudgetError(f"expected a quantile between p0 and p100, got {bound!r}")
        if not 0 < number < math.inf:
            raise BudgetError(f"{_EXPECTED}, got {text!r}")
        confidence = None if found["confidence"] is None else _number(found["confidence"])
        if confidence is not None and not known.has_confidence:
            raise BudgetError(f"{known.title} has no confidence, got {text!r}")
        if confidence is not None and not 0.5 <= confidence < 1:
            raise BudgetError(f"expected a confidence of at least 0.5 and below 1, got {found['confidence']!r}")
        asked = f"{metric}[{table}]<={bound}" if table else f"{metric}<={bound}"
        if confidence is not None:
            asked += f" @ {confidence:g}"
        return cls(asked, metric, None if percent else number, number / 100 if percent else None, table, confidence)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
