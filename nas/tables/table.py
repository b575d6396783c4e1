"""Latency tables: what was measured on one device with one runtime, and what an arch is predicted to take from it.

From the whole networks in a table come its calibrations, one for each size of images, and from further networks, which
calibrations never see, its card. Both are computed when a table is read.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TypeVar

import numpy as np

import search_spaces
from nas.core.arch import Arch, calls_of
from nas.core.errors import BudgetError, InputError, MissingLatency, TableError
from nas.core.files import write_text
from nas.core.ops import Row
from nas.core.space import Space
from nas.core.tracing import Call, calls_of_unit
from nas.core.units import show_us
from nas.tables.calibration import (
    INTERVAL,
    INTERVAL_NETWORKS,
    MIN_NETWORKS,
    Calibration,
    calibrate,
    networks_for,
    row_kind,
)
from nas.tables.card import Card, Checked, card_of
from nas.tables.kinds import family_of, line_of
from nas.tables.memory import MIN_NETWORKS as MEMORY_NETWORKS
from nas.tables.memory import MemoryFit, fit_memory
from nas.tables.records import (
    LEVELS,
    METHODS,
    Content,
    Entry,
    Header,
    NetworkEntry,
    measured_text,
    read_text,
    scope_of,
    space_of,
    to_text,
)

__all__ = [
    "INTERVAL_NETWORKS",
    "LEVELS",
    "METHODS",
    "MIN_NETWORKS",
    "Calibration",
    "Entry",
    "Header",
    "Latency",
    "NetworkEntry",
    "Table",
    "scope_of",
    "space_of",
]

CHUNK = 2048  # archs priced at once, so that their costs stay in the cache
SMALL_US, LARGE_US = 100.0, 500.0  # rows from these on count in a table's repeatability
Size = tuple[int, int, int]
T = TypeVar("T", float, np.ndarray)


@dataclass(frozen=True)
class Latency:
    """A predicted latency of one inference at batch 1.

    Attributes:
        total_us: prediction in microseconds.
        low_us: lower end of the 90 % interval; None from a table with fewer than 40 calibration networks.
        high_us: upper end.
        offset_us: the part that belongs to no block.
        blocks: every call with its share in microseconds; with the offset they sum to the total.
        calibrated: whether the table's measured networks stand behind it.
        unmeasured_us: the part of the total that rests on rows which were predicted or imported, not measured.
        doubt_us: standard error of the total that comes from those rows.
    """

    total_us: float
    low_us: float | None
    high_us: float | None
    offset_us: float
    blocks: tuple[tuple[Call, float], ...]
    calibrated: bool
    unmeasured_us: float = 0.0
    doubt_us: float = 0.0

    def __str__(self) -> str:
        if not self.calibrated:
            return f"{show_us(self.total_us)} (uncalibrated)"
        if self.low_us is None or self.high_us is None:
            return show_us(self.total_us)
        return f"{show_us(self.total_us)} (90 %: {show_us(self.low_us)} to {show_us(self.high_us)})"


class Table:
    """A latency table.

    Args:
        header: what was measured on and how.
        entries: the rows; two of one key are an error.
        networks: whole networks measured with them, for the calibrations.
        path: where it was read from, for messages.
        checks: whole networks of the card.
    """

    def __init__(
        self,
        header: Header,
        entries: Iterable[Entry],
        networks: Iterable[NetworkEntry] = (),
        path: Path | None = None,
        checks: Iterable[NetworkEntry] = (),
    ) -> None:
        self.header = header
        self.entries = tuple(sorted(entries, key=lambda entry: str(entry.row)))
        self.networks = tuple(sorted(networks, key=lambda network: network.us))
        self.checks = tuple(sorted(checks, key=lambda network: network.us))
        self.path = path
        self._us = {entry.row: entry.us for entry in self.entries}
        self._unmeasured = {entry.row: entry.spread_us for entry in self.entries if entry.source != "measured"}
        if len(self._us) != len(self.entries):
            raise TableError(f"{self.where}: two rows have one key")
        both = {network.arch for network in self.networks} & {network.arch for network in self.checks}
        if both:
            shared = ", ".join(sorted(arch.id for arch in both))
            raise TableError(f"{self.where}: the calibration and the card share networks: {shared}")

    @property
    def where(self) -> str:
        """The path, or `table` before it has one."""
        return str(self.path) if self.path is not None else "table"

    @functools.cached_property
    def spaces(self) -> tuple[Space, ...]:
        """The spaces all of whose rows it holds."""
        return tuple(map(space_of, self.header.spaces))

    @functools.cached_property
    def calibrations(self) -> dict[Size, Calibration]:
        """By (C, H, W) of the images; each fitted on the measured networks of that size, if they are five at least."""
        groups: dict[Size, list[NetworkEntry]] = defaultdict(list)
        for network in self.networks:
            groups[network.arch.input_shape].append(network)
        return {
            size: calibrate(
                [self._by_kind(item.arch) for item in group],
                np.array([item.us for item in group]),
                [line_of(item.arch) for item in group],
            )
            for size, group in sorted(groups.items())
            if len(group) >= MIN_NETWORKS
        }

    @functools.cached_property
    def card(self) -> Card | None:
        """How far predictions of the networks of the card are off; None before a validation."""
        if len(self.checks) < 2:
            return None
        checked = []
        for item in self.checks:
            latency = self.price(calls_of(item.arch), line_of(item.arch))
            ends = (latency.low_us, latency.high_us)
            checked.append(Checked(item.arch, family_of(item.arch), latency.total_us, *ends, item.us, item.spread_us))
        behind = [fit.networks for fit in self.calibrations.values() if fit.interval is not None]
        repeatability = (self.repeatability(SMALL_US), self.repeatability(LARGE_US))
        return card_of(checked, min(behind, default=0), repeatability, self._memory_mape_percent())

    def _memory_mape_percent(self) -> float | None:
        known = [item for item in self.checks if item.peak_bytes]
        if not known or not self.knows_memory:
            return None
        return 100 * float(np.mean([abs(self.memory(item.arch) / (item.peak_bytes or 1) - 1) for item in known]))

    @property
    def mape_percent(self) -> float | None:
        """Error on networks that the predictions were not fitted on: the card's, else the calibrations' held-out
        one; None where uncalibrated.
        """
        if self.card is not None:
            return self.card.errors.mape_percent
        fits = self.calibrations.values()
        count = sum(fit.networks for fit in fits)
        return sum(fit.mape_percent * fit.networks for fit in fits) / count if count else None

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of what predictions rest on, in hex: names the table in every result."""
        return hashlib.sha256(measured_text(self._text()).encode()).hexdigest()

    def __contains__(self, row: object) -> bool:
        return row in self._us

    def missing(self, rows: Iterable[Row]) -> tuple[Row, ...]:
        """The rows that this table lacks, each once."""
        return tuple(dict.fromkeys(row for row in rows if row not in self._us))

    def raw_us(self, calls: Sequence[Call]) -> float:
        """The plain sum of rows, uncalibrated.

        Raises:
            MissingLatency: naming every row the table lacks.
        """
        rows = self.rows_of(calls)
        try:
            return sum([self._us[row] for row in rows])
        except KeyError:
            raise self._missing(rows) from None

    def price(self, calls: Sequence[Call], family: str | None = None) -> Latency:
        """Predict the latency of one inference at batch 1: the sum of its rows, calibrated.

        Args:
            calls: of the whole network, from `calls_of(arch)`.
            family: from `line_of(arch)`, for the interval; None for that of all networks together.

        Raises:
            MissingLatency: naming every row the table lacks, and the command that measures them.
        """
        size = _size_of(calls)
        fit, known = self.calibrations.get(size), self._weighted(size)
        try:
            if self.header.level == "block":
                blocks = [(call, known[call.row]) for call in calls]
            else:
                blocks = [(call, sum([known[op.row] for op in call.ops or (call,)])) for call in calls]
        except KeyError:
            raise self._missing(self.rows_of(calls)) from None
        raw = sum([us for _, us in blocks])
        if fit is None:
            return Latency(raw, None, None, 0.0, tuple(blocks), False, self._unmeasured_us(calls, known))
        total = fit.us(raw)
        share = (total - fit.offset_us) / raw if raw else 0.0
        shares = tuple([(call, share * us) for call, us in blocks])
        unmeasured = share * self._unmeasured_us(calls, known)
        doubt = self._doubt_us(calls, known, fit.power * share)
        interval = fit.interval_of(family)
        if interval is None:
            return Latency(total, None, None, fit.offset_us, shares, True, unmeasured, doubt)
        off = total * interval + _sigmas((1 + INTERVAL) / 2) * doubt
        return Latency(total, max(total - off, 0.0), total + off, fit.offset_us, shares, True, unmeasured, doubt)

    def _unmeasured_us(self, calls: Sequence[Call], known: dict[Row, float]) -> float:
        """The part of a sum of rows that was not measured."""
        return sum([known[row] for row in self.rows_of(calls) if row in self._unmeasured]) if self._unmeasured else 0.0

    def _doubt_us(self, calls: Sequence[Call], known: dict[Row, float], slope: float) -> float:
        """The standard error of a latency that comes from rows which were not measured.

        Args:
            slope: of the latency, by the sum of rows.
        """
        if not self._unmeasured:
            return 0.0
        errors: dict[Row, float] = defaultdict(float)
        for row in self.rows_of(calls):  # one row's uses in a network are off together
            if row in self._unmeasured:
                errors[row] += slope * self._unmeasured[row] * (known[row] / self._us[row] if self._us[row] else 1.0)
        return math.sqrt(sum(error**2 for error in errors.values()))

    def bound_us(self, calls: Sequence[Call], confidence: float, family: str | None = None) -> float:
        """What one inference of a network stays below with this confidence, in microseconds; see `price`.

        Raises:
            BudgetError: where too few networks were measured for it, or none.
            MissingLatency: as `price` does.
        """
        bound, latency = self.bound(_size_of(calls), confidence, family), self.price(calls)
        return bound * latency.total_us + max(_sigmas(confidence), 0.0) * latency.doubt_us

    def bound(self, size: Size, confidence: float, family: str | None = None) -> float:
        """Measured over predicted latency of images of a size stays below this with this confidence; without a family
        that of all networks, which no family's is below.

        Raises:
            BudgetError: where too few networks were measured for it, or none, naming the command that measures more.
        """
        fit = self.calibrations.get(size)
        count = sum(network.arch.input_shape == size for network in self.networks)
        needed = networks_for(confidence)
        if fit is None or count < needed:
            raise BudgetError(
                f"a confidence of {confidence:g} needs {needed} calibration networks for input {_shown(size)}, "
                f"{self.where} has {count}; measure more: nas profile SPACE --table {self.where} --networks {needed}"
            )
        return fit.bound(confidence, family)

    @property
    def knows_memory(self) -> bool:
        """Whether `memory` works."""
        return sum(bool(item.peak_bytes) for item in self.networks) >= MEMORY_NETWORKS

    @functools.cached_property
    def memory_fit(self) -> MemoryFit:
        """How peak memory follows from weights and activations.

        Raises:
            TableError: with fewer than five networks whose memory was measured.
        """
        known = [(item.arch, item.peak_bytes) for item in self.networks if item.peak_bytes]
        if not self.knows_memory:
            raise TableError(
                f"{self.where} has {len(known)} networks with measured memory, a prediction needs {MEMORY_NETWORKS}; "
                f"measure them, on the table's device, with: nas profile SPACE --table {self.where}"
            )
        return fit_memory([arch for arch, _ in known], [count for _, count in known])

    def memory(self, arch: Arch) -> float:
        """The most memory that loading and running a network is predicted to add to a process, in bytes.

        Raises:
            TableError: with fewer than five networks whose memory was measured.
        """
        return self.memory_fit.peak_bytes(arch)

    def cost_of_row(self, space: Space) -> Callable[[Row], float]:
        """What each block of a space's archs adds to the sum that `total_us` turns into a prediction.

        The function raises MissingLatency where the table lacks a row. A block without ops takes no time.
        """
        known = self._weighted(space.input_shape)

        def cost(row: Row) -> float:
            rows = (row,) if self.header.level == "block" else tuple(call.row for call in calls_of_unit(row).ops)
            try:
                return sum([known[item] for item in rows])
            except KeyError:
                if not calls_of_unit(row).ops:
                    return 0.0
                raise self._missing(rows) from None

        return cost

    def total_us(self, space: Space, total: T) -> T:
        """The prediction for a sum of `cost_of_row`, or for many; it grows with the sum, so extremes stay extremes."""
        fit = self.calibrations.get(space.input_shape)
        return total if fit is None else fit.us(total)

    def extremes(self, space: Space) -> tuple[tuple[float, Arch], tuple[float, Arch]]:
        """The smallest and the largest predicted latency of a space in microseconds, each with its arch; exact.

        Raises:
            MissingLatency: where the table lacks rows of the space.
        """
        self.require(space)
        cost = self.cost_of_row(space)
        (low, smallest), (high, largest) = space.extreme(cost), space.extreme(cost, largest=True)
        return (self.total_us(space, low), smallest), (self.total_us(space, high), largest)

    def require(self, space: Space) -> None:
        """Raise where this table lacks rows that an arch of the space can need.

        Raises:
            TableError: where the table was measured at other resolutions only.
            MissingLatency: naming the rows.
        """
        rows = space.rows() if self.header.level == "block" else space.op_rows()
        if not self.missing(rows):
            return
        sizes = {known.input_shape for known in self.spaces}
        if sizes and space.input_shape not in sizes:
            raise TableError(
                f"{self.where} was measured for input {', '.join(sorted(map(_shown, sizes)))}, space {space.name} has "
                f"{_shown(space.input_shape)}; profile it: nas profile {search_spaces.spelled(space)} --runtime "
                f"{self.header.runtime}"
            )
        raise self._missing(rows)

    def price_matrix(self, space: Space, matrix: np.ndarray) -> np.ndarray:
        """Predict many archs at once, in microseconds.

        Args:
            space: the space that encoded them.
            matrix: (archs, slots) int, from `space.encode(archs)`.

        Shape: (archs, slots) -> (archs,)
        """
        costs = self._costs(space)
        if matrix.size and not 0 <= matrix.min() <= matrix.max() < len(costs):
            raise InputError(f"row numbers from {matrix.min()} to {matrix.max()}: space {space.name} has {len(costs)}")
        totals = np.empty(len(matrix))
        ones = np.ones(matrix.shape[1])
        for start in range(0, len(matrix), CHUNK):
            part = slice(start, start + CHUNK)
            totals[part] = np.take(costs, matrix[part], mode="clip") @ ones  # checked above; clip skips a second check
        return self.total_us(space, totals)

    def _costs(self, space: Space) -> np.ndarray:
        cached: dict[Space, np.ndarray] = self.__dict__.setdefault("_costs_of", {})
        if space not in cached:
            self.require(space)
            cost = self.cost_of_row(space)
            cached[space] = np.array([*map(cost, space.all_rows()), 0.0])  # the last: an empty slot
        return cached[space]

    def _weighted(self, size: Size) -> dict[Row, float]:
        """Rows with the factors of their kinds, for images of a size."""
        cached: dict[Size, dict[Row, float]] = self.__dict__.setdefault("_weighted_at", {})
        if size not in cached:
            fit = self.calibrations.get(size)
            weight = fit.weights() if fit is not None and fit.factors else None
            cached[size] = self._us if weight is None else {row: us * weight(row) for row, us in self._us.items()}
        return cached[size]

    def _by_kind(self, arch: Arch) -> dict[str, float]:
        rows = self.rows_of(calls_of(arch))
        if self.missing(rows):
            raise self._missing(rows)
        sums: dict[str, float] = defaultdict(float)
        for row in rows:
            sums[row_kind(row)] += self._us[row]
        return sums

    def repeatability(self, least_us: float) -> float | None:
        """95th percentile of how far fresh processes lie apart, in percent, over measured rows from this time on; None
        without any.
        """
        rows = [entry for entry in self.entries if entry.source == "measured" and entry.us >= least_us]
        return float(np.percentile([100 * row.spread_us / row.us for row in rows], 95)) if rows else None

    def rows_of(self, calls: Sequence[Call]) -> list[Row]:
        """The rows that a network with these calls is priced by: its blocks, or their ops."""
        if self.header.level == "block":
            return [call.row for call in calls]
        return [op.row for call in calls for op in call.ops or (call,)]

    def _missing(self, rows: Iterable[Row]) -> MissingLatency:
        wanted = tuple(dict.fromkeys(rows))
        lacking = tuple(map(str, self.missing(wanted)))
        listed = "\n".join(f"  {text}" for text in lacking)
        return MissingLatency(
            f"{self.where} lacks {len(lacking)} of {len(wanted)} {self.header.level} rows:\n{listed}\n"
            f"Measure them, on the table's device, with: nas profile --table {self.where} --arch ARCH.json "
            "(rows of one network) or nas profile SPACE --table ... (rows of a whole space)",
            lacking,
        )

    def to_text(self) -> str:
        """The file's content."""
        lines = [f"calibration at {_shown(size)}: {fit}" for size, fit in self.calibrations.items()]
        for size, fit in self.calibrations.items():
            lines += [
                f"90 % interval of {name} at {_shown(size)}: {100 * fit.intervals[name]:.1f} % either way, by "
                f"{len(ratios)} networks"
                for name, ratios in fit.by_family
                if name in fit.intervals
            ]
        if self.card is not None:
            lines.append(f"card: {self.card}")
            lines += [
                f"card of {name}: MAPE {mape:.1f} %, bias {bias:+.1f} %, {self.card.inside(name)}{count} networks"
                for name, count, mape, bias in self.card.families
            ]
        return self._text(lines)

    def _text(self, computed: Iterable[str] = ()) -> str:
        return to_text(Content(self.header, self.entries, self.networks, self.checks), computed)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the table whole; several processes that write one table take turns by `nas.core.files.lock_of`.

        Raises:
            RunError: it cannot be written, such as on a full disk; what was there stays.
        """
        write_text(path, self.to_text())
        return Path(path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Table:
        """Read a table.

        Raises:
            TableError: naming the file, line and column of what cannot be read; see `nas.tables.records.read_text`.
        """
        source = Path(path)
        try:
            text = source.read_text(encoding="utf-8-sig")  # spreadsheets put a mark in front
        except (OSError, UnicodeDecodeError) as error:
            raise TableError(f"{source}: cannot be read as a latency table: {error}") from error
        content = read_text(text, source)
        return cls(content.header, content.entries, content.networks, source, content.checks)


def _size_of(calls: Sequence[Call]) -> Size:
    """(C, H, W) of the images of a network with these calls."""
    if not calls or not calls[0].row.inputs[0].is_map:
        raise InputError("a network's calls begin with a block that reads images: pass calls_of(arch), all of them")
    _, channels, height, width = calls[0].row.inputs[0]
    return channels, height, width


def _sigmas(confidence: float) -> float:
    """How many standard errors above its mean a normal error stays below with this confidence."""
    return NormalDist().inv_cdf(confidence)


def _shown(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
