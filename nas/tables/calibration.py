"""From a sum of rows to a latency: a calibration fitted on whole measured networks, and how far off it is.

The form is the one of the lowest held-out error, each network predicted by a fit on the others. The held-out ratios of
measured to predicted give intervals and one-sided bounds by split conformal prediction (arXiv:2107.07511, sec. 1): a
new network of the same kind exceeds the k-th smallest of n ratios with probability (n + 1 - k) / (n + 1).

Networks of one family may be far off where all together are not. So intervals and bounds of a family are those of its
own ratios as well (group-balanced conformal prediction, sec. 4.1 there), and where it has too few for a rank, those of
a normal error of its own size, by Student's t. Never below those of all networks: a machine drifts by some percent
between calibration and use, which ratios of one hour do not hold. A family without networks has the widest of all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from nas.core.errors import BudgetError
from nas.core.ops import Row

MIN_NETWORKS = 5  # fewer give no calibration that could be checked
INTERVAL_NETWORKS = 40  # fewer give no interval
INTERVAL = 0.90
GAIN = 0.8  # a second parameter must lower the held-out error to this share: it can mislead far from the networks
KINDS_GAIN = 0.9  # the same for factors of kinds, which are shrunk towards one
KINDS_NETWORKS = 24
MOST_POWER = 1.5
RIDGES = (0.03, 0.1, 0.3, 1.0)  # squared ratio of the noise of a network to the spread of kinds
T = TypeVar("T", float, np.ndarray)


@dataclass(frozen=True)
class Calibration:
    """From a sum of rows to a latency: `scale * sum(factor * row) ** power + offset_us`, which grows with every row.

    A power above one says that large networks take longer than their rows: small ones stay in a cache that large ones
    overflow, above all where the cache is about as large as a network's weights. A factor of a kind of block says that
    it takes that much more in networks than alone.

    Attributes:
        scale: factor on every row.
        offset_us: time of a network outside its blocks, in microseconds; 0 where another form predicts better.
        networks: how many measured networks it was fitted on.
        mape_percent: mean absolute error on each network of a fit on the others.
        ratios: measured over predicted of each network, by a fit on the others; sorted.
        by_family: the same ratios for each family of networks (`nas.tables.kinds.line_of`).
        power: exponent of the sum; 1 where another form predicts better.
        factors: of kinds of rows (`row_kind`); empty where another form predicts better.
    """

    scale: float
    offset_us: float
    networks: int
    mape_percent: float
    ratios: tuple[float, ...] = field(repr=False)
    power: float = 1.0
    factors: tuple[tuple[str, float], ...] = ()
    by_family: tuple[tuple[str, tuple[float, ...]], ...] = field(default=(), repr=False)

    def us(self, total: T) -> T:
        """The latency for a sum of rows with their factors, both in microseconds; numbers or arrays."""
        latency: T = self.scale * total**self.power + self.offset_us
        return latency

    def weights(self) -> Callable[[Row], float]:
        """The factor of a row."""
        factors = dict(self.factors)
        return lambda row: factors.get(row_kind(row), 1.0)

    @functools.cached_property
    def interval(self) -> float | None:
        """A prediction is off by at most this share of it with 90 % confidence; None with fewer than 40 networks."""
        if self.networks < INTERVAL_NETWORKS:
            return None
        off = sorted(abs(ratio - 1) for ratio in self.ratios)
        return off[_rank(INTERVAL, len(off)) - 1]

    def interval_of(self, family: str | None) -> float | None:
        """The same for networks of a family; None for all together."""
        if family is None or self.interval is None:
            return self.interval
        return self.intervals[family] if family in self.intervals else max([self.interval, *self.intervals.values()])

    @functools.cached_property
    def intervals(self) -> dict[str, float]:
        """By family; empty with fewer than 40 networks."""
        if self.interval is None:
            return {}
        offs = {family: sorted(abs(ratio - 1) for ratio in ratios) for family, ratios in self.by_family}
        return {family: max(self.interval, _upper(off, INTERVAL, (1 + INTERVAL) / 2)) for family, off in offs.items()}

    def bound(self, confidence: float, family: str | None = None) -> float:
        """Measured over predicted of networks of a family, or of all, stays below this with this confidence, in 0..1.

        No family's is below that of all.

        Raises:
            BudgetError: where there are too few networks for it.
        """
        if self.networks < (needed := networks_for(confidence)):
            raise BudgetError(
                f"a confidence of {confidence:g} needs {needed} calibration networks, got {self.networks}"
            )
        least = self.ratios[_rank(confidence, self.networks) - 1]
        if family is None:
            return least
        known = dict(self.by_family)
        likely = [known[family]] if family in known else known.values()
        return max([least, *(1 + _upper([ratio - 1 for ratio in ratios], confidence, confidence) for ratios in likely)])

    def __str__(self) -> str:
        power = f" ^ {self.power:.4f}" if self.power != 1 else ""
        offset = f" + {self.offset_us:.1f} us" if self.offset_us else ""
        kinds = "".join(f" {kind} x{factor:.3f}" for kind, factor in self.factors)
        line = f"{self.scale:.4f} x sum{power}{offset}{f' with{kinds}' if kinds else ''}"
        return f"{line}, held-out error {self.mape_percent:.1f} % on {self.networks} networks"


def networks_for(confidence: float) -> int:
    """How many networks a bound of this confidence needs: at their largest ratio, n exceed it with n / (n + 1)."""
    return max(INTERVAL_NETWORKS, math.ceil(confidence / (1 - confidence) - 1e-9))


def row_kind(row: Row) -> str:
    """What calibrates alike: rows of one class, grouped convolutions apart from others."""
    name = type(row.unit).__name__
    return f"{name}-grouped" if getattr(row.unit, "groups", 1) != 1 and name == "Conv" else name


def _upper(off: Sequence[float], confidence: float, normal: float) -> float:
    """What a further error stays below with this confidence.

    Args:
        off: errors, sorted.
        confidence: of the rank among them, where they are enough for one.
        normal: of a normal error of their size around zero, where they are too few.
    """
    if (len(off) + 1) * confidence <= len(off) + 1e-9:
        return off[_rank(confidence, len(off)) - 1]
    from scipy.special import stdtrit  # Student's t; takes a while to import

    return float(stdtrit(len(off), normal)) * math.sqrt(sum(error**2 for error in off) / len(off))


def _rank(confidence: float, count: int) -> int:
    return min(math.ceil(confidence * (count + 1) - 1e-9), count)


def calibrate(kinds: Sequence[Mapping[str, float]], measured: np.ndarray, families: Sequence[str] = ()) -> Calibration:
    """Fit measured latencies by sums of rows, in relative error, in the form of the lowest held-out error.

    The forms: a scale; a scale and an offset; a scale and a power; a scale and a factor for each kind of row, shrunk
    towards one. What has more parameters than a scale has to be clearly better.

    Args:
        kinds: for each network the sum of its rows by kind, in microseconds.
        measured: (networks,) truths, in microseconds.
        families: of each network its family.
    """
    names = sorted({name for sums in kinds for name in sums})
    parts = np.array([[sums.get(name, 0.0) for name in names] for sums in kinds])
    forms: list[tuple[float, _Fit]] = [(GAIN, _affine), (GAIN, _power)]
    if len(names) > 1 and len(measured) >= KINDS_NETWORKS:
        forms += [(KINDS_GAIN, functools.partial(_kinds, ridge=ridge)) for ridge in RIDGES]
    best: _Fit = _scale
    predicted = _held_out(_scale, parts, measured)
    plain = least = _mape(predicted, measured)
    for gain, fit in forms:
        guess = _held_out(fit, parts, measured)
        if (error := _mape(guess, measured)) < min(gain * plain, least):
            best, predicted, least = fit, guess, error
    line = best(parts, measured)
    ratios = [float(ratio) for ratio in measured / predicted]
    by_family: dict[str, list[float]] = {}
    for ratio, family in sorted(zip(ratios, families, strict=False)):
        by_family.setdefault(family, []).append(ratio)
    return Calibration(
        scale=line.scale,
        offset_us=line.offset,
        networks=len(measured),
        mape_percent=100 * least,
        ratios=tuple(sorted(ratios)),
        power=line.power,
        factors=() if line.factors is None else tuple(zip(names, map(float, line.factors), strict=True)),
        by_family=tuple((family, tuple(found)) for family, found in sorted(by_family.items())),
    )


@dataclass(frozen=True)
class _Line:
    scale: float
    offset: float = 0.0
    power: float = 1.0
    factors: np.ndarray | None = None

    def us(self, parts: np.ndarray) -> np.ndarray:
        sums = parts.sum(-1) if self.factors is None else parts @ self.factors
        latencies: np.ndarray = self.scale * sums**self.power + self.offset
        return latencies


_Fit = Callable[[np.ndarray, np.ndarray], _Line]


def _held_out(fit: _Fit, parts: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Each network, predicted by a fit on the others."""
    others = ~np.eye(len(measured), dtype=bool)
    return np.array([float(fit(parts[rest], measured[rest]).us(parts[i])) for i, rest in enumerate(others)])


def _mape(predicted: np.ndarray, measured: np.ndarray) -> float:
    return float(np.abs(predicted / measured - 1).mean())


def _scale(parts: np.ndarray, measured: np.ndarray) -> _Line:
    relative = parts.sum(1) / measured
    return _Line(float(relative.sum() / (relative @ relative)))


def _affine(parts: np.ndarray, measured: np.ndarray) -> _Line:
    columns = np.stack([parts.sum(1) / measured, 1 / measured], 1)
    scale, offset = np.linalg.lstsq(columns, np.ones(len(measured)), rcond=None)[0]
    if scale <= 0 or offset < 0:  # a network cannot take less than its blocks allow
        return _scale(parts, measured)
    return _Line(float(scale), float(offset))


def _power(parts: np.ndarray, measured: np.ndarray) -> _Line:
    sums = parts.sum(1)
    if np.ptp(sums) == 0 or (sums <= 0).any():
        return _scale(parts, measured)
    power, logarithm = np.polyfit(np.log(sums), np.log(measured), 1)
    if not 1.0 <= power <= MOST_POWER:
        return _scale(parts, measured)
    return _Line(float(np.exp(logarithm)), power=float(power))


def _kinds(parts: np.ndarray, measured: np.ndarray, ridge: float) -> _Line:
    scale = _scale(parts, measured).scale
    shares = scale * parts / measured[:, None]  # of each kind in the network's time
    left = 1.0 - shares.sum(1)
    count = parts.shape[1]
    changes = np.linalg.solve(shares.T @ shares + ridge * np.eye(count), shares.T @ left)
    return _Line(scale, factors=np.maximum(1.0 + changes, 0.5))
