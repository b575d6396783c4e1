"""How far a table's predictions are off: unseen networks of its spaces, predicted and then measured on this machine.

A validation can be killed at any moment: raw samples stand in a journal beside the table until its card is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas.core.arch import Arch, calls_of
from nas.core.errors import InputError
from nas.core.files import lock_of
from nas.core.space import Space
from nas.core.units import show_us
from nas.profiling import memory
from nas.profiling.backends import load_backend
from nas.profiling.bench import Bench, Progress, silent
from nas.profiling.device.journal import Journal, Log
from nas.profiling.device.timing import QUIET, Noise, Settings, Times
from nas.profiling.machine import this_machine
from nas.profiling.probes import Probe
from nas.profiling.process import RuntimeConfig
from nas.profiling.profiler import MEASURE, time_networks
from nas.profiling.selection import varied
from nas.tables.card import Card, Errors
from nas.tables.table import Header, NetworkEntry, Table

LEAST = 12  # networks; fewer say little about ranks
ANCHORS = 5  # further networks that tell the state of the machine, or how another machine differs


@dataclass(frozen=True)
class Validation:
    """What came out.

    Attributes:
        table: the table with these networks as its card.
        here: whether it was measured on a machine like this one.
        device: this machine.
        sentinel_drift: of the reference block, now against then, as a fraction; None where then is not known.
        scale: on the table's machine, how much longer than then it takes now, by some of the table's networks measured
            again; on another machine, the factor on predictions that fits networks best which are not of the card.
        scaled: the errors of predictions times this.
        noise: how disturbed the machine was.
        unwritten: why the card is not in the table's file; "" where it is.
        memory_problem: why the peak memory of networks is not known; "" where it is.
    """

    table: Table
    here: bool
    device: str
    sentinel_drift: float | None
    scale: float | None = None
    scaled: Errors | None = None
    noise: Noise = QUIET
    unwritten: str = ""
    memory_problem: str = ""

    @property
    def card(self) -> Card:
        """The errors of the predictions."""
        assert self.table.card is not None
        return self.table.card

    def facts(self) -> dict[str, Any]:
        """Plain data, latencies in milliseconds."""
        return {
            "table": self.table.where,
            "calibrated": bool(self.table.calibrations),
            "this_machine": self.here,
            "device": self.device,
            **self.card.facts(),
            "sentinel_drift_percent": None if self.sentinel_drift is None else 100 * self.sentinel_drift,
            "scale": self.scale,
            "scaled": None if self.scaled is None else dataclasses.asdict(self.scaled),
            "noise": str(self.noise),
            "written": not self.unwritten,
            "unwritten_because": self.unwritten or None,
            "memory_problem": self.memory_problem or None,
        }

    def text(self) -> str:
        """Some lines for a person."""
        card = self.card
        lines = [f"{'arch':14}{'family':24}{'predicted':>12}{'measured':>12}{'error':>9}"]
        for item in card.networks:
            times = f"{show_us(item.predicted_us):>12}{show_us(item.measured_us):>12}"
            lines.append(f"{item.arch.id:14}{item.family:24}{times}{item.error:>+9.1%}")
        lines.append(
            f"{len(card.networks)} unseen networks, the slowest {card.ratio:.1f} times the fastest, on {self.device}"
        )
        if not self.here:
            lines.append(f"NOT THIS MACHINE: {self.table.where} was measured on another one")
        if self.noise.is_too_much:
            lines.append(f"THIS MACHINE IS NOISY, do not believe the measurements: {self.noise}")
        lines += _describe(card.errors, f"as predicted{'' if self.table.calibrations else ', uncalibrated'}")
        if len(card.families) > 1:
            lines += [
                f"  {name}: MAPE {mape:.1f} %, bias {bias:+.1f} % ({card.inside(name)}{count} networks)"
                for name, count, mape, bias in card.families
            ]
        if self.memory_problem:
            lines.append(f"  peak memory was not measured: {self.memory_problem}")
        if card.memory_mape_percent is not None:
            lines.append(f"  peak memory: MAPE {card.memory_mape_percent:.1f} %")
        if card.coverage_band is not None:
            low, high = card.coverage_band
            lines.append(
                f"  90 % interval: {card.coverage_percent:.0f} % inside (chance allows {low:.0f} to {high:.0f} %)"
            )
        if self.scaled is not None:
            lines += _describe(self.scaled, self._scale_text())
        lines += self._repeatability()
        lines.append(f"card not written: {self.unwritten}" if self.unwritten else f"card written to {self.table.where}")
        return "\n".join(lines)

    def _scale_text(self) -> str:
        if not self.here:
            return f"after one scale ({self.scale:.3f}) fitted on {ANCHORS} other networks"
        drift = "" if self.sentinel_drift is None else f", the reference block {1 + self.sentinel_drift:.3f} times"
        return (
            f"{ANCHORS} of the table's networks, measured again, take {self.scale:.3f} times what they took{drift}; "
            f"predictions times {self.scale:.3f}"
        )

    def _repeatability(self) -> list[str]:
        card = self.card
        parts = [f"networks {card.repeatability_networks_percent:.1f} %"]
        if card.repeatability_percent is not None:
            parts.append(f"rows from 0.1 ms {card.repeatability_percent:.1f} %")
        if card.repeatability_large_percent is not None:
            parts.append(f"from 0.5 ms {card.repeatability_large_percent:.1f} %")
        return [f"fresh processes lie apart, 95th percentile: {', '.join(parts)}"]


def _describe(errors: Errors, title: str) -> list[str]:
    return [
        f"{title}:",
        f"  MAPE {errors.mape_percent:.1f} %, bias {errors.bias_percent:+.1f} %, worst {errors.worst_percent:+.1f} %; "
        f"within 5 %: {errors.within_5_percent:.0f} %, within 10 %: {errors.within_10_percent:.0f} %",
        f"  Spearman {errors.spearman:.3f}, Kendall {errors.kendall:.3f} "
        f"(random errors of this MAPE would leave {errors.reference_kendall:.3f})",
    ]


def validate(
    table: Table,
    *,
    archs: int = 40,
    seed: int = 1,
    settings: Settings = MEASURE,
    progress: Progress = silent,
) -> Validation:
    """Predict and measure networks that the table has not seen, evenly spread in log latency over each of its spaces.

    They become the table's card, and replace an earlier one: in its file too, where that is one of this machine and can
    be written. Of a space whose stages choose among kinds, half of the networks are of one kind each, of all kinds in
    turn. The errors are also given after one scale, from five further networks in the same rounds. On the table's
    machine those are of the table, and the scale is how its state has changed: clocks and neighbours move all latencies
    by some percent from one hour to the next. On another machine the scale is fitted to unseen networks.

    Args:
        table: with all rows of its spaces.
        archs: how many networks, in equal parts from its spaces.
        seed: of the choice of networks.
        settings: how long to measure.
        progress: called with work done, total work, seconds left, and what is going on.

    Raises:
        InputError: for fewer than 12 networks, spaces that have no more, a table without a whole space, or samples on
            disk of another validation with this seed.
        MissingLatency: where the table lacks rows of its spaces.
        MeasureError: where a network cannot be run.
        RunError: where another process validates this table with this seed, or the disk is full.
    """
    if archs < LEAST:
        raise InputError(f"archs: expected at least {LEAST}, got {archs}")
    if not table.spaces:
        raise InputError(f"{table.where} holds no space as a whole; complete one: nas profile SPACE -t {table.where}")
    for space in table.spaces:
        table.require(space)
    rng = random.Random(seed)
    seen = {network.arch for network in table.networks}
    unseen = _draw(table, archs, rng, seen)
    if len(unseen) < archs:
        names = ", ".join(table.header.spaces)
        raise InputError(f"{table.where} ({names}) has {len(unseen)} networks that it has not seen, not {archs}")
    here = this_machine(table.header.runtime).measured(table.header)
    anchors = _anchors(table) if here else ()
    others = [item.arch for item in anchors] or _draw(table, ANCHORS, rng, seen.union(unseen))
    unwritten = _unwritable(table)
    with contextlib.nullcontext() if unwritten or table.path is None else lock_of(table.path):
        if not unwritten and table.path is not None and Table.read(table.path).hash != table.hash:
            raise InputError(f"{table.path} has changed since it was read; run the same command again")
        return _validate(table, unseen, others, anchors, settings, seed, progress, unwritten)


def _validate(
    table: Table,
    unseen: Sequence[Arch],
    others: Sequence[Arch],
    anchors: Sequence[NetworkEntry],
    settings: Settings,
    seed: int,
    progress: Progress,
    unwritten: str,
) -> Validation:
    with _log(table, (*unseen, *others), settings, seed) as log:
        times = time_networks((*unseen, *others), _engine(table.header), settings, seed, progress, log)
        spaces = tuple(sorted({arch.family for arch in unseen}))
        with Bench(_engine(table.header), settings, log, seed, spaces) as bench:
            problem = next(iter(memory.weigh(bench, unseen, progress)), "")
    peaks = {arch: log.peaks.get(Probe(arch=arch).key) for arch in unseen}
    header = table.header
    drift = None if math.isnan(header.sentinel_us) else times.reference_us / header.sentinel_us - 1
    state = "not known" if drift is None else f"{drift:+.1%}"
    then = {item.arch: item.us for item in anchors} or {arch: _predict(table, arch) for arch in others}
    scale = float(np.median([times.us(Probe(arch=arch).key) / us for arch, us in then.items()])) if then else None
    checked = f"{len(unseen)} networks, seed {seed}, {datetime.date.today().isoformat()}, sentinel {state}"
    if anchors and scale is not None:
        checked += f", {len(anchors)} of its networks {scale - 1:+.1%}"
    if times.noise.is_too_much:
        checked += f"; noisy machine: {times.noise}"
    carded = Table(
        dataclasses.replace(header, checked=checked),
        table.entries,
        table.networks,
        table.path,
        [_network(arch, times, peaks.get(arch)) for arch in unseen],
    )
    machine = this_machine(header.runtime)
    found = Validation(
        carded,
        machine.measured(header),
        machine.slug,
        drift,
        scale=scale,
        noise=times.noise,
        unwritten=unwritten,
        memory_problem=problem,
    )
    if not unwritten and table.path is not None:
        carded.write(table.path)
    if table.path is not None:
        with contextlib.suppress(OSError):  # a disk that takes no writes has none
            _journal_path(table.path, seed).unlink(missing_ok=True)
    if scale is None:
        return found
    predicted = [scale * item.predicted_us for item in found.card.networks]
    scaled = Errors.of(predicted, [item.measured_us for item in found.card.networks])
    return dataclasses.replace(found, scaled=scaled)


def _anchors(table: Table) -> tuple[NetworkEntry, ...]:
    """Some of a table's own networks, from the fastest to the slowest; none where it has too few."""
    known = table.networks
    if len(known) < ANCHORS:
        return ()
    return tuple(known[number * (len(known) - 1) // (ANCHORS - 1)] for number in range(ANCHORS))


def _draw(table: Table, count: int, rng: random.Random, seen: set[Arch]) -> list[Arch]:
    """Networks in equal parts from the spaces of a table; a space with fewer leaves its part to the others."""
    drawn: list[Arch] = []
    spaces = sorted(table.spaces, key=Space.count)
    for number, space in enumerate(spaces):
        part = -(-(count - len(drawn)) // (len(spaces) - number))
        drawn += varied(space, part, rng, table.cost_of_row(space), seen.union(drawn))
    return drawn


@contextlib.contextmanager
def _log(table: Table, archs: Sequence[Arch], settings: Settings, seed: int) -> Iterator[Log]:
    """What keeps the measurements of networks: a journal beside the table, where an interrupted validation left its
    own, as far as there is a place for it.
    """
    header = table.header
    if table.path is None or not os.access(table.path.parent, os.W_OK):
        yield Log()
        return
    machine = this_machine(header.runtime)
    about = {
        "table": table.hash,
        "device": machine.slug,
        "cpu": machine.cpu,
        "version": load_backend(header.runtime).version(),
        "rounds": settings.rounds,
        "passes": settings.passes,
        "networks": [arch.id for arch in archs],
    }
    path = _journal_path(table.path, seed)
    with Journal(path) as journal:
        if journal.header is None:
            journal.begin(about)
        begun = journal.header or about
        if wrong := [name for name, value in about.items() if begun.get(name) != value]:
            raise InputError(
                f"{path} holds samples of another validation, its {', '.join(wrong)} differ: give that one's arguments "
                "to go on with it, another --seed, or remove the file"
            )
        yield journal


def _engine(header: Header) -> RuntimeConfig:
    """That of a table; in the backend's first variant where it is not said, as in imported tables."""
    variant = load_backend(header.runtime).known_variant(header.variant)
    return RuntimeConfig(header.runtime, header.threads, header.precision, variant)


def _journal_path(path: Path, seed: int) -> Path:
    return path.with_name(f"{path.name}.validation-{seed}.samples.jsonl")


def _unwritable(table: Table) -> str:
    """Why a card cannot be written into a table's file; "" where it can."""
    if table.path is None:
        return "the table is no file"
    if not this_machine(table.header.runtime).measured(table.header):
        return f"{table.where} is a table of another machine"
    if (version := load_backend(table.header.runtime).version()) != table.header.runtime_version:
        return (
            f"{table.where} was measured with {table.header.runtime} {table.header.runtime_version}, this is {version}"
        )
    if not (os.access(table.path, os.W_OK) and os.access(table.path.parent, os.W_OK)):
        return f"{table.where} cannot be written here; copy it and validate the copy"
    return ""


def _network(arch: Arch, times: Times, peak: int | None) -> NetworkEntry:
    timing = times.timing(Probe(arch=arch).key)
    return NetworkEntry(arch, timing.us, timing.spread_us, timing.count, peak)


def _predict(table: Table, arch: Arch) -> float:
    return table.price(calls_of(arch)).total_us
