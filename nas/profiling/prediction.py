"""Rows that were not measured, predicted from those that were: a regression over what their ops compute and move."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas.core.errors import MeasureError
from nas.core.ops import Row, Shape
from nas.core.tracing import BYTES_PER_VALUE, calls_of_unit, macs_of_unit, params_of_unit
from nas.tables.calibration import row_kind
from nas.tables.table import Entry

LEAST_ROWS = 12  # measured ones, to predict others from
FOLDS = 5
GENERAL = 5  # features of a whole row, before those of each kind of op
SHRINK = 1e-3  # against the squared norm of a feature
LEAST_US = 0.01
LEAST_SHARE = 0.05  # of the median row; smaller ones count as this, or rows that hardly matter would decide

Predict = Callable[[np.ndarray], np.ndarray]  # (rows, features) -> (rows,) in microseconds
Fit = Callable[[np.ndarray, np.ndarray], Predict]  # of features and microseconds


@dataclass(frozen=True)
class Prediction:
    """Predicted rows and how far off they are.

    Attributes:
        entries: the rows; `spread_us` is the standard error of each.
        model: the regression of the lowest error.
        mape_percent: mean absolute error on measured rows, each predicted without it.
        error: the root of the mean squared relative error on them, as a fraction.
        behind: number of measured rows.
    """

    entries: tuple[Entry, ...]
    model: str
    mape_percent: float
    error: float
    behind: int


def predict(measured: Sequence[Entry], rows: Sequence[Row], seed: int = 0) -> Prediction:
    """Predict rows by the regression that predicts measured rows best, in cross-validation.

    Rows below a twentieth of the median one count as that much.

    Args:
        measured: rows with their times.
        rows: others of the same level, one at least.
        seed: of the folds.

    Raises:
        MeasureError: for fewer than 12 measured rows.
    """
    if len(measured) < LEAST_ROWS:
        raise MeasureError(
            f"{len(measured)} rows are measured; to predict {len(rows)} others from them takes at least {LEAST_ROWS}"
        )
    names = kinds_of([*(entry.row for entry in measured), *rows])
    known = np.array([features(entry.row, names) for entry in measured])
    us = np.array([entry.us for entry in measured])
    us = np.maximum(us, max(LEAST_SHARE * float(np.median(us)), LEAST_US))
    errors = {name: _held_out(fit, known, us, seed) / us - 1 for name, fit in MODELS.items()}
    best = min(MODELS, key=lambda name: float(np.abs(errors[name]).mean()))
    error = float(np.sqrt((errors[best] ** 2).mean()))
    guesses = MODELS[best](known, us)(np.array([features(row, names) for row in rows]))
    entries = tuple(
        Entry(row, float(guess), error * float(guess), 0, "predicted") for row, guess in zip(rows, guesses, strict=True)
    )
    return Prediction(entries, best, 100 * float(np.abs(errors[best]).mean()), error, len(measured))


def kinds_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The kinds of op in these rows."""
    return tuple(sorted({row_kind(op) for row in rows for op in _ops(row)}))


def features(row: Row, kinds: Sequence[str]) -> np.ndarray:
    """What may decide how long a row takes: that it is a row; then for the whole row and for each kind of op the number
    of ops, their multiply-adds, parameters, and bytes of inputs and outputs.

    Shape: (GENERAL + 4 * len(kinds),)
    """
    found: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(4))
    for op in _ops(row):
        values = np.array([1.0, macs_of_unit(op), params_of_unit(op), _bytes(op)])
        found[row_kind(op)] += values
        found[""] += values
    return np.concatenate([[1.0], *(found[name] for name in ("", *kinds))])


def _ops(row: Row) -> tuple[Row, ...]:
    return tuple(call.row for call in calls_of_unit(row).ops) or (row,)


def _bytes(row: Row) -> float:
    shapes: Sequence[Shape] = (*row.inputs, *calls_of_unit(row).outputs)
    return float(BYTES_PER_VALUE * sum(map(np.prod, shapes)))


def _held_out(fit: Fit, x: np.ndarray, us: np.ndarray, seed: int) -> np.ndarray:
    """Each row, predicted by a fit on other folds."""
    folds = np.random.default_rng(seed).permutation(len(us)) % FOLDS
    predicted = np.empty(len(us))
    for fold in range(FOLDS):
        predicted[folds == fold] = fit(x[folds != fold], us[folds != fold])(x[folds == fold])
    return predicted


def _additive(x: np.ndarray, us: np.ndarray) -> Predict:
    """A price, never negative, for a row, for each op, multiply-add, parameter and byte of any kind, and what each kind
    costs beyond; in relative error, shrunk a little so that a kind without a measured row has the general price.
    """
    from scipy.optimize import nnls

    relative = x / us[:, None]
    norms = np.maximum(np.linalg.norm(relative, axis=0), 1e-12)
    shrink = np.sqrt(SHRINK) * np.eye(x.shape[1])[GENERAL:]
    prices, _ = nnls(np.vstack([relative / norms, shrink]), np.concatenate([np.ones(len(us)), np.zeros(len(shrink))]))
    return lambda new: np.maximum(new @ (prices / norms), LEAST_US)


def _ridge(x: np.ndarray, us: np.ndarray) -> Predict:
    """A power law of all features."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))).fit(np.log1p(x), np.log(us))
    low, high = us.min(), us.max()
    return lambda new: np.clip(np.exp(model.predict(np.log1p(new))), low / 10, high * 10)


def _corrected(first: Fit, x: np.ndarray, us: np.ndarray) -> Predict:
    """Another regression, times what boosted trees say that it is off by."""
    from sklearn.ensemble import GradientBoostingRegressor

    base = first(x, us)
    model = GradientBoostingRegressor(n_estimators=200, learning_rate=0.05, max_depth=3, subsample=0.7, random_state=0)
    model.fit(np.log1p(x), np.log(us / base(x)))
    return lambda new: base(new) * np.exp(model.predict(np.log1p(new)))


MODELS: dict[str, Fit] = {
    "prices of ops": _additive,
    "power law": _ridge,
    "prices of ops, corrected by boosted trees": functools.partial(_corrected, _additive),
}
