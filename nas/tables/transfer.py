"""A table for a new device from few measured networks and the full tables of other devices or runtimes.

A row is first taken as a sum of what it takes elsewhere and, where that predicts held-out measurements better, of what
it costs anywhere (ops, multiply-adds, weights, activations), with the non-negative weights that fit best. Then the
logarithms of kinds of rows and of single rows are corrected by a Gaussian process: each measured network is a sum of
rows, and what it takes beyond its prediction is shared among the rows that may be behind it. The posterior gives each
row its standard error (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.23 and 2.24).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas.core.arch import Arch, calls_of
from nas.core.errors import InputError, MissingLatency, TableError
from nas.core.ops import Row
from nas.core.space import Space
from nas.core.tracing import calls_of_unit, macs_of_unit, params_of_unit
from nas.tables.calibration import MIN_NETWORKS, row_kind
from nas.tables.table import Entry, Header, NetworkEntry, Table

LEAST = 5  # measurements; fewer do not tell a device from another
CALIBRATION = 1 / 3  # of the networks, which the rows never see, so that they tell the error
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # squared ratio of the noise of a network to the spread of kinds
DESIGN_RIDGE = 0.1
ROW_VARIANCE = 0.25  # of a single row within its kind, beside the variance of kinds
KIND_VARIANCE, BELIEF = 0.02, 4  # of kinds before any measurement, and how many measurements that counts for
STEPS = 5  # of Gauss and Newton: networks are sums of rows, corrections are factors


def parts_of(count: int) -> tuple[int, int]:
    """Of so many networks, how many the rows are fitted on, and how many calibrate: none where they are too few."""
    calibration = max(MIN_NETWORKS, round(CALIBRATION * count))
    return (count - calibration, calibration) if count - calibration >= LEAST else (count, 0)


def common_spaces(sources: Sequence[Table]) -> dict[str, Space]:
    """The spaces that every source holds as a whole, by the name in the header.

    Raises:
        InputError: without sources, or where their levels differ.
        TableError: where they have no space in common.
        MissingLatency: where a source lacks rows of one.
    """
    if not sources:
        raise InputError("transfer needs at least one source table: --from TABLE")
    if len({table.header.level for table in sources}) > 1:
        levels = ", ".join(f"{table.where} ({table.header.level})" for table in sources)
        raise InputError(f"source tables of different levels do not go together: {levels}; leave some out")
    spaces = dict(zip(sources[0].header.spaces, sources[0].spaces, strict=True))
    shared = {scope: space for scope, space in spaces.items() if all(scope in table.header.spaces for table in sources)}
    if not shared:
        held = "\n".join(f"  {table.where}: {', '.join(table.header.spaces) or 'none'}" for table in sources)
        raise TableError(f"the source tables have no whole space in common:\n{held}\nComplete one with nas profile")
    for table in sources:
        for space in shared.values():
            table.require(space)
    return shared


def choose(sources: Sequence[Table], archs: Sequence[Arch], count: int) -> tuple[Arch, ...]:
    """The archs whose latencies say most about all rows, the best first: a D-optimal design, greedily.

    Args:
        sources: full tables of other devices or runtimes.
        archs: to choose from.
        count: how many; fewer where there are no more.
    """
    prior = _Prior.of(sources)
    counts = prior.counts(archs)
    parts = prior.columns / prior.columns.mean(0)
    terms = counts * parts.sum(1)
    shares = terms / terms.sum(1, keepdims=True)
    known = shares @ prior.features(parts)
    covariance = known @ known.T + ROW_VARIANCE * shares @ shares.T
    left, chosen = np.ones(len(archs), dtype=bool), []
    for _ in range(min(count, len(archs))):
        best = int(np.where(left, covariance.diagonal(), -np.inf).argmax())
        chosen.append(archs[best])
        left[best] = False
        column = covariance[:, best]
        covariance = covariance - np.outer(column, column) / (column[best] + DESIGN_RIDGE)
    return tuple(chosen)


def fit(
    sources: Sequence[Table],
    header: Header,
    networks: Sequence[NetworkEntry],
    calibration: Sequence[NetworkEntry] = (),
    rows: Sequence[Entry] = (),
) -> Table:
    """A table of the new device; its rows are predicted, their spread is the standard error.

    Args:
        sources: full tables of other devices or runtimes.
        header: of the new device; level, spaces and method are filled in.
        networks: measured on it; the rows are fitted on them.
        calibration: further ones, which the rows never see: the table's calibration and its error rest on them.
        rows: measured on it; they stand in the table as they are, and others learn from them.

    Raises:
        InputError: for fewer than five networks and rows, or sources of different levels.
        TableError: where the sources have no space in common.
        MissingLatency: where a source lacks rows of it, or a measured network needs rows beside.
    """
    prior = _Prior.of(sources)
    if len(networks) + len(rows) < LEAST:
        raise InputError(f"transfer needs at least {LEAST} measurements, got {len(networks) + len(rows)}")
    known = [entry for entry in rows if entry.us > 0]
    counts = np.concatenate([prior.counts([network.arch for network in networks]), prior.single(known)])
    us = np.array([network.us for network in networks] + [entry.us for entry in known])
    lean = dataclasses.replace(prior, columns=prior.columns[:, : len(sources)])
    errors = [kind.held_out_errors(counts, us) for kind in (lean, prior)]
    number, ridge = np.unravel_index(np.argmin(errors), (2, len(RIDGES)))
    found = (lean, prior)[number].fit(counts, us, RIDGES[ridge])
    entries = {
        row: Entry(row, float(time), float(time * error), 0, "predicted")
        for row, time, error in zip(prior.rows, found.us, found.errors, strict=True)
    }
    entries |= {entry.row: entry for entry in rows}
    filled = dataclasses.replace(header, level=prior.level, spaces=tuple(common_spaces(sources)), method="transfer")
    return Table(filled, entries.values(), calibration)


@dataclass(frozen=True)
class _Fit:
    """Rows of the new device.

    Attributes:
        us: (rows,) latencies in microseconds.
        errors: (rows,) their relative standard errors.
    """

    us: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class _Prior:
    """What is known of rows before the new device is measured.

    Attributes:
        level: what a row is.
        rows: the keys.
        columns: (rows, columns) what a row takes elsewhere, and what it costs anywhere.
        kinds: (rows, kinds) one where a row is of a kind.
    """

    level: str
    rows: tuple[Row, ...]
    columns: np.ndarray
    kinds: np.ndarray

    @classmethod
    def of(cls, sources: Sequence[Table]) -> _Prior:
        spaces, level = common_spaces(sources).values(), sources[0].header.level
        wanted = [row for space in spaces for row in (space.rows() if level == "block" else space.op_rows())]
        rows = tuple(dict.fromkeys(wanted))
        known = [{entry.row: entry.us for entry in table.entries} for table in sources]
        columns = np.array([[*(us[row] for us in known), *_costs(row)] for row in rows])
        names = np.array([row_kind(row) for row in rows])
        return cls(level, rows, columns, (names[:, None] == np.unique(names)).astype(float))

    @functools.cached_property
    def _numbers(self) -> dict[Row, int]:
        return {row: number for number, row in enumerate(self.rows)}

    def number(self, row: Row) -> int:
        """Where a row stands."""
        if row not in self._numbers:
            raise MissingLatency(f"no space that the source tables have in common needs the row {row}", (str(row),))
        return self._numbers[row]

    def counts(self, archs: Sequence[Arch]) -> np.ndarray:
        """How often each arch has each row. Shape: (archs, rows)"""
        counts = np.zeros((len(archs), len(self.rows)))
        for line, arch in zip(counts, archs, strict=True):
            for call in calls_of(arch):
                for inner in (call.ops or (call,)) if self.level == "op" else (call,):
                    line[self.number(inner.row)] += 1
        return counts

    def single(self, entries: Sequence[Entry]) -> np.ndarray:
        """Counts of rows by themselves. Shape: (entries, rows)"""
        return np.eye(len(self.rows))[[self.number(entry.row) for entry in entries]]

    def parts(self, counts: np.ndarray, us: np.ndarray) -> np.ndarray:
        """What each column adds to a row, for the non-negative weights that fit best in relative error.

        Shape: (n, rows), (n,) -> (rows, columns)
        """
        from scipy.optimize import nnls

        columns = self.columns / self.columns.mean(0)
        weights, _ = nnls(counts @ columns / us[:, None], np.ones(len(us)))
        parts: np.ndarray = columns * weights
        return parts

    def features(self, parts: np.ndarray) -> np.ndarray:
        """What rows share that may be wrong: weights of columns, and factors of kinds. Shape: (rows, features)"""
        total = parts.sum(1, keepdims=True)
        shares = np.divide(parts, total, out=np.zeros_like(parts), where=total > 0)
        return np.hstack([shares, self.kinds])

    def held_out_errors(self, counts: np.ndarray, us: np.ndarray) -> np.ndarray:
        """For each ridge, the mean relative error on each measurement of a fit on the others. Shape: (ridges,)"""
        errors = np.zeros(len(RIDGES))
        for i, rest in enumerate(~np.eye(len(us), dtype=bool)):
            parts = self.parts(counts[rest], us[rest])
            guesses = [counts[i] @ self.fit(counts[rest], us[rest], ridge, parts).us for ridge in RIDGES]
            errors += np.abs(np.array(guesses) / us[i] - 1)
        return errors / len(us)

    def fit(self, counts: np.ndarray, us: np.ndarray, ridge: float, parts: np.ndarray | None = None) -> _Fit:
        """Fit rows to sums of them.

        Args:
            counts: (n, rows) how often each sum has each row.
            us: (n,) the measured sums.
            ridge: variance of a measurement in units of that of kinds.
            parts: of the same measurements, where they are known.
        """
        parts = self.parts(counts, us) if parts is None else parts
        base, features = parts.sum(1), self.features(parts)
        # A Gaussian prior on the logarithm of each row's error keeps rows positive and makes errors relative. The
        # logarithm of a sum of rows is not linear in those, so each step takes its slope where the last one ended
        # (Gauss-Newton; the slopes are the rows' shares of the sum) and solves that linear problem exactly.
        change = np.zeros(len(base))  # of the logarithm of each row
        for _ in range(STEPS):
            terms = counts * (base * np.exp(change))
            sums = terms.sum(1)
            shares = terms / sums[:, None]
            # rows vary with their features and each by itself: the covariance features @ features.T + ROW_VARIANCE,
            # never built whole; it says how far a row that no sum holds follows those that some do
            gain = features @ (shares @ features).T + ROW_VARIANCE * shares.T  # (rows, n)
            noisy = shares @ gain + ridge * np.eye(len(us))
            left = np.log(us / sums) + shares @ change  # from the prior's mean, not from the last step
            change = gain @ np.linalg.solve(noisy, left)
        # the scale of the variances is estimated from what the fit leaves, with some networks' worth of belief, so
        # that a few measurements that happen to agree do not claim rows to be known
        free = max(len(us) - int(parts.any(0).sum()), 1)  # the weights of columns took the others
        variance = (left @ np.linalg.solve(noisy, left) + BELIEF * KIND_VARIANCE) / (free + BELIEF)  # of kinds
        prior = (features**2).sum(1) + ROW_VARIANCE
        posterior = prior - (gain * np.linalg.solve(noisy, gain.T).T).sum(1)
        return _Fit(base * np.exp(change), np.sqrt(variance * np.maximum(posterior, 0.0)))


def _costs(row: Row) -> tuple[float, ...]:
    """What a row costs on any device: ops, multiply-adds, weights, and values read and written."""
    call = calls_of_unit(row)
    ops = call.ops or (call,)
    values = sum(math.prod(shape) for op in ops for shape in (*op.row.inputs, *op.outputs))
    return len(ops), macs_of_unit(row), params_of_unit(row), values
