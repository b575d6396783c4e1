"""`transfer_table`: a table for this device from few measured networks and the full tables of others; resumable."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.core.arch import Arch
from nas.core.errors import InputError, MeasureError
from nas.core.files import lock_of
from nas.core.space import Space
from nas.profiling.backends import load_backend
from nas.profiling.bench import Bench, Clock, Progress, silent
from nas.profiling.device.journal import Journal
from nas.profiling.device.timing import Settings, Times
from nas.profiling.job import SAME, network_item
from nas.profiling.machine import this_machine
from nas.profiling.probes import Probe
from nas.profiling.process import RuntimeConfig
from nas.profiling.profiler import MEASURE, fastest_variant
from nas.profiling.selection import spread
from nas.tables.table import Header, NetworkEntry, Table
from nas.tables.transfer import LEAST, choose, common_spaces, fit, parts_of

RANDOM, RANGE = 400, 60  # archs of each space to choose from: random ones, and from its smallest to its largest


def transfer_table(
    sources: Sequence[Table],
    *,
    path: Path,
    measure: int = 20,
    runtime: str = "onnxruntime",
    threads: int = 1,
    precision: str = "fp32",
    settings: Settings = MEASURE,
    seed: int = 0,
    progress: Progress = silent,
) -> Table:
    """Measure few networks on this machine, and write a table whose rows are predicted from them and other tables.

    Most of the networks are those that say most about all rows. The others, evenly spread in log latency, are for the
    calibration and never seen by the rows, so that the table's error is honest; fewer than ten networks leave none,
    and the table uncalibrated. It can be killed at any moment: samples stand in `<path>.transfer.samples.jsonl`. A
    table that is there and would be the same is left as it is, with its card.

    Args:
        sources: full tables of other devices or runtimes, with a space in common.
        path: of the new table.
        measure: how many networks.
        runtime: name of a backend.
        threads: threads inside one inference.
        precision: of weights and activations.
        settings: how long to measure.
        seed: of orders and the choice of networks.
        progress: called with work done, total work, seconds left, and what is going on.

    Raises:
        InputError: for fewer than five networks, sources of different levels, or where the path or its samples hold
            something else.
        TableError: where the sources have no space in common.
        MissingLatency: where a source lacks rows of it.
        MeasureError: where a network cannot be run.
        RunError: where another process writes this path, or the disk is full.
    """
    if measure < LEAST:
        raise InputError(f"measure: expected at least {LEAST} networks, got {measure}")
    spaces = common_spaces(sources)
    config = RuntimeConfig(runtime, threads, precision)
    names = tuple(dict.fromkeys(space.name for space in spaces.values()))
    with contextlib.ExitStack() as held:
        held.enter_context(lock_of(path))
        known = Table.read(path) if path.exists() else None
        if known is not None and known.header.method != "transfer":
            raise InputError(
                f"{path}: holds a table that was measured, not transferred; write to another path with --to"
            )
        journal = held.enter_context(Journal(path.with_name(f"{path.name}.transfer.samples.jsonl")))
        header = _header(sources, config, settings, measure)
        if journal.header is not None:
            _check(journal.header, header, f"{journal.path}: holds samples", "remove the file to measure again")
        if known is not None:
            _check(dataclasses.asdict(known.header), header, f"{path}: holds a table", "remove it")
        archs = tuple(map(Arch.from_json, journal.networks)) or _networks(sources, spaces.values(), measure, seed)
        if journal.header is None:
            variant = fastest_variant(archs[:2], config, seed, progress)
            journal.begin(dataclasses.asdict(dataclasses.replace(header, variant=variant)))
        if not journal.networks:
            journal.choose([arch.to_json() for arch in archs])
        assert journal.header is not None
        variant = str(journal.header["variant"])
        items = [network_item(arch) for arch in archs]
        with Bench(dataclasses.replace(config, variant=variant), settings, journal, seed, names) as bench:
            bench.run(items, Clock(bench.seconds(items), progress))
        if bench.failures:
            raise MeasureError("\n".join(f"{key}: {reason}" for key, reason in bench.failures.items()))
        times = Times(journal.samples)
        date, sentinel = str(journal.header["date"]), round(times.reference_us, 2)
        header = dataclasses.replace(header, variant=variant, date=date, sentinel_us=sentinel)
        networks = [_network(arch, times) for arch in archs]
        fitted, _ = parts_of(len(networks))
        made = fit(sources, header, networks[:fitted], networks[fitted:])
        if known is not None and known.hash == made.hash:
            return known  # with its card
        made.write(path)
        return Table.read(path)


def _header(sources: Sequence[Table], config: RuntimeConfig, settings: Settings, measure: int) -> Header:
    """What the new table says of itself, before a runtime's variant and the sentinel are known."""
    machine = this_machine(config.runtime)
    fitted, calibrating = parts_of(measure)
    origins = ", ".join(f"{_name(table.header)} ({table.hash[:8]})" for table in sources)
    return Header(
        device=machine.slug,
        cpu=machine.cpu,
        cores=machine.cores,
        runtime=config.runtime,
        runtime_version=load_backend(config.runtime).version(),
        variant="",
        precision=config.precision,
        threads=config.threads,
        level=sources[0].header.level,
        spaces=tuple(common_spaces(sources)),
        method="transfer",
        protocol=f"rows fitted on {fitted} networks, {calibrating} others calibrate; from {origins}; {settings}",
        date=datetime.date.today().isoformat(),
        sentinel_us=0.0,
    )


def _name(header: Header) -> str:
    return f"{header.device}/{header.runtime}-{header.precision}-{header.threads}t"


def _check(found: Mapping[str, Any], mine: Header, holds: str, otherwise: str) -> None:
    """Raise where what is there belongs to another transfer."""
    for name in (*SAME, "spaces", "protocol"):
        old, new = found[name], getattr(mine, name)
        if (tuple(old) if isinstance(old, list) else old) != new:
            raise InputError(
                f"{holds} with {name} {old!r}, this transfer has {new!r}; they do not go together. Write to another "
                f"table with --to, or {otherwise}"
            )


def _networks(sources: Sequence[Table], spaces: Collection[Space], count: int, seed: int) -> tuple[Arch, ...]:
    """The networks that the rows are fitted on, then those that calibrate."""
    rng = random.Random(seed)
    fitted, calibrating = parts_of(count)
    kept = _draw(sources[0], spaces, calibrating, rng, ())
    pool = [space.sample(rng) for space in spaces for _ in range(RANDOM)]
    pool += _draw(sources[0], spaces, RANGE * len(spaces), rng, kept)
    chosen = choose(sources, [arch for arch in dict.fromkeys(pool) if arch not in kept], fitted)
    if len(chosen) + len(kept) < count:
        raise InputError(f"the spaces have {len(chosen) + len(kept)} networks, not {count}; measure fewer")
    return (*chosen, *kept)


def _draw(
    table: Table, spaces: Collection[Space], count: int, rng: random.Random, without: Sequence[Arch]
) -> tuple[Arch, ...]:
    """Networks in equal parts from the spaces, each evenly spread in log latency."""
    drawn: list[Arch] = []
    for number, space in enumerate(spaces):
        part = -(-(count - len(drawn)) // (len(spaces) - number))
        drawn += spread(space, part, rng, table.cost_of_row(space), {*without, *drawn})
    return tuple(drawn)


def _network(arch: Arch, times: Times) -> NetworkEntry:
    timing = times.timing(Probe(arch=arch).key)
    return NetworkEntry(arch, timing.us, timing.spread_us, timing.count)
