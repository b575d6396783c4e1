"""What a study knows of each candidate: one record a trial, and all of them as a table."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nas.core.units import to_ms
from nas.evaluation.evaluators import LOSS
from nas.report.schema import WHOLE, State

if TYPE_CHECKING:
    import pandas as pd
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from nas.evaluation.evaluators import Score

RECORD = "nas"  # name of the user attribute that holds a trial's record


@dataclass(frozen=True)
class Record:
    """What became of a candidate; kept with its trial as one user attribute, so that one write makes it complete.

    Attributes:
        state: evaluated; over a budget; the arch of an earlier trial; or without a score.
        arch: id, "" where the parameters are no arch.
        reason: why there is no score of its own.
        predicted_us, low_us, high_us: latency by the request's table, with its interval where there is one.
        params, macs: of the arch.
        value, score: what it is compared by, and the name of that; a duplicate has those of the earlier trial.
        val_loss, val_accuracy: where the score has them.
        seconds, cost: what the score took.
        duplicate_of: number of the earlier trial.
        seed: of the training behind the score.
    """

    state: State
    arch: str = ""
    reason: str = ""
    predicted_us: float | None = None
    low_us: float | None = None
    high_us: float | None = None
    params: int | None = None
    macs: int | None = None
    value: float | None = None
    score: str = ""
    val_loss: float | None = None
    val_accuracy: float | None = None
    seconds: float | None = None
    cost: str = ""
    duplicate_of: int | None = None
    seed: int = 0

    def as_data(self) -> dict[str, Any]:
        """Plain data without what is unknown; `Record(**data)` reads it."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value not in (None, "")}

    def scored(self, score: Score | Record) -> Record:
        """With a score, or with that of another record."""
        name = score.score if isinstance(score, Record) else score.name
        return replace(self, value=score.value, score=name, val_loss=score.val_loss, val_accuracy=score.val_accuracy)

    def values(self, objectives: int) -> list[float]:
        """What the study is told: the value, and for a front also the latency in ms; the worst where infeasible.

        Args:
            objectives: 1, or 2 for a front.
        """
        value = math.inf if self.value is None else self.value
        return [value] if objectives == 1 else [value, to_ms(self.predicted_us or math.inf)]


def record_of(trial: FrozenTrial) -> Record | None:
    """The record of a trial, None before it has one."""
    data = trial.user_attrs.get(RECORD)
    if data is None:
        return None
    if "value" not in data and "val_loss" in data:  # of an earlier version, which knew no other score
        data = data | {"value": data["val_loss"], "score": LOSS}
    return Record(**data)


def trials_frame(study: Study, table_hash: str) -> pd.DataFrame:
    """All finished trials, one row each, in the columns of `trials.csv`.

    `state` is evaluated, infeasible, duplicate or failed; latencies are in ms; parameters stand in columns `param.*`.
    """
    import pandas as pd

    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            record = record_of(trial) or Record("failed", reason="stopped by hand")
            rows.append(_row(trial, record, table_hash))
    columns = [*_cells(Record("failed"), table_hash), *sorted(set().union(*rows) - set(_cells(Record("failed"), "")))]
    frame = pd.DataFrame(rows, columns=pd.Index(columns))
    return frame.astype(dict.fromkeys(WHOLE, "Int64"))


def _row(trial: FrozenTrial, record: Record, table_hash: str) -> dict[str, Any]:
    started = trial.datetime_start.isoformat(timespec="milliseconds") if trial.datetime_start else ""
    cells = _cells(record, table_hash) | {"number": trial.number, "started": started}
    return cells | {f"param.{name}": value for name, value in trial.params.items()}


def _cells(record: Record, table_hash: str) -> dict[str, Any]:
    def ms(us: float | None) -> float | None:
        return None if us is None else to_ms(us)

    return {
        "number": None,
        "state": record.state,
        "reason": record.reason,
        "predicted_ms": ms(record.predicted_us),
        "predicted_low_ms": ms(record.low_us),
        "predicted_high_ms": ms(record.high_us),
        "params": record.params,
        "macs": record.macs,
        "value": record.value,
        "score": record.score,
        "val_loss": record.val_loss,
        "val_accuracy": record.val_accuracy,
        "seconds": record.seconds,
        "cost": record.cost,
        "started": "",
        "arch": record.arch,
        "duplicate_of": record.duplicate_of,
        "table_hash": table_hash,
        "seed": record.seed,
    }
