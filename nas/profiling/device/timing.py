"""From raw samples to numbers: which samples count, what a probe took, and what follows for rows and networks.

A machine has slow spells (neighbours, clock steps) that also slow a fixed reference block, the sentinel, which is timed
beside every sample. Samples of spells are left out; where too few others exist, the least slow are scaled back by their
sentinel. Of a probe's samples a low quantile counts, since disturbance only ever adds time; of several fresh processes
the median, since memory layout makes processes differ both ways: of two, it repeats better than the lower one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nas.profiling.device.journal import Sample, Samples

GATE = 1.10  # a sentinel above this times the reference marks a slow spell; these take 1.3 times as long and more
REFERENCE = 10.0  # percentile of all sentinels that is the reference
QUANTILE = 25.0  # percentile of a probe's samples, and of the calls in a sample
MOST_NOISE = 0.50  # share of samples in slow spells above which they are not believed; shared machines had 0.02 to 0.26
MOST_DRIFT = (
    0.30  # of the reference between a table and new rows for it; beyond, one factor does not bring them together
)
TOLERANCE = 0.02  # standard error of a row in one process, as far as its samples tell, that needs no more rounds
MACS_PER_US = 3e4  # for estimates before anything is measured
SENTINEL_US = 4000.0  # all its calls beside a sample
PATIENCE = 1000.0  # times the estimate of a sample that one may take
WARM_UP = 1 / 2  # share of a sample's calls that only warm the caches: many small kernels need two or three calls


class Graph(Protocol):
    """What is timed.

    Attributes:
        key: names it in files of samples.
        whole: whether it is a whole network.
        macs: its multiply-adds.
        weight_bytes: bytes of its parameters, fp32.
    """

    @property
    def key(self) -> str: ...

    @property
    def whole(self) -> bool: ...

    @property
    def macs(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...


class WeightedSum(Protocol):
    """The time of a row as a sum of times of graphs."""

    @property
    def probes(self) -> Sequence[Graph]: ...

    def value(self, times: Mapping[str, float]) -> float: ...


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        rounds: samples of every probe in every pass; rows that are small differences of large times get more.
        passes: fresh processes.
        networks: whole networks measured with the rows.
        sample_us: calls of a sample go on for about this long, in microseconds, between `least` and `most` calls.
        least_network: as `least`, of whole networks: those of many small kernels settle at their third call.
        batch_rows: rows whose probes are loaded together.
        batch_bytes: limit on their weights.
        patience_seconds: how long one graph may take to be converted, to be loaded, or to give a sample, beside a
            thousand times as long as a sample is expected to take; a runtime that takes longer hangs, and is ended.
    """

    rounds: int = 6
    passes: int = 2
    networks: int = 40
    sample_us: float = 10_000.0
    least: int = 3
    least_network: int = 4
    most: int = 24
    batch_rows: int = 128
    batch_bytes: int = 2**30
    patience_seconds: float = 300.0

    @property
    def enough(self) -> int:
        """Samples outside slow spells that suffice for a probe in one pass."""
        return math.ceil(self.rounds / 2)

    def least_of(self, probe: Graph) -> int:
        """The fewest calls in a sample of a probe."""
        return self.least_network if probe.whole else self.least

    def sample_seconds(self, probe: Graph) -> float:
        """About how long a sample of a probe takes, before anything is measured."""
        us = 10 + probe.macs / MACS_PER_US
        return (SENTINEL_US + min(max(self.sample_us / us, self.least_of(probe)), self.most) * us) / 1e6

    def patience_of(self, probe: Graph) -> float:
        """Seconds after which a probe that is neither loaded nor timed hangs."""
        return self.patience_seconds + PATIENCE * self.sample_seconds(probe)

    @property
    def limit(self) -> int:
        """Samples of a probe in one pass after which it is given no more rounds."""
        return 4 * self.rounds

    def __str__(self) -> str:
        return (
            f"{self.passes} processes x {self.rounds} to {self.limit} interleaved rounds, p{QUANTILE:.0f} of samples "
            f"within {GATE - 1:.0%} of the sentinel's p{REFERENCE:.0f}, chains and fixed partners"
        )


@dataclass(frozen=True)
class Timing:
    """A time with what stands behind it; all in microseconds.

    Attributes:
        us: the value.
        spread_us: how far fresh processes lie apart; with one process, the quartiles of its samples.
        count: samples that count.
    """

    us: float
    spread_us: float
    count: int


def reference_of(samples: Samples) -> float:
    """The sentinel's time outside slow spells, in microseconds, over all passes."""
    sentinels = _sentinels(samples)
    return float(np.percentile(sentinels, REFERENCE)) if sentinels else math.nan


def _sentinels(samples: Samples, keys: Collection[str] | None = None) -> list[float]:
    return [
        sample.sentinel_us
        for by_key in samples.values()
        for key, taken in by_key.items()
        if keys is None or key in keys
        for sample in taken
    ]


@dataclass(frozen=True)
class Noise:
    """How disturbed the machine was, by the sentinel.

    Attributes:
        slow: share of samples in slow spells.
        ratio: the sentinel's median over its quiet time.
    """

    slow: float
    ratio: float

    @property
    def is_too_much(self) -> bool:
        """Whether what was measured meanwhile should not be believed."""
        return self.slow > MOST_NOISE

    def __str__(self) -> str:
        return f"{self.slow:.0%} of samples in slow spells, reference block {self.ratio:.2f} times its quiet time"


QUIET = Noise(0.0, 1.0)


def noise_of(samples: Samples, keys: Collection[str] | None = None, quiet_us: float = math.inf) -> Noise:
    """How disturbed the machine was while samples were taken.

    Args:
        samples: by pass and key.
        keys: of the probes whose samples count; None for all.
        quiet_us: the sentinel's time when the machine was quiet, where an earlier measurement says so: a machine that
            is slow from the first to the last sample shows by nothing else.
    """
    sentinels = np.array(_sentinels(samples, keys))
    if not len(sentinels):
        return QUIET
    reference = min(reference_of(samples), quiet_us)
    return Noise(float((sentinels > GATE * reference).mean()), float(np.median(sentinels)) / reference)


def good(taken: Iterable[Sample], reference: float) -> int:
    """How many samples lie outside slow spells."""
    return sum(sample.sentinel_us <= GATE * reference for sample in taken)


@functools.lru_cache(maxsize=2**16)
def time_of(sample: Sample) -> float:
    """One sample's time of a call, in microseconds: low among the calls behind the warm-up."""
    warm = sample.calls_us[max(1, int(len(sample.calls_us) * WARM_UP)) :] or sample.calls_us
    return float(np.percentile(warm, QUANTILE))


def kept(taken: Sequence[Sample], reference: float) -> np.ndarray:
    """Times of the samples that count, in microseconds; a quarter at least, scaled back where in a slow spell."""
    ordered = sorted(taken, key=lambda sample: sample.sentinel_us)
    count = max(good(taken, reference), math.ceil(len(ordered) / 4))
    scales = (1.0 if s.sentinel_us <= GATE * reference else reference / s.sentinel_us for s in ordered[:count])
    return np.array([time_of(sample) * scale for sample, scale in zip(ordered, scales)])


def errors_of(terms: Iterable[tuple[Sequence[Sample], float]], reference: float) -> tuple[float, tuple[float, ...]]:
    """The relative standard error of a weighted sum of probes' times, and the share of each term in its square.

    That of a lower quartile of n samples is about their interquartile range over sqrt(n).
    """
    total, variances = 0.0, []
    for taken, weight in terms:
        times = kept(taken, reference)
        low, high = np.percentile(times, [25, 75])
        total += weight * float(low)
        variances.append((weight * float(high - low)) ** 2 / len(times))
    error = math.sqrt(sum(variances)) / total if total > 0 else math.inf
    return error, tuple(variance / (sum(variances) or 1.0) for variance in variances)


def over_processes(values: Sequence[float]) -> float:
    """The median of what fresh processes gave."""
    return float(np.median(values))


class Times:
    """The times of all probes of a journal.

    Args:
        samples: by pass and key.
    """

    def __init__(self, samples: Samples) -> None:
        self.reference_us = reference_of(samples)
        self.noise = noise_of(samples)
        self._kept: dict[str, dict[int, np.ndarray]] = {}
        for number, by_key in samples.items():
            for key, taken in by_key.items():
                if taken:
                    self._kept.setdefault(key, {})[number] = kept(taken, self.reference_us)

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def us(self, key: str) -> float:
        """A probe's time."""
        return over_processes(list(self._by_pass(key).values()))

    def timing(self, key: str) -> Timing:
        """A probe's time, spread and count."""
        by_pass = list(self._by_pass(key).values())
        values = np.concatenate(list(self._kept[key].values()))
        spread = np.ptp(by_pass) if len(by_pass) > 1 else np.subtract(*np.percentile(values, [75, 25]))
        return Timing(over_processes(by_pass), float(spread), len(values))

    def row(self, formula: WeightedSum) -> Timing:
        """A row's time, spread and count; never below zero."""
        keys = [probe.key for probe in formula.probes]
        us = formula.value({key: self.us(key) for key in keys})
        passes = set.intersection(*(set(self._kept[key]) for key in keys))
        single = [formula.value({key: self._by_pass(key)[number] for key in keys}) for number in sorted(passes)]
        spread = float(np.ptp(single)) if len(single) > 1 else sum(self.timing(key).spread_us for key in keys)
        return Timing(max(us, 0.0), spread, min(sum(map(len, self._kept[key].values())) for key in keys))

    def _by_pass(self, key: str) -> dict[int, float]:
        return {number: float(np.percentile(values, QUANTILE)) for number, values in self._kept[key].items()}
