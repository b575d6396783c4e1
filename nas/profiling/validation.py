"""How far a table's predictions are off: unseen networks of its space, predicted and then measured on this machine."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import search_spaces
from nas.arch import Arch, calls_of
from nas.errors import InputError
from nas.latency import Table
from nas.profiling.bench import Progress, silent
from nas.profiling.device import this_machine
from nas.profiling.job import variant_of
from nas.profiling.probes import Probe
from nas.profiling.process import Engine
from nas.profiling.profiler import MEASURE, time_networks
from nas.profiling.protocol import Settings
from nas.profiling.selection import spread
from nas.units import show_us

LEAST = 12  # networks; fewer say little about ranks
REFIT = 5  # other networks, for a scale where the machine is another one or in another state
DRIFT = 0.02  # of the sentinel, above which the machine is in another state than when the table was made
DRAWS = 1000


@dataclass(frozen=True)
class Errors:
    """How predictions compare with measurements of the same networks; errors are relative to the measurement.

    Attributes:
        mape_percent: mean absolute error.
        bias_percent: mean error; negative where predictions are too low.
        within_5: share of networks off by at most 5 %.
        within_10: by at most 10 %.
        worst_percent: the error furthest from zero.
        spearman: rank correlation.
        kendall: rank correlation by pairs (tau b).
        reference_kendall: the tau that random errors of the same mean absolute size would leave on these networks.
    """

    mape_percent: float
    bias_percent: float
    within_5: float
    within_10: float
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
            within_5=float((np.abs(error) <= 0.05).mean()),
            within_10=float((np.abs(error) <= 0.10).mean()),
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


@dataclass(frozen=True)
class Checked:
    """One network, predicted and measured."""

    arch: Arch
    predicted_us: float
    measured_us: float
    spread_us: float

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted_us / self.measured_us - 1


@dataclass(frozen=True)
class Validation:
    """What came out.

    Attributes:
        table: where the table is.
        calibrated: whether its predictions are.
        here: whether it was measured on a machine like this one.
        device: this machine.
        networks: those measured, by measured latency.
        errors: of the table's predictions.
        sentinel_drift: of the reference block, now against then, as a fraction.
        scale: factor on predictions, fitted on other networks; where the machine or its state is another.
        scaled: the errors after it.
    """

    table: str
    calibrated: bool
    here: bool
    device: str
    networks: tuple[Checked, ...]
    errors: Errors
    sentinel_drift: float
    scale: float | None = None
    scaled: Errors | None = None

    @property
    def ratio(self) -> float:
        """The slowest network over the fastest."""
        return self.networks[-1].measured_us / self.networks[0].measured_us

    def facts(self) -> dict[str, Any]:
        """Plain data, latencies in milliseconds."""
        networks = [
            {
                "arch": item.arch.id,
                "predicted_ms": item.predicted_us / 1e3,
                "measured_ms": item.measured_us / 1e3,
                "measured_spread_ms": item.spread_us / 1e3,
                "error_percent": 100 * item.error,
            }
            for item in self.networks
        ]
        return {
            "table": self.table,
            "calibrated": self.calibrated,
            "this_machine": self.here,
            "device": self.device,
            **dataclasses.asdict(self.errors),
            "max_min_ratio": self.ratio,
            "sentinel_drift_percent": 100 * self.sentinel_drift,
            "scale": self.scale,
            "scaled": None if self.scaled is None else dataclasses.asdict(self.scaled),
            "networks": networks,
        }

    def text(self) -> str:
        """A few lines for a person."""
        lines = [f"{'arch':14}{'predicted':>12}{'measured':>12}{'error':>9}"]
        for item in self.networks:
            times = f"{show_us(item.predicted_us):>12}{show_us(item.measured_us):>12}"
            lines.append(f"{item.arch.id:14}{times}{item.error:>+9.1%}")
        count = len(self.networks)
        lines.append(f"{count} unseen networks, the slowest {self.ratio:.1f} times the fastest, on {self.device}")
        if not self.here:
            lines.append(f"NOT THIS MACHINE: {self.table} was measured on another one")
        if abs(self.sentinel_drift) > DRIFT:
            lines.append(f"the reference block takes {self.sentinel_drift:+.1%} of what it took for the table")
        lines += _describe(self.errors, "as predicted" if self.calibrated else "as predicted, uncalibrated")
        if self.scaled is not None:
            lines += _describe(self.scaled, f"after one scale ({self.scale:.3f}) fitted on {REFIT} other networks")
        return "\n".join(lines)


def _describe(errors: Errors, title: str) -> list[str]:
    return [
        f"{title}:",
        f"  MAPE {errors.mape_percent:.1f} %, bias {errors.bias_percent:+.1f} %, worst {errors.worst_percent:+.1f} %; "
        f"within 5 %: {errors.within_5:.0%}, within 10 %: {errors.within_10:.0%}",
        f"  Spearman {errors.spearman:.3f}, Kendall {errors.kendall:.3f} "
        f"(random errors of this MAPE would leave {errors.reference_kendall:.3f})",
    ]


def validate(
    table: Table,
    *,
    archs: int = LEAST,
    seed: int = 1,
    settings: Settings = MEASURE,
    progress: Progress = silent,
) -> Validation:
    """Predict and measure networks that the table has not seen, evenly spread in log latency over its space.

    On another machine, or where the sentinel says that this one is in another state, the errors are also given after
    one scale, fitted on five further networks that are measured in the same rounds.

    Raises:
        InputError: for fewer than 12 networks, or a space that has no more.
        MissingLatency: where the table lacks rows of its space.
        MeasureError: where a network cannot be run.
    """
    if archs < LEAST:
        raise InputError(f"archs: expected at least {LEAST}, got {archs}")
    header = table.header
    space = dataclasses.replace(
        search_spaces.load(header.space), input_shape=header.input_shape, classes=header.classes
    )
    table.require(space)
    rng = random.Random(seed)
    seen = {network.arch for network in table.networks}
    unseen = spread(space, archs, rng, table.row_us, seen)
    if len(unseen) < archs:
        raise InputError(f"space {space.name} has {len(unseen)} networks that {table.where} has not seen, not {archs}")
    engine = Engine(header.runtime, header.threads, header.precision, variant_of(header))
    others = spread(space, REFIT, rng, table.row_us, seen.union(unseen))
    times = time_networks((*unseen, *others), engine, settings, seed, progress)
    here, drift = this_machine().measured(header), times.reference_us / header.sentinel_us - 1
    scale = None
    if others and (not here or abs(drift) > DRIFT):
        pairs = [(times.us(Probe(arch=arch).key), _predict(table, arch)) for arch in others]
        scale = float(np.median([measured / predicted for measured, predicted in pairs]))
    checked = []
    for arch in unseen:
        timing = times.timing(Probe(arch=arch).key)
        checked.append(Checked(arch, _predict(table, arch), timing.us, timing.spread_us))
    checked.sort(key=lambda item: item.measured_us)
    predicted, measured = [item.predicted_us for item in checked], [item.measured_us for item in checked]
    return Validation(
        table=table.where,
        calibrated=table.calibration is not None,
        here=here,
        device=this_machine().slug,
        networks=tuple(checked),
        errors=Errors.of(predicted, measured),
        sentinel_drift=drift,
        scale=scale,
        scaled=None if scale is None else Errors.of([scale * us for us in predicted], measured),
    )


def _predict(table: Table, arch: Arch) -> float:
    return table.price(calls_of(arch)).total_us
