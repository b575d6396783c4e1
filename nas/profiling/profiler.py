"""`profile`: every row that a space can need, and whole networks, into a table. `measure`: one network on this machine.

The first pass times rows alone; what they predict chooses the networks, which the later passes time among the rows.
A profile can be killed at any moment: raw samples stand in a journal beside the table, and the same command goes on.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nas.arch import Arch
from nas.errors import MeasureError
from nas.latency import Table
from nas.ops import Row
from nas.profiling.backends import load_backend
from nas.profiling.bench import Bench, Clock, Progress, silent
from nas.profiling.device import this_machine
from nas.profiling.job import Job, network_item, rows_of_arch, variant_of
from nas.profiling.probes import Probe
from nas.profiling.process import Engine
from nas.profiling.protocol import Settings, Times
from nas.profiling.samples import Journal, Log
from nas.space import Space

__all__ = ["Measurement", "Plan", "measure", "plan", "profile", "rows_of_arch", "table_name", "time_networks"]

MEASURE = Settings(rounds=10, passes=3)
CHOOSE = Settings(rounds=5, passes=1)


@dataclass(frozen=True)
class Plan:
    """What a profile has to do.

    Attributes:
        done: rows measured.
        total: rows wanted.
        networks: whole networks still to measure.
        seconds: about how long the rest takes.
    """

    done: int
    total: int
    networks: int
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """A whole network, timed.

    Attributes:
        us: latency of one inference at batch 1, in microseconds.
        spread_us: how far fresh processes lie apart.
        count: samples behind it.
        runtime: name of the backend.
        runtime_version: its version.
        variant: of the backend.
        device: short name of this machine.
        sentinel_us: time of the reference block meanwhile; a table's header has it too.
    """

    us: float
    spread_us: float
    count: int
    runtime: str
    runtime_version: str
    variant: str
    device: str
    sentinel_us: float


def table_name(space: Space, runtime: str, threads: int, level: str = "block", precision: str = "fp32") -> str:
    """The file name of a space's table, in the folder of its device."""
    return f"{runtime}-{precision}-{threads}t-{space.name}{'' if level == 'block' else '-op'}.csv"


def profile(
    space: Space,
    *,
    path: Path,
    runtime: str = "onnxruntime",
    threads: int = 1,
    level: str = "block",
    precision: str = "fp32",
    passes: int = 2,
    rounds: int = 8,
    networks: int = 12,
    seed: int = 0,
    rows: Iterable[Row] | None = None,
    progress: Progress = silent,
) -> Table:
    """Measure what a table lacks, write it, and return it; where it lacks nothing, only return it.

    Args:
        space: whose rows to measure.
        path: of the table; raw samples go beside it, into `<path>.samples.jsonl`.
        runtime: name of a backend.
        threads: threads inside one inference.
        level: "block" or "op": what a row is.
        precision: of weights and activations.
        passes: fresh processes; a row takes the median of their times.
        rounds: samples of every graph in every process; rows that need it get up to three times as many.
        networks: whole networks measured with the rows, where the table then has every row of the space.
        seed: of orders and the choice of networks.
        rows: only these; None for every row an arch of the space can need.
        progress: called with work done, total work, seconds left, and what is going on.

    Raises:
        InputError: where the table or its samples come from another device, runtime version, precision, thread count,
            level or space, naming both.
        MeasureError: where rows cannot be measured, naming each and why; the table holds the others.
        RunError: where another process profiles into this table.
    """
    job = _job(space, path, runtime, threads, level, precision, Settings(rounds, passes, networks), seed, rows)
    if job.complete:
        assert job.table is not None
        progress(1, 1, 0.0, "complete, nothing to measure")
        return job.table
    with Journal(job.journal_path) as journal:
        job.check(journal)
        if journal.header is None:
            job.begin(journal, _variant(job, seed, progress))
        assert journal.header is not None
        variant = str(journal.header["variant"])
        with Bench(replace(job.engine, variant=variant), job.settings, journal, seed, (space.name,)) as bench:
            archs = _measure_rows_and_networks(job, bench, journal, variant, progress)
        table = job.result(journal, variant, archs)
        if table.entries:
            table.write(path)
    _raise_failures(job, archs, bench.failures)
    return Table.read(path)


def _measure_rows_and_networks(
    job: Job, bench: Bench, journal: Journal, variant: str, progress: Progress
) -> tuple[Arch, ...]:
    """Fill the journal; the networks that stand in it then."""
    clock = Clock(bench.seconds(job.items(job.likely_networks(journal))), progress)
    bench.run(job.items(), clock, [0])
    archs = job.networks(journal, job.result(journal, variant, passes=1))
    if archs and not journal.networks:
        journal.choose([arch.to_json() for arch in archs])
    bench.run([network_item(arch) for arch in archs], clock, [0])
    bench.run(job.items(archs), clock, range(1, job.settings.passes))
    return archs


def plan(
    space: Space,
    *,
    path: Path,
    runtime: str = "onnxruntime",
    threads: int = 1,
    level: str = "block",
    precision: str = "fp32",
    passes: int = 2,
    rounds: int = 8,
    networks: int = 12,
    seed: int = 0,
    rows: Iterable[Row] | None = None,
) -> Plan:
    """What `profile` with the same arguments would do, and for how long; it measures nothing. Raises as `profile`."""
    job = _job(space, path, runtime, threads, level, precision, Settings(rounds, passes, networks), seed, rows)
    archs, log = job.likely_networks(), Log()
    if job.journal_path.exists():
        with Journal(job.journal_path) as journal:
            job.check(journal)
            archs, log.samples = job.likely_networks(journal), journal.samples
    bench = Bench(job.engine, job.settings, log, seed)
    items = job.items(archs)
    open_items = {item for number in range(passes) for item in bench.missing(number, items)}
    left = sum(formula.terms in open_items for formula in job.formulas)
    open_networks = sum(network_item(arch) in open_items for arch in archs)
    return Plan(len(job.wanted) - left, len(job.wanted), open_networks, bench.seconds(items))


def measure(
    arch: Arch,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    precision: str = "fp32",
    variant: str | None = None,
    settings: Settings = MEASURE,
    seed: int = 0,
    progress: Progress = silent,
) -> Measurement:
    """Time one whole network in fresh processes, as a table's networks are.

    Args:
        arch: the network; its weights are random.
        runtime: name of a backend.
        threads: threads inside one inference.
        precision: of weights and activations.
        variant: of the backend, such as a table's; None for the one that runs this network fastest.
        settings: how long to measure.
        seed: of orders.
        progress: called with work done, total work, seconds left, and what is going on.

    Raises:
        InputError: for an unknown runtime.
        MeasureError: where it cannot be run, with the reason.
    """
    engine = Engine(runtime, threads, precision, variant)
    if variant is None:
        engine = replace(engine, variant=fastest_variant([arch], engine, seed, progress))
    times = time_networks([arch], engine, settings, seed, progress)
    timing = times.timing(Probe(arch=arch).key)
    version, device = load_backend(runtime).version(), this_machine().slug
    name = engine.variant or load_backend(runtime).variants[0]
    us, spread, count = timing.us, timing.spread_us, timing.count
    return Measurement(us, spread, count, runtime, version, name, device, times.reference_us)


def time_networks(
    archs: Sequence[Arch],
    engine: Engine,
    settings: Settings = MEASURE,
    seed: int = 0,
    progress: Progress = silent,
) -> Times:
    """Time whole networks in interleaved rounds, in fresh processes; look them up with `Probe(arch=arch).key`.

    Raises:
        MeasureError: where one cannot be run, with the reason.
    """
    log = Log()
    spaces = tuple(sorted({arch.family for arch in archs}))
    items = [network_item(arch) for arch in archs]
    with Bench(engine, settings, log, seed, spaces) as bench:
        bench.run(items, Clock(bench.seconds(items), progress))
    if bench.failures:
        raise MeasureError("\n".join(f"{key}: {reason}" for key, reason in bench.failures.items()))
    return Times(log.samples)


def fastest_variant(archs: Sequence[Arch], engine: Engine, seed: int, progress: Progress) -> str:
    """The backend's variant with the lowest total time over these networks; without a choice, nothing is measured."""
    variants = load_backend(engine.runtime).variants
    if len(variants) == 1:
        return variants[0]
    totals = {}
    for variant in variants:
        times = time_networks(archs, replace(engine, variant=variant), CHOOSE, seed, progress)
        totals[variant] = sum(times.us(Probe(arch=arch).key) for arch in archs)
    return min(totals, key=totals.__getitem__)


def _variant(job: Job, seed: int, progress: Progress) -> str:
    if job.table is not None:
        return variant_of(job.table.header) or load_backend(job.engine.runtime).variants[0]
    rng = random.Random(seed)
    return fastest_variant([job.space.sample(rng) for _ in range(2)], job.engine, seed, progress)


def _job(
    space: Space,
    path: Path,
    runtime: str,
    threads: int,
    level: str,
    precision: str,
    settings: Settings,
    seed: int,
    rows: Iterable[Row] | None,
) -> Job:
    engine = Engine(runtime, threads, precision)
    return Job(space, Path(path), engine, level, settings, seed, None if rows is None else tuple(rows))


def _raise_failures(job: Job, archs: Sequence[Arch], failures: Mapping[str, str]) -> None:
    """Name what could not be measured: rows by their probes, and networks."""
    lines = []
    for formula in job.formulas:
        reasons = dict.fromkeys(failures[probe.key] for probe in formula.probes if probe.key in failures)
        lines += [f"  {formula.row}: {reason}" for reason in reasons]
    lines += [f"  network {arch.id}: {failures[key]}" for arch in archs if (key := Probe(arch=arch).key) in failures]
    if lines:
        raise MeasureError(
            f"{job.path}: {len(lines)} of {len(job.formulas) + len(archs)} could not be measured with "
            f"{job.engine.runtime}; the others are saved, the same command tries these again:\n" + "\n".join(lines)
        )
