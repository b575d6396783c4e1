"""In situ: rows timed inside whole networks, by the runtime's own times of nodes, for runtimes that give them.

A block inside a network meets its neighbours' caches and layouts, which a block alone does not. Sampled networks that
together hold every row are run with the node profiler on. Each node belongs to the block whose module path its name
begins with; a node without such a name (a layout change, a fused reshape) to the block of the node before it. A row
takes the median over the networks that hold it. What the node profiler itself costs, some share of a microsecond a
node, is fitted on networks that are timed both ways and taken off.
"""

from __future__ import annotations

import functools
import random
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.core.arch import Arch, steps_of
from nas.core.errors import MeasureError
from nas.core.ops import Row
from nas.core.space import Space
from nas.core.tracing import macs_of_unit
from nas.profiling.bench import Bench, Clock
from nas.profiling.device.journal import Sample, Samples
from nas.profiling.device.process import WorkerDeathError
from nas.profiling.device.timing import GATE, good, reference_of
from nas.profiling.probes import Probe
from nas.profiling.process import Inspector

POOL = 8000  # sampled archs that the networks are chosen from
NETWORK_SECONDS, MACS_PER_SECOND = 1.5, 1e9  # to convert and load a network; to run it often enough
NAMED = 0.5  # share of a network's time that has to belong to nodes with a path
RUNS, WARM_UP = 10, 3
BATCH = 32  # networks that are converted together
TRIES = 3  # of a network in one process, where spells are slow
OUTPUT = re.compile(r"output\d+")


@dataclass(frozen=True)
class Inside:
    """What one profiled network says: for each of its blocks with a row, in order, its time and number of nodes.

    Attributes:
        us: microseconds.
        nodes: how many nodes.
    """

    us: tuple[float, ...]
    nodes: tuple[int, ...]


def cover(space: Space, rows: Iterable[Row], seed: int = 0) -> tuple[Arch, ...]:
    """Archs of a space that together hold these rows, as far as random archs hold them.

    Greedy: the arch with the most rows still uncovered for the time it takes, until none adds any.
    """
    number_of = {row: number for number, row in enumerate(space.all_rows())}
    rng = random.Random(seed)
    pool = list(dict.fromkeys(space.sample(rng) for _ in range(POOL)))
    matrix = space.encode(pool)
    macs = np.array([*map(macs_of_unit, number_of), 0])  # the last: an empty slot
    seconds = NETWORK_SECONDS + macs[matrix].sum(1) / MACS_PER_SECOND
    holds = np.zeros((len(pool), len(macs)), dtype=np.float32)
    np.put_along_axis(holds, matrix, 1, 1)
    left = np.zeros(len(macs), dtype=np.float32)
    left[[number_of[row] for row in rows if row in number_of]] = 1
    left *= holds.any(0)
    left[-1] = 0
    chosen = []
    while left.any():
        best = int((holds @ left / seconds).argmax())
        chosen.append(pool[best])
        left[holds[best] > 0] = 0
    return tuple(chosen)


@functools.lru_cache(maxsize=1024)
def owners(arch: Arch) -> tuple[tuple[str, Row], ...]:
    """Module path and row of every block of an arch that has a row, in order of execution."""
    steps = iter(steps_of(arch))
    paths = [f"stages.{s}.{b}" for s, stage in enumerate(arch.stages) for b in range(len(stage))]
    return tuple((path, step.row) for path, step in zip(paths, steps, strict=True) if step.ops)


def module_path(name: str) -> str:
    """The module path that an exported node's name begins with: of `/stages.0.1/body/body.0/Conv`, `stages.0.1.body.0`.

    The exporter writes a child of a container as `body/body.0`; the last part is the operator's own name.
    """
    parts = name.lstrip("/").split("/")[:-1]
    path = ""
    for before, part in zip(["", *parts], parts, strict=False):
        path += part.removeprefix(before) if before and part.startswith(f"{before}.") else f".{part}"
    return path.removeprefix(".")


def attribute(runs: Sequence[Sequence[tuple[str, float]]], paths: Sequence[str]) -> Inside:
    """The time of each block: the median over runs of the sum of its nodes.

    Args:
        runs: names and microseconds of nodes in order of execution, of each run that counts.
        paths: module paths of the blocks.

    Raises:
        MeasureError: where most of the time belongs to nodes whose names say no block.
    """
    if not runs:
        raise MeasureError("the runtime gave no node times")
    times, nodes = np.zeros((len(runs), len(paths))), np.zeros(len(paths), dtype=int)
    lost = np.zeros(len(runs))
    for line, run in enumerate(runs):
        numbers, named = _owner_numbers(tuple(name for name, _ in run), tuple(paths))
        us = np.array([time for _, time in run])
        np.add.at(times[line], numbers, us)
        nodes = np.bincount(numbers, minlength=len(paths))
        lost[line] = us[~named].sum() / us.sum() if us.any() else 0.0
    if (share := float(np.median(lost))) > 1 - NAMED:  # one run that was disturbed says nothing
        raise MeasureError(
            f"{share:.0%} of the time belongs to nodes whose names say no block, such as {runs[0][0][0]!r}; "
            "this runtime cannot be profiled in situ: --method chains"
        )
    return Inside(tuple(map(float, np.median(times, 0))), tuple(map(int, nodes)))


@functools.lru_cache(maxsize=64)
def _owner_numbers(names: tuple[str, ...], paths: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For each node the number of its block, and whether its name said so."""
    number_of = {path: number for number, path in enumerate(paths)}
    numbers, named, last = [], [], 0
    for name in names:
        path = module_path(name)
        while path and path not in number_of:
            path = path.rpartition(".")[0]
        if OUTPUT.match(name):  # the last node may be named after the output of the graph
            path = paths[-1]
        named.append(bool(path))
        last = number_of[path] if path else last
        numbers.append(last)
    return np.array(numbers), np.array(named)


def inside_key(arch: Arch) -> str:
    """Names the samples of a profiled network in a journal: times of its blocks, then their numbers of nodes."""
    return f"inside {arch.id}"


def measure_inside(bench: Bench, archs: Sequence[Arch], clock: Clock, passes: Iterable[int]) -> None:
    """Profile the networks that the bench's log lacks, each in a fresh process of every pass, and again after a slow
    spell; why a network cannot be profiled stands in the bench's failures.
    """
    for number in passes:
        open_archs = [arch for arch in archs if _lacks(bench, number, arch)]
        for start in range(0, len(open_archs), BATCH):
            _inspect(bench, number, open_archs[start : start + BATCH], clock)


def lacking_inside(bench: Bench, archs: Iterable[Arch]) -> list[Arch]:
    """The networks that are still to be profiled, once for each process that lacks one."""
    return [arch for number in range(bench.settings.passes) for arch in archs if _lacks(bench, number, arch)]


def _inspect(bench: Bench, number: int, archs: Sequence[Arch], clock: Clock) -> None:
    probes = {arch: Probe(arch=arch) for arch in archs}
    files = bench.convert(probes.values())
    while True:  # ends: a network is lacking for so many tries, and one that takes the process down twice is given up
        left = [arch for arch in archs if _lacks(bench, number, arch)]
        left = [arch for arch in left if probes[arch].key not in bench.failures]
        if not left or clock.is_over:
            return
        try:
            with Inspector(bench.config, bench.settings, files) as inspector:
                for arch in left:
                    clock.say(f"pass {number + 1}: inside network {arch.id}")
                    _inspect_one(bench, number, inspector, probes[arch], files[probes[arch].key])
                    clock.add(NETWORK_SECONDS)
                    bench.hangs = 0
        except WorkerDeathError as death:
            bench.count_hang(death)
            bench.bury(death)


def _inspect_one(bench: Bench, number: int, inspector: Inspector, probe: Probe, file: Path) -> None:
    assert probe.arch is not None
    try:
        sentinel_us, runs = inspector.inspect(probe, file, RUNS, WARM_UP)
        inside = attribute(runs, [path for path, _ in owners(probe.arch)])
    except WorkerDeathError:
        raise
    except MeasureError as error:
        bench.failures[probe.key] = str(error)
        return
    values = (*(round(us, 2) for us in inside.us), *inside.nodes)
    bench.log.add(number, {inside_key(probe.arch): Sample(sentinel_us, values)})


def _lacks(bench: Bench, number: int, arch: Arch) -> bool:
    taken = bench.log.taken(number, inside_key(arch))
    return len(taken) < TRIES and not good(taken, reference_of(bench.log.samples))


def insides(samples: Samples, archs: Iterable[Arch]) -> dict[Arch, list[Inside]]:
    """What the profiled networks said, one entry for each process: of several samples the one least disturbed."""
    found: dict[Arch, list[Inside]] = {}
    reference = reference_of(samples)
    for arch in archs:
        for by_key in samples.values():
            if taken := by_key.get(inside_key(arch)):
                best = min(taken, key=lambda sample: sample.sentinel_us)
                half = len(best.calls_us) // 2
                scale = 1.0 if best.sentinel_us <= GATE * reference else reference / best.sentinel_us
                us = tuple(scale * value for value in best.calls_us[:half])
                found.setdefault(arch, []).append(Inside(us, tuple(map(int, best.calls_us[half:]))))
    return found


def node_cost_us(insides: Mapping[Arch, Sequence[Inside]], plain_us: Mapping[Arch, float]) -> float:
    """What the profiler adds to a node, in microseconds: the median over networks that are timed both ways.

    It is below zero where the time that a runtime spends between nodes, which no node has, is more than that.
    """
    extra = [
        (statistics.median(sum(inside.us) for inside in insides[arch]) - us) / sum(insides[arch][0].nodes)
        for arch, us in plain_us.items()
        if arch in insides
    ]
    return statistics.median(extra) if extra else 0.0


def row_times(insides: Mapping[Arch, Sequence[Inside]], node_us: float) -> dict[Row, tuple[float, float, int]]:
    """Time, how far fresh processes lie apart, and count of each row, in microseconds.

    The time is the median over networks and processes; processes are compared by their medians over networks.

    Args:
        insides: of each network one for each fresh process, in their order.
        node_us: what the profiler adds to a node.
    """
    found: dict[Row, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for arch, several in insides.items():
        for number, inside in enumerate(several):
            for (_, row), us, nodes in zip(owners(arch), inside.us, inside.nodes, strict=True):
                found[row][number].append(max(us - node_us * nodes, 0.0))
    times = {row: [us for several in by_process.values() for us in several] for row, by_process in found.items()}
    spreads = {row: np.ptp([statistics.median(us) for us in found[row].values()]) for row in found}
    return {row: (statistics.median(us), float(spreads[row]), len(us)) for row, us in times.items()}
