"""The front of a study: reading its trials, the exact non-dominated set, the hypervolume it covers.

Everything works on the frame of `trials.csv`, one row a trial: candidates that were scored (`evaluated`), candidates
that went no further than an earlier rung (`stopped`), candidates over a budget that never were scored (`infeasible`),
repeats (`duplicate`) and failures (`failed`). Only evaluated trials can be on a front.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from nas.core.errors import InputError, RunError, suggest
from nas.evaluation.evaluators import LOSS
from nas.report.schema import LATER, REAL, STATES, TRIAL_COLUMNS, WHOLE

HIGHER_IS_BETTER = frozenset({"val_accuracy"})


def non_dominated(costs: np.ndarray) -> np.ndarray:
    """Mask of the rows that no other row dominates, all objectives minimized.

    A row dominates another when it is nowhere greater and somewhere smaller. Equal rows do not dominate each other:
    they are all on the front or all off it. O(n log n) for one and two objectives, O(n * front) for more; no tolerance.

    Shape: (n, objectives) -> (n,) bool

    Raises:
        InputError: the array is not two-dimensional, has no objective, or holds a NaN.
    """
    costs = np.asarray(costs, dtype=float)
    if costs.ndim != 2 or costs.shape[1] == 0:
        raise InputError(f"costs must have the shape (trials, objectives), got {costs.shape}")
    if np.isnan(costs).any():
        raise InputError(f"the cost of row {int(np.argwhere(np.isnan(costs))[0, 0])} is NaN, neither better nor worse")
    if len(costs) == 0:
        return np.zeros(0, dtype=bool)
    rows, positions = np.unique(costs, axis=0, return_inverse=True)  # sorted by the first objective, then the next
    keep = _keep_of_two(rows) if rows.shape[1] <= 2 else _keep_of_many(rows)
    return keep[positions.reshape(-1)]


def _keep_of_two(rows: np.ndarray) -> np.ndarray:
    """A sorted distinct row is on the front when its last objective beats every row before it."""
    keep = np.ones(len(rows), dtype=bool)
    if rows.shape[1] == 1:
        keep[1:] = False
    else:
        keep[1:] = rows[1:, 1] < np.minimum.accumulate(rows[:-1, 1])
    return keep


def _keep_of_many(rows: np.ndarray) -> np.ndarray:
    """In sorted order a row can only be dominated by one before it, and then by one on the front."""
    keep = np.zeros(len(rows), dtype=bool)
    for index, row in enumerate(rows):
        keep[index] = not (rows[keep] <= row).all(axis=1).any()
    return keep


def front_data(trials: pd.DataFrame, cost: str = "predicted_ms", score: str = "value") -> pd.DataFrame:
    """The evaluated trials that no other evaluated trial dominates, cheapest first, with all their columns.

    `cost` is minimized (`predicted_ms`, `params`, `macs`); `score` is minimized too, unless it is `val_accuracy`.
    Trials that tie in both stay together.

    Raises:
        InputError: a column does not exist, or an evaluated trial lacks its cost or score.
    """
    evaluated = evaluated_trials(trials, cost, score)
    mask = non_dominated(_costs(evaluated, cost, score))
    return evaluated[mask].sort_values([cost, "number"]).reset_index(drop=True)


def evaluated_trials(trials: pd.DataFrame, *needed: str) -> pd.DataFrame:
    """The trials that were evaluated, each of which must have a value in every `needed` column (else `InputError`)."""
    for column in needed:
        if column not in trials:
            raise InputError(suggest("column of trials", column, map(str, trials.columns)))
    evaluated = trials[trials["state"] == "evaluated"]
    for column in needed:
        empty = evaluated.loc[evaluated[column].isna(), "number"]
        if len(empty):
            raise InputError(f"trial {empty.iloc[0]} is evaluated but has no {column}")
    return evaluated


def hypervolume(front: pd.DataFrame, reference: tuple[float, float], cost: str, score: str) -> float:
    """Area of cost times score that the trials of `front` dominate, bounded by `reference` = (worst cost, worst score).

    Grows when the front improves anywhere, so it compares two searches of one space. Its unit is that of cost times
    score. Trials beyond the reference add nothing.
    """
    sign = -1.0 if score in HIGHER_IS_BETTER else 1.0
    costs = _costs(front, cost, score)
    worst = np.array([reference[0], sign * reference[1]])
    if not np.isfinite(worst).all():
        raise InputError(f"the reference of a hypervolume must be finite, got {reference}")
    costs = costs[(costs < worst).all(axis=1)]
    costs = np.unique(costs[non_dominated(costs)], axis=0)  # cost rises, score falls
    widths = np.diff(np.append(costs[:, 0], worst[0]))
    return float((widths * (worst[1] - costs[:, 1])).sum())


def _costs(trials: pd.DataFrame, cost: str, score: str) -> np.ndarray:
    """Shape: (trials, 2), both minimized."""
    costs = trials[[cost, score]].to_numpy(dtype=float, na_value=np.nan)
    if score in HIGHER_IS_BETTER:
        costs[:, 1] *= -1
    return costs


def read_trials(path: Path | str) -> pd.DataFrame:
    """Read `trials.csv`: text columns as text, counts as nullable integers, empty numbers as missing.

    Columns `param.*` and `rung.*` become numbers where all their values are, else stay text.

    Raises:
        RunError: the file is missing, lacks a column, or holds a value that makes no sense, naming row and column.
    """
    path = Path(path)
    if not path.is_file():
        raise RunError(f"no trials at {path}. A search writes them: nas search REQUEST.yaml")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)  # an arch id such as 123456789e12 is no number
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is no table of trials: {error}") from error
    if not set(LATER) & set(frame):
        scored = frame["val_loss"] != "" if "val_loss" in frame else False
        frame = frame.assign(value=frame.get("val_loss"), score=np.where(scored, LOSS, ""), cost="")
    lacking = [name for name in TRIAL_COLUMNS if name not in frame]
    if lacking:
        raise RunError(f"{path} lacks the column{'s' if len(lacking) > 1 else ''} {', '.join(lacking)}")
    for name in (*WHOLE, *REAL):
        frame[name] = _numbers(frame[name], path, whole=name in WHOLE)
    for name in frame.columns[frame.columns.str.startswith(("param.", "rung."))]:
        frame[name] = _numbers_or_text(frame[name])
    _check(frame, path)
    return frame


def _numbers(texts: pd.Series, path: Path, whole: bool) -> pd.Series:
    """Parse one column; its first bad value is named by its row, counted from 1 after the header."""
    numbers = pd.to_numeric(texts.where(texts != ""), errors="coerce", dtype_backend="numpy_nullable")
    real = numbers.astype(float)  # whole numbers stay in `numbers`, where large ones keep all their digits
    bad = (texts != "") & ~np.isfinite(real)
    if whole:
        bad |= real.notna() & ((real % 1 != 0) | (real.abs() >= 2**63))
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        kind = "a whole number" if whole else "a finite number"
        raise RunError(f"{path}, row {row + 1}, column {texts.name}: expected {kind}, got {texts.iloc[row]!r}")
    return numbers.astype("Int64") if whole else real


def _numbers_or_text(texts: pd.Series) -> pd.Series:
    """Parse a parameter's column where all of it is numeric; a categorical choice stays as it is written."""
    numbers = pd.to_numeric(texts.where(texts != ""), errors="coerce")
    return texts if ((texts != "") & numbers.isna()).any() else numbers


def _check(frame: pd.DataFrame, path: Path) -> None:
    """Raise unless states are known, numbers are unique and accuracies are fractions."""
    for row, state in enumerate(frame["state"], start=1):
        if state not in STATES:
            raise RunError(f"{path}, row {row}: {suggest('state', state, STATES)}")
    twice = frame["number"].duplicated() | frame["number"].isna()
    if twice.any():
        raise RunError(f"{path}, row {int(np.argmax(twice.to_numpy())) + 1}, column number: missing, or seen before")
    accuracy = frame["val_accuracy"].dropna()
    wrong = accuracy[(accuracy < 0) | (accuracy > 1)]
    if len(wrong):
        row, value = int(wrong.index[0]) + 1, wrong.iloc[0]
        raise RunError(f"{path}, row {row}, column val_accuracy: expected a fraction between 0 and 1, got {value:g}")
