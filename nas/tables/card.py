"""How far predictions are off: errors, ranks and coverage on networks that a table has not seen."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.core.units import to_ms
from nas.tables.calibration import INTERVAL

DRAWS = 1000
ROUNDING = 1e-9
CHANCE = 0.025  # of a right interval to fall below the band of its coverage, and to lie above it


@dataclass(frozen=True)
class Checked:
    """One network, predicted and measured; times in microseconds.

    Attributes:
        arch: its architecture.
        family: `nas.tables.kinds.family_of` it.
        predicted_us: by the table.
        low_us, high_us: ends of the 90 % interval; None where the table gives none.
        measured_us: on the device.
        spread_us: how far fresh processes lie apart.
    """

    arch: Arch
    family: str
    predicted_us: float
    low_us: float | None
    high_us: float | None
    measured_us: float
    spread_us: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_us / self.measured_us - 1


@dataclass(frozen=True)
class Errors:
    """How predictions compare with measurements of the same networks; errors are relative to the measurement.

    Attributes:
        mape_percent: mean absolute error.
        bias_percent: mean error; negative where predictions are too low.
        within_5_percent: percentage of networks off by at most 5 %.
        within_10_percent: by at most 10 %.
        worst_percent: the error furthest from zero.
        spearman: rank correlation.
        kendall: rank correlation by pairs (tau b).
        reference_kendall: the tau that random errors of the same mean absolute size would leave on these networks.
    """

    mape_percent: float
    bias_percent: float
    within_5_percent: float
    within_10_percent: float
    worst_percent: float
    spearman: float
    kendall: float
    reference_kendall: float

    @classmethod
    def of(cls, predicted: Sequence[float], measured: Sequence[float], seed: int = 0) -> Errors:
        """Compare two lists of latencies, of the same unit.

        Raises:
            InputError: for fewer than two networks, which have no order.
        """
        from scipy.stats import kendalltau, spearmanr

        guess, truth = np.asarray(predicted, float), np.asarray(measured, float)
        if len(truth) < 2:
            raise InputError(f"errors need at least two networks, got {len(truth)}")
        error = guess / truth - 1
        mape = float(np.abs(error).mean())
        return cls(
            mape_percent=100 * mape,
            bias_percent=100 * float(error.mean()),
            within_5_percent=100 * float((np.abs(error) <= 0.05 + ROUNDING).mean()),
            within_10_percent=100 * float((np.abs(error) <= 0.10 + ROUNDING).mean()),
            worst_percent=100 * float(error[np.abs(error).argmax()]),
            spearman=float(spearmanr(guess, truth)[0]),
            kendall=float(kendalltau(guess, truth)[0]),
            reference_kendall=reference_kendall(truth, mape, seed),
        )


def reference_kendall(truth: np.ndarray, mape: float, seed: int = 0) -> float:
    """Kendall's tau that a predictor with independent normal relative errors would reach, the mean of many draws.

    Args:
        truth: (n,) measured latencies.
        mape: mean absolute relative error of the predictor, as a fraction.
        seed: of the draws.
    """
    from scipy.stats import kendalltau

    errors = np.random.default_rng(seed).normal(0.0, mape * np.sqrt(np.pi / 2), (DRAWS, len(truth)))
    return float(np.mean([kendalltau(truth * (1 + error), truth)[0] for error in errors]))


def coverage_band(calibration: int, test: int) -> tuple[float, float]:
    """The percentages of test networks inside a right 90 % interval that chance allows, at 2.5 % on either side.

    The coverage of a conformal interval is beta distributed over draws of the calibration networks
    (arXiv:2107.07511, sec. 3.2), so the count inside is beta-binomial.

    Args:
        calibration: networks that the interval was fitted on.
        test: networks it is tried on.
    """
    from scipy.stats import betabinom

    rank = math.ceil(INTERVAL * (calibration + 1) - 1e-9)
    count = betabinom(test, rank, calibration + 1 - rank)
    return 100 * float(count.ppf(CHANCE)) / test, 100 * float(count.ppf(1 - CHANCE)) / test


@dataclass(frozen=True)
class Card:
    """What networks that a table was not fitted on say of it.

    Attributes:
        networks: by measured latency.
        errors: over all of them.
        families: name, number of its networks, their MAPE and bias in percent.
        coverage_percent: of the networks inside their 90 % intervals; None where the table gives none.
        coverage_band: what chance allows of it, in percent.
        repeatability_percent: 95th percentile over rows of 0.1 ms and more of how far two fresh processes lie apart;
            None where there is no such row.
        repeatability_large_percent: the same for rows of 0.5 ms and more.
        memory_mape_percent: error of predicted peak memory on these networks; None where it was not measured, or the
            table does not predict it.
    """

    networks: tuple[Checked, ...]
    errors: Errors
    families: tuple[tuple[str, int, float, float], ...]
    coverage_percent: float | None
    coverage_band: tuple[float, float] | None
    repeatability_percent: float | None
    repeatability_large_percent: float | None
    memory_mape_percent: float | None = None

    @property
    def ratio(self) -> float:
        """The slowest network over the fastest."""
        return self.networks[-1].measured_us / self.networks[0].measured_us

    @property
    def worst(self) -> Checked:
        """The network whose prediction is off the most."""
        return max(self.networks, key=lambda network: abs(network.error))

    @property
    def repeatability_networks_percent(self) -> float:
        """95th percentile over these networks of how far fresh processes lie apart."""
        return float(np.percentile([100 * network.spread_us / network.measured_us for network in self.networks], 95))

    @property
    def family_bias_percent(self) -> float:
        """How far the biases of families lie apart, in points; 0 with one family."""
        biases = [bias for _, _, _, bias in self.families]
        return max(biases) - min(biases)

    def covered(self, family: str) -> int | None:
        """How many networks of a family lie in their 90 % intervals; None where the table gives none."""
        ends = [
            item.low_us <= item.measured_us <= item.high_us
            for item in self.networks
            if item.family == family and item.low_us is not None and item.high_us is not None
        ]
        return sum(ends) if ends else None

    def inside(self, family: str) -> str:
        """`90 % interval covers 2 of `, to stand before the number of its networks; "" without intervals."""
        covered = self.covered(family)
        return "" if covered is None else f"90 % interval covers {covered} of "

    def facts(self) -> dict[str, Any]:
        """Plain data; latencies in milliseconds."""
        band = self.coverage_band
        return {
            **dataclasses.asdict(self.errors),
            "coverage_percent": self.coverage_percent,
            "coverage_band_percent": None if band is None else list(band),
            "max_min_ratio": self.ratio,
            "worst": _facts(self.worst),
            "family_bias_percent": self.family_bias_percent,
            "families": [
                {
                    "family": name,
                    "networks": count,
                    "mape_percent": mape,
                    "bias_percent": bias,
                    "covered": self.covered(name),
                }
                for name, count, mape, bias in self.families
            ],
            "memory_mape_percent": self.memory_mape_percent,
            "repeatability": {
                "rows_from_0.1_ms_p95_percent": self.repeatability_percent,
                "rows_from_0.5_ms_p95_percent": self.repeatability_large_percent,
                "networks_p95_percent": self.repeatability_networks_percent,
            },
            "networks": [_facts(network) for network in self.networks],
        }

    def __str__(self) -> str:
        """One line."""
        errors, band = self.errors, self.coverage_band
        covered = (
            "no interval"
            if band is None
            else f"90 % interval covers {self.coverage_percent:.0f} % (chance allows {band[0]:.0f} to {band[1]:.0f})"
        )
        return (
            f"MAPE {errors.mape_percent:.1f} %, bias {errors.bias_percent:+.1f} %, within 5 %: "
            f"{errors.within_5_percent:.0f} %, within 10 %: {errors.within_10_percent:.0f} %, Spearman "
            f"{errors.spearman:.3f}, Kendall {errors.kendall:.3f} (random errors of this MAPE: "
            f"{errors.reference_kendall:.3f}), slowest {self.ratio:.1f} x fastest, worst {errors.worst_percent:+.1f} % "
            f"({self.worst.arch.id}), {covered}, {len(self.networks)} networks"
        )


def _facts(network: Checked) -> dict[str, Any]:
    return {
        "arch": network.arch.id,
        "family": network.family,
        "predicted_ms": to_ms(network.predicted_us),
        "low_ms": None if network.low_us is None else to_ms(network.low_us),
        "high_ms": None if network.high_us is None else to_ms(network.high_us),
        "measured_ms": to_ms(network.measured_us),
        "measured_spread_ms": to_ms(network.spread_us),
        "error_percent": 100 * network.error,
        "architecture": json.loads(network.arch.to_json()),
    }


def card_of(
    networks: Sequence[Checked],
    calibration_networks: int,
    repeatability: tuple[float | None, float | None],
    memory_mape_percent: float | None = None,
) -> Card:
    """The card of networks that were predicted and measured.

    Args:
        networks: at least two.
        calibration_networks: behind the intervals.
        repeatability, memory_mape_percent: see `Card`.
    """
    ordered = sorted(networks, key=lambda network: network.measured_us)
    names = sorted({network.family for network in ordered})
    families = []
    for name in names:
        errors = [network.error for network in ordered if network.family == name]
        families.append((name, len(errors), 100 * float(np.abs(errors).mean()), 100 * float(np.mean(errors))))
    inside = [
        network.low_us <= network.measured_us <= network.high_us
        for network in ordered
        if network.low_us is not None and network.high_us is not None
    ]
    return Card(
        networks=tuple(ordered),
        errors=Errors.of([network.predicted_us for network in ordered], [network.measured_us for network in ordered]),
        families=tuple(families),
        coverage_percent=100 * float(np.mean(inside)) if inside else None,
        coverage_band=coverage_band(calibration_networks, len(inside)) if inside else None,
        repeatability_percent=repeatability[0],
        repeatability_large_percent=repeatability[1],
        memory_mape_percent=memory_mape_percent,
    )
