"""`profile`: every row that a space can need, and whole networks, into a table. `measure`: one network on this machine.

The first pass times rows alone; what they predict chooses the networks, which the later passes time among the rows.
A profile can be killed at any moment: raw samples stand in a journal beside the table, and the same command goes on.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nas.core.arch import Arch, calls_of
from nas.core.errors import MeasureError
from nas.core.files import lock_of
from nas.core.ops import Row
from nas.core.space import Space
from nas.core.units import show_seconds
from nas.networks.foreign import Foreign
from nas.profiling import memory
from nas.profiling.backends import load_backend
from nas.profiling.bench import Bench, Clock, Item, Progress, silent
from nas.profiling.device.journal import Journal, Log
from nas.profiling.device.timing import GATE, MOST_DRIFT, MOST_NOISE, Noise, Settings, Times, noise_of, reference_of
from nas.profiling.importance import rows_of_arch
from nas.profiling.insitu import BATCH, NETWORK_SECONDS, lacking_inside, measure_inside
from nas.profiling.job import AUTO, DEFAULT, Job, method_for, network_item
from nas.profiling.machine import this_machine
from nas.profiling.prediction import Prediction
from nas.profiling.probes import Probe
from nas.profiling.process import RuntimeConfig
from nas.tables.table import MIN_NETWORKS, Table

__all__ = [
    "Measurement",
    "Plan",
    "Profiled",
    "job_of",
    "measure",
    "measure_memory",
    "plan",
    "profile",
    "rows_of_arch",
    "run",
    "run_each",
    "table_name",
    "time_networks",
    "unmeasured_percent",
]

MEASURE = Settings(rounds=10, passes=3)
CHOOSE = Settings(rounds=5, passes=1)
TRIES = 3  # of a measurement on a disturbed machine
SMALL_PIXELS = 128
NETWORKS_SHARE = 0.4  # of a time budget that networks get at most
MEMORY_SECONDS = 2.0  # to convert a network and count its memory
STEPS = 8  # that a time budget is spent in at least: after each it is known better how long rows take
STEP_SECONDS = 20.0  # with shorter steps, starting processes would take most of the time
TYPICAL = 201


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
class Profiled:
    """What came of a job.

    Attributes:
        table: as it is on disk.
        problems: what is not in it and why, where that is no error.
        noise: how disturbed the machine was; None where nothing was measured.
        prediction: of the rows that were not measured; None where all were.
    """

    table: Table
    problems: tuple[str, ...] = ()
    noise: Noise | None = None
    prediction: Prediction | None = None


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
        noise: share of samples in slow spells of the machine, 0..1.
        disturbed: whether that is too much to believe `us`, though it was measured again.
        text: the same in words.
    """

    us: float
    spread_us: float
    count: int
    runtime: str
    runtime_version: str
    variant: str
    device: str
    sentinel_us: float
    noise: float
    disturbed: bool
    text: str


def table_name(space: Space, runtime: str, threads: int, level: str = "block", precision: str = "fp32") -> str:
    """The file name of the table that a space's rows go into, in the folder of its device.

    The small forms of spaces have a table of their own, so that a card speaks of networks of one size.
    """
    small = f"-{space.input_shape[-1]}px" if space.input_shape[-1] < SMALL_PIXELS else ""
    return f"{runtime}-{precision}-{threads}t{small}{'' if level == 'block' else '-op'}.csv"


def profile(
    space: Space,
    *,
    path: Path,
    runtime: str = "onnxruntime",
    threads: int = 1,
    level: str = "block",
    precision: str = "fp32",
    method: str = AUTO,
    passes: int = DEFAULT.passes,
    rounds: int = DEFAULT.rounds,
    networks: int = DEFAULT.networks,
    patience_seconds: float = DEFAULT.patience_seconds,
    seed: int = 0,
    rows: Iterable[Row] | None = None,
    budget_minutes: float | None = None,
    accept_noise: bool = False,
    progress: Progress = silent,
) -> Table:
    """Measure what a table lacks, write it, and return it; where it lacks nothing, only return it.

    Args:
        space: whose rows to measure.
        path: of the table; raw samples go beside it, into `<path>.<space>.samples.jsonl`.
        runtime: name of a backend.
        threads: threads inside one inference.
        level: "block" or "op": what a row is.
        precision: of weights and activations.
        method: how rows are timed: "chains", "in-situ", or "auto" for what validated better on the runtime.
        passes: fresh processes; a row takes the median of their times.
        rounds: samples of every graph in every process; rows that need it get up to four times as many.
        networks: whole networks measured with the rows, where the table then has every row of the space.
        patience_seconds: how long one graph may take beyond what is expected of it before the runtime counts as hung.
        seed: of orders and the choice of networks.
        rows: only these; None for every row an arch of the space can need.
        budget_minutes: about how long it may take: the rows that most archs use are measured, the others predicted,
            until a later call measures them; None for as long as all rows take.
        accept_noise: write a table even where the machine was too disturbed to believe it; the table says so.
        progress: called with work done, total work, seconds left, and what is going on.

    Raises:
        InputError: where the table or its samples come from another device, runtime version, precision, thread count,
            level or method, naming both.
        MeasureError: where rows cannot be measured, naming each and why; the table holds the others. Where the machine
            is too noisy, or the time is too short for any prediction.
        RunError: where another process profiles into this table, or the disk is full.
    """
    job = job_of(
        space,
        path=path,
        runtime=runtime,
        threads=threads,
        level=level,
        precision=precision,
        method=method,
        passes=passes,
        rounds=rounds,
        networks=networks,
        patience_seconds=patience_seconds,
        seed=seed,
        rows=rows,
    )
    return run(job, budget_minutes=budget_minutes, accept_noise=accept_noise, progress=progress).table


def job_of(
    space: Space,
    *,
    path: Path,
    runtime: str = "onnxruntime",
    threads: int = 1,
    level: str = "block",
    precision: str = "fp32",
    method: str = AUTO,
    passes: int = DEFAULT.passes,
    rounds: int = DEFAULT.rounds,
    networks: int = DEFAULT.networks,
    patience_seconds: float = DEFAULT.patience_seconds,
    seed: int = 0,
    rows: Iterable[Row] | None = None,
) -> Job:
    """What `profile` has to do; the same arguments, for `plan` and `run`. Raises as `profile`."""
    config = RuntimeConfig(runtime, threads, precision)
    settings = Settings(rounds, passes, networks, patience_seconds=patience_seconds)
    if method == AUTO:
        method = Table.read(path).header.method if Path(path).is_file() else method_for(space, runtime, level)
    return Job(space, Path(path), config, level, settings, seed, None if rows is None else tuple(rows), method)


def plan(job: Job) -> Plan:
    """What is left of a job, and how long it takes; it measures nothing. Raises as `profile`."""
    archs, log = job.likely_networks(), Log()
    if job.journal_path.exists():
        with Journal(job.journal_path) as journal:
            job.check(journal)
            archs, log.samples = job.likely_networks(journal), journal.samples
    bench = Bench(job.config, job.settings, log, job.seed)
    items = job.items(archs)
    open_items = {item for number in range(job.settings.passes) for item in bench.missing(number, items)}
    left = sum(formula.terms in open_items for formula in job.formulas)
    open_networks = sum(network_item(arch) in open_items for arch in archs)
    inside = lacking_inside(bench, job.inside)
    left += len({row for arch in inside for row in rows_of_arch(arch, job.level)}.intersection(job.lacking))
    seconds = bench.seconds(items) + NETWORK_SECONDS * len(inside)
    return Plan(len(job.wanted) - left, len(job.wanted), open_networks, seconds)


def run(
    job: Job, *, budget_minutes: float | None = None, accept_noise: bool = False, progress: Progress = silent
) -> Profiled:
    """Do a job; see `profile`."""
    with lock_of(job.path):  # what others have written until now counts, and none writes meanwhile
        return _run(replace(job), budget_minutes, accept_noise, progress)


def _run(job: Job, budget_minutes: float | None, accept_noise: bool, progress: Progress) -> Profiled:
    until = math.inf if budget_minutes is None else time.monotonic() + 60 * budget_minutes
    if job.complete:
        assert job.table is not None
        lacking, problem = _lacking_memory(job, job.table), memory.uncounted(load_backend(job.config.runtime))
        if not lacking or problem:
            progress(1, 1, 0.0, "complete, nothing to measure")
            return Profiled(job.table, (problem,) if lacking else ())
        with Journal(job.journal_path) as journal:
            job.check(journal)
            if journal.header is None:
                job.begin(journal, job.table.header.variant)
            return Profiled(*_with_memory(job, job.table, journal, until, progress))
    with Journal(job.journal_path) as journal:
        job.check(journal)
        _forget_disturbed(job, journal, accept_noise)
        if journal.header is None:
            job.begin(journal, _variant(job, progress))
        assert journal.header is not None
        variant = str(journal.header["variant"])
        config = replace(job.config, variant=variant)
        with Bench(config, job.settings, journal, job.seed, (job.space.name,)) as bench:
            found = _measure_within if until < math.inf else _measure_all
            archs, prediction, shortage = found(job, bench, journal, variant, progress, until)
        noise = job.noise(journal, archs)
        if noise.is_too_much and not accept_noise:
            raise MeasureError(
                f"{job.path}: not written, this machine is too noisy to be believed: {noise}, at most {MOST_NOISE:.0%} "
                "may be. The samples are on disk. Close other programs and run the same command again: it measures "
                "anew what was disturbed; --accept-noise writes the table as it is"
            )
        table = job.result(journal, variant, archs, predicted=prediction.entries if prediction is not None else ())
        if table.entries:
            table.write(job.path)
        _raise_failures(job, archs, bench.failures)
        if shortage is not None:
            raise shortage
        return Profiled(*_with_memory(job, table, journal, until, progress), noise, prediction)


def run_each(
    jobs: Sequence[Job], *, budget_minutes: float | None = None, accept_noise: bool = False, progress: Progress = silent
) -> list[Profiled]:
    """Do jobs one after the other, each with a part of the time that is left, in proportion to what it has to do.

    Raises:
        MeasureError: at the end, where something could not be measured in any of them; see `profile` for the others.
    """
    end = time.monotonic() + 60 * (budget_minutes or 0.0)
    seconds = [1.0 + plan(job).seconds for job in jobs] if budget_minutes is not None else []
    outcomes, problems = [], []
    for number, job in enumerate(jobs):
        minutes = None
        if budget_minutes is not None:
            minutes = max(end - time.monotonic(), 0.0) / 60 * seconds[number] / sum(seconds[number:])
        try:
            outcomes.append(run(job, budget_minutes=minutes, accept_noise=accept_noise, progress=progress))
        except MeasureError as error:
            problems.append(str(error))
    if problems:
        raise MeasureError("\n".join(problems))
    return outcomes


Found = tuple[tuple[Arch, ...], Prediction | None, MeasureError | None]


def _measure_all(job: Job, bench: Bench, journal: Journal, variant: str, progress: Progress, until: float) -> Found:
    """Fill the journal; the networks that stand in it then."""
    seconds = bench.seconds(job.items(job.likely_networks(journal)))
    seconds += NETWORK_SECONDS * len(lacking_inside(bench, job.inside))
    clock = Clock(seconds, progress, until)
    measure_inside(bench, job.inside, clock, [0])
    bench.run(job.items(), clock, [0])
    archs = job.networks(journal, job.result(journal, variant, passes=1))
    profiled = tuple(dict.fromkeys((*job.inside, *job.both_ways(archs))))
    for number in range(job.settings.passes):
        bench.run([network_item(arch) for arch in archs] if number == 0 else job.items(archs), clock, [number])
        measure_inside(bench, profiled, clock, [number])
    return archs, None, None


def _measure_within(job: Job, bench: Bench, journal: Journal, variant: str, progress: Progress, until: float) -> Found:
    """Fill the journal with rows, the most used first, then with networks, until the time is up; predict other rows."""
    left = until - time.monotonic()
    networks = [network_item(arch) for arch in job.likely_networks(journal)]
    reserved = min(bench.seconds(networks) + MEMORY_SECONDS * len(networks), NETWORKS_SHARE * left)
    rows = job.items()
    seconds = bench.seconds(rows) + NETWORK_SECONDS * len(lacking_inside(bench, job.inside))
    clock = Clock(min(seconds + reserved, left), progress, until - reserved)
    for start in range(0, len(job.inside), BATCH):
        measure_inside(bench, job.inside[start : start + BATCH], clock, range(job.settings.passes))
    while step := _step(rows, bench, clock, left / STEPS):
        bench.run(step, clock)
        rows = rows[len(step) :]
    known, prediction = job.result(journal, variant), None
    try:
        failed = [f.row for f in job.formulas if any(probe.key in bench.failures for probe in f.probes)]
        prediction = job.predict(known, failed)
        if prediction is not None:
            known = job.result(journal, variant, predicted=prediction.entries)
    except MeasureError as error:
        text = f"{job.path}: {show_seconds(left)} were too short: {error}. They are saved; the same command goes on"
        return (), None, MeasureError(text)
    seconds = clock.pace * bench.seconds(networks) / max(len(networks), 1) + MEMORY_SECONDS
    archs = job.networks(journal, known, max(int((until - time.monotonic()) / seconds), MIN_NETWORKS))
    clock.until = math.inf  # they are few enough
    bench.run([network_item(arch) for arch in archs], clock)
    measure_inside(bench, job.both_ways(archs), clock, range(job.settings.passes))
    return archs, prediction, None


def _step(rows: Sequence[Item], bench: Bench, clock: Clock, seconds: float) -> Sequence[Item]:
    """The first rows: as many as the clock leaves time for, and these seconds or those of a short step."""
    count, most = len(rows), min(clock.left, max(seconds, STEP_SECONDS))
    while count and bench.seconds(rows[:count]) * clock.pace > most:
        count //= 2
    return rows[:count]


def _forget_disturbed(job: Job, journal: Journal, accept_noise: bool) -> None:
    """Leave out what an earlier run was refused for, so that it is measured again."""
    if abs(job.drift(journal)) > MOST_DRIFT:
        journal.forget(0.0)
    elif job.noise(journal, job.likely_networks(journal)).is_too_much and not accept_noise:
        journal.forget(GATE * reference_of(journal.samples))


def _with_memory(
    job: Job, table: Table, journal: Journal, until: float, progress: Progress
) -> tuple[Table, tuple[str, ...]]:
    """The table, written, with the peak memory of the networks of the space; and why it lacks that of any."""
    lacking = _lacking_memory(job, table)
    config = replace(job.config, variant=table.header.variant)
    with Bench(config, job.settings, journal, job.seed, (job.space.name,)) as bench:
        problems = memory.weigh(bench, lacking, progress, until)
    found = {arch: journal.peaks[key] for arch in lacking if (key := Probe(arch=arch).key) in journal.peaks}
    if found:
        networks = [replace(each, peak_bytes=found.get(each.arch, each.peak_bytes)) for each in table.networks]
        Table(table.header, table.entries, networks, table.path, table.checks).write(job.path)
    return Table.read(job.path), problems


def _lacking_memory(job: Job, table: Table) -> list[Arch]:
    """The networks of the space whose peak memory is to be measured.

    A few rows more are no reason to measure the memory of networks that were there before.
    """
    here = (job.space.name, job.space.input_shape)
    archs = [each.arch for each in table.networks if each.peak_bytes is None and job.only is None]
    return [arch for arch in archs if (arch.family, arch.input_shape) == here]


def unmeasured_percent(table: Table, space: Space, seed: int = 0) -> float:
    """How much of the predicted time of a typical network of a space rests on rows that were not measured: the median
    over random networks, in percent.
    """
    rng = random.Random(seed)
    prices = [table.price(calls_of(space.sample(rng))) for _ in range(TYPICAL)]
    return 100 * statistics.median(price.unmeasured_us / price.total_us for price in prices)


def measure(
    arch: Arch | Foreign,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    precision: str = "fp32",
    variant: str | None = None,
    sentinel_us: float | None = None,
    settings: Settings = MEASURE,
    seed: int = 0,
    progress: Progress = silent,
) -> Measurement:
    """Time one whole network in fresh processes, as a table's networks are; again where the machine is disturbed.

    What was measured outside slow spells is kept, the rest measured anew, up to three times in all. The result says
    whether that helped.

    Args:
        arch: the network, or a model of timm or torchvision (`nas.networks.foreign.find`); its weights are random.
        runtime: name of a backend.
        threads: threads inside one inference.
        precision: of weights and activations.
        variant: of the backend, such as a table's; None for the one that runs this network fastest.
        sentinel_us: time of the reference block when this machine is quiet, such as the header of a table of this
            machine and runtime has it. Without it only spells during the measurement are noticed.
        settings: how long to measure.
        seed: of orders.
        progress: called with work done, total work, seconds left, and what is going on.

    Raises:
        InputError: for an unknown runtime, or a precision or variant that it does not have.
        MeasureError: where it cannot be run, with the reason.
    """
    config = RuntimeConfig(runtime, threads, precision, variant)
    load_backend(runtime)(threads, precision, variant).require_machine()  # said here, not by processes that die of it
    if variant is None:
        config = replace(config, variant=fastest_variant([arch], config, seed, progress))
    quiet_us = sentinel_us if sentinel_us and math.isfinite(sentinel_us) else math.inf
    log = Log()
    for number in range(1, TRIES + 1):
        times = time_networks([arch], config, settings, seed, progress, log)
        noise = noise_of(log.samples, quiet_us=quiet_us)
        if not noise.is_too_much or number == TRIES:
            break
        log.forget(GATE * min(times.reference_us, quiet_us))
    timing = times.timing(Probe.of(arch).key)
    again = "" if number == 1 else f", measured {number} times"
    advice = "; close other programs and measure again"
    return Measurement(
        us=timing.us,
        spread_us=timing.spread_us,
        count=timing.count,
        runtime=runtime,
        runtime_version=load_backend(runtime).version(),
        variant=config.variant or load_backend(runtime).variants[0],
        device=this_machine(runtime).slug,
        sentinel_us=times.reference_us,
        noise=noise.slow,
        disturbed=noise.is_too_much,
        text=f"disturbed machine: {noise}{again}{advice}" if noise.is_too_much else f"quiet machine: {noise}{again}",
    )


def measure_memory(
    arch: Arch,
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    precision: str = "fp32",
    variant: str | None = None,
) -> int:
    """The peak memory of one whole network, measured in a fresh process, in bytes; see `nas.profiling.memory`.

    Args:
        arch: the network, or a model of timm or torchvision (`nas.networks.foreign.find`); its weights are random.
        runtime: name of a backend.
        threads: threads inside one inference.
        precision: of weights and activations.
        variant: of the backend, such as a table's; None for its first.

    Raises:
        InputError: for an unknown runtime.
        MeasureError: where it cannot be run, or nothing counts its memory here, with the reason.
    """
    return memory.peak_bytes(RuntimeConfig(runtime, threads, precision, variant), arch)


def time_networks(
    archs: Sequence[Arch | Foreign],
    config: RuntimeConfig,
    settings: Settings = MEASURE,
    seed: int = 0,
    progress: Progress = silent,
    log: Log | None = None,
) -> Times:
    """Time whole networks in interleaved rounds, in fresh processes; look them up with `Probe.of(arch).key`.

    Samples that `log` holds count, and it receives the others.

    Raises:
        MeasureError: where one cannot be run, with the reason.
    """
    log = Log() if log is None else log
    spaces = tuple(sorted({arch.family for arch in archs if isinstance(arch, Arch)}))
    items = [network_item(arch) for arch in archs]
    with Bench(config, settings, log, seed, spaces) as bench:
        bench.run(items, Clock(bench.seconds(items), progress))
    if bench.failures:
        raise MeasureError("\n".join(f"{key}: {reason}" for key, reason in bench.failures.items()))
    return Times(log.samples)


def fastest_variant(archs: Sequence[Arch | Foreign], config: RuntimeConfig, seed: int, progress: Progress) -> str:
    """The backend's variant with the lowest total time over these networks; without a choice, nothing is measured."""
    variants = load_backend(config.runtime).variants
    if len(variants) == 1:
        return variants[0]
    totals = {}
    for variant in variants:
        times = time_networks(archs, replace(config, variant=variant), CHOOSE, seed, progress)
        totals[variant] = sum(times.us(Probe.of(arch).key) for arch in archs)
    return min(totals, key=totals.__getitem__)


def _variant(job: Job, progress: Progress) -> str:
    if job.table is not None:
        return job.table.header.variant
    rng = random.Random(job.seed)
    return fastest_variant([job.space.sample(rng) for _ in range(2)], job.config, job.seed, progress)


def _raise_failures(job: Job, archs: Sequence[Arch], failures: Mapping[str, str]) -> None:
    """Name what could not be measured: rows by their probes, and networks, those inside which rows are timed too."""
    lines = []
    for formula in job.formulas:
        reasons = dict.fromkeys(failures[probe.key] for probe in formula.probes if probe.key in failures)
        lines += [f"  {formula.row}: {reason}" for reason in reasons]
    networks = dict.fromkeys((*archs, *job.inside))
    lines += [f"  network {arch.id}: {failures[key]}" for arch in networks if (key := Probe(arch=arch).key) in failures]
    if lines:
        raise MeasureError(
            f"{job.path}: {len(lines)} of {len(job.formulas) + len(networks)} could not be measured with "
            f"{job.config.runtime}; the others are saved, the same command tries these again:\n" + "\n".join(lines)
        )
