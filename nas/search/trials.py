"""What a study knows of each candidate: one record a trial, and all of them as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nas.core.units import to_ms
from nas.evaluation.evaluators import LOSS
from nas.report.schema import WHOLE, State

if TYPE_CHECKING:
    import pandas as pd
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    from nas.evaluation.evaluators import Score

RECORD = "nas"  # name of the user attribute that holds a trial's record
SO_FAR = "nas so far"  # that of a trial which has scores of some rungs: its record if it stopped there


@dataclass(frozen=True)
class Rung:
    """What a candidate reached at one of several evaluators.

    Attributes:
        score, value: name and value of its score there.
        seconds, cost: what that took.
        by_chance: chance sent it here, not its value before.
    """

    score: str
    value: float
    seconds: float | None = None
    cost: str = ""
    by_chance: bool = False


@dataclass(frozen=True)
class Record:
    """What became of a candidate; kept with its trial as one user attribute, so that one write makes it complete.

    Attributes:
        state: evaluated; stopped after some rungs; over a budget; the arch of an earlier trial; or without a score.
        arch: id, "" where the parameters are no arch.
        reason: why there is no score of its own.
        predicted_us, low_us, high_us: latency by the request's table, with its interval where there is one.
        params, macs: of the arch.
        value, score: what it is compared by, and the name of that; a duplicate has those of the earlier trial. Of
            several rungs those of the last; it has none before.
        val_loss, val_accuracy: where the score has them.
        seconds, cost: what the score took.
        duplicate_of: number of the earlier trial.
        seed: of the training behind the score.
        rungs: that it has passed, where there are several; a duplicate has those that the earlier trial had by then.
        lost: it failed since its workers were lost, or memory ran out; that may be otherwise another time.
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
    rungs: tuple[Rung, ...] = ()
    lost: bool = False

    def as_data(self) -> dict[str, Any]:
        """Plain data without what is unknown, for `of_data`."""
        data = dataclasses.asdict(self)
        data |= {"lost": self.lost or None, "rungs": [dataclasses.asdict(rung) for rung in self.rungs] or None}
        return {key: value for key, value in data.items() if value not in (None, "")}

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Record:
        """A record from `as_data`, also one of an earlier version, which knew no other score than losses."""
        if "value" not in data and "val_loss" in data:
            data = {**data, "value": data["val_loss"], "score": LOSS}
        return cls(**{**data, "rungs": tuple(Rung(**rung) for rung in data.get("rungs", ()))})

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


def record_of(trial: FrozenTrial | Trial) -> Record | None:
    """The record of a trial, None before it has one."""
    data = trial.user_attrs.get(RECORD)
    return None if data is None else Record.of_data(data)


def so_far(trial: FrozenTrial | Trial) -> Record | None:
    """The record of a trial, or of one that is not finished what it would be if it stopped where it is."""
    data = trial.user_attrs.get(RECORD, trial.user_attrs.get(SO_FAR))
    return None if data is None else Record.of_data(data)


def trials_frame(study: Study, table_hash: str) -> pd.DataFrame:
    """All finished trials, one row each, in the columns of `trials.csv`.

    `state` is one of `nas.report.schema.STATES`; latencies are in ms; parameters stand in columns `param.*`, and what a
    candidate reached at each of several rungs in `rung.0.value` and its like.
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
    for index, rung in enumerate(record.rungs):
        cells |= {f"rung.{index}.{name}": value for name, value in dataclasses.asdict(rung).items()}
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
