"""What a profile has to measure: which rows and networks a table lacks, and whether it may take them from here."""

from __future__ import annotations

import datetime
import functools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from nas.core.arch import Arch
from nas.core.errors import InputError, MeasureError, suggest
from nas.core.ops import Row
from nas.core.space import Space
from nas.networks.foreign import Foreign
from nas.profiling.backends import FileBackend, load_backend
from nas.profiling.bench import Item
from nas.profiling.device.journal import Journal, Log
from nas.profiling.device.timing import MOST_DRIFT, Noise, Settings, Times, noise_of
from nas.profiling.importance import in_order, rows_of_arch, usage
from nas.profiling.insitu import cover, inside_key, insides, node_cost_us, row_times
from nas.profiling.machine import this_machine
from nas.profiling.prediction import Prediction, predict
from nas.profiling.probes import Formula, Probe, formulas
from nas.profiling.process import RuntimeConfig
from nas.profiling.selection import typical_bytes, varied
from nas.tables.table import LEVELS, METHODS, MIN_NETWORKS, Entry, Header, NetworkEntry, Table, scope_of

DEFAULT = Settings()
CHAINS, IN_SITU = METHODS[:2]
AUTO = "auto"
TIMED_BOTH_WAYS = 8  # networks that are timed in situ and as a whole
IN_SITU_PROTOCOL = "node times inside sampled networks, median over networks and processes"
IN_SITU_PIXELS = 128  # blocks of smaller images take few ticks of a node profiler's clock
#: header fields in which everything in a table agrees
SAME = ("device", "cpu", "runtime", "runtime_version", "precision", "threads", "form", "level", "method")


@dataclass(frozen=True)
class Job:
    """Rows of a space, to be measured into a table.

    Attributes:
        space: whose rows.
        path: of the table.
        config: runtime and its settings.
        level: what a row is.
        settings: how long to measure.
        seed: of the choice of networks.
        only: these rows alone; None for all of the space.
        method: how rows are timed.

    Raises:
        InputError: for an unknown level or method, and where the table at `path` comes from another device, runtime
            version or settings, naming both.
        MeasureError: where the runtime is not installed or cannot run here.
    """

    elsewhere: ClassVar[bool] = False  # whether another device runs it, as it does a bundle
    space: Space
    path: Path
    config: RuntimeConfig
    level: str = "block"
    settings: Settings = DEFAULT
    seed: int = 0
    only: tuple[Row, ...] | None = None
    method: str = CHAINS

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InputError(f"level: expected {' or '.join(LEVELS)}, got {self.level!r}")
        if self.method not in (legal := methods_of(self.config.runtime, self.level)):
            why = " Only some runtimes time the nodes of a network, and those of single ops are not told apart."
            raise InputError(f"{suggest('method', self.method, legal)}" + (why if self.method == IN_SITU else ""))
        backend = load_backend(self.config.runtime)(self.config.threads, self.config.precision)
        if not self.elsewhere:
            backend.require_machine()
        if self.table is not None:
            self._check(asdict(self.table.header), self.path)

    @property
    def journal_path(self) -> Path:
        """Raw samples of this space go here."""
        scope = scope_of(self.space).replace("/", "-")
        return self.path.with_name(f"{self.path.name}.{scope}.samples.jsonl")

    @functools.cached_property
    def table(self) -> Table | None:
        """The table as it is, None where there is none yet."""
        return Table.read(self.path) if self.path.exists() else None

    @functools.cached_property
    def wanted(self) -> tuple[Row, ...]:
        """The rows that the table shall have."""
        return self._space_rows if self.only is None else tuple(dict.fromkeys(self.only))

    @functools.cached_property
    def _space_rows(self) -> tuple[Row, ...]:
        return self.space.rows() if self.level == "block" else self.space.op_rows()

    @functools.cached_property
    def lacking(self) -> tuple[Row, ...]:
        """The wanted rows that the table lacks or has only predicted, the most used first."""
        measured = {entry.row for entry in self._known_entries if entry.source != "predicted"}
        used = usage(self.space, self.level) if self.only is None else {}
        return in_order((row for row in self.wanted if row not in measured), used)

    @functools.cached_property
    def inside(self) -> tuple[Arch, ...]:
        """The networks inside which the lacking rows are timed; none but in situ, and for a few rows of an arch."""
        if self.method != IN_SITU or self.only is not None or not self.lacking:
            return ()
        return cover(self.space, self.lacking, self.seed)

    @functools.cached_property
    def formulas(self) -> tuple[Formula, ...]:
        """How to time each row that is lacking and inside no network."""
        covered = {row for arch in self.inside for row in rows_of_arch(arch, self.level)}
        alone = [row for row in self.lacking if row not in covered]
        if not alone:
            return ()
        return formulas(alone, self._space_rows, self.space.input_shape, typical_bytes(self.space))

    @property
    def lacks_networks(self) -> int:
        """How many networks are still to be measured; none where the rows that price them will not be there."""
        known = {entry.row for entry in self._known_entries}.union(self.wanted)
        if not known.issuperset(self._space_rows):
            return 0
        count = self.settings.networks if self.only is None else min(self.settings.networks, MIN_NETWORKS)
        return max(min(count, self.space.count()) - len(self._known_networks), 0)

    @property
    def _known_entries(self) -> tuple[Entry, ...]:
        return () if self.table is None else self.table.entries

    @functools.cached_property
    def _known_networks(self) -> tuple[NetworkEntry, ...]:
        """The networks of this space that the table has."""
        found = () if self.table is None else self.table.networks
        here = (self.space.name, self.space.input_shape)
        return tuple(network for network in found if (network.arch.family, network.arch.input_shape) == here)

    @property
    def complete(self) -> bool:
        """Whether the table lacks nothing."""
        return self.table is not None and not self.lacking and not self.lacks_networks

    def networks(self, journal: Journal, known: Table, most: int | None = None) -> tuple[Arch, ...]:
        """The networks to measure, `most` at most, once rows are known: those that the journal names, and new ones.

        Those are evenly spread in log predicted latency, as a search and a validation meet networks. None where a row
        of the space is unknown. All that are chosen stand in the journal then.
        """
        if known.missing(self._space_rows):
            return ()
        count = self.lacks_networks if most is None else min(self.lacks_networks, most)
        begun = self._begun(journal)
        if len(begun) < count:
            rng = random.Random(self.seed)
            taken = {network.arch for network in (*known.checks, *self._known_networks)}.union(begun)
            begun += varied(self.space, count - len(begun), rng, known.cost_of_row(self.space), taken)
            journal.choose(tuple(dict.fromkeys((*journal.networks, *(arch.to_json() for arch in begun)))))
        return begun[:count]

    def likely_networks(self, journal: Journal | None = None) -> tuple[Arch, ...]:
        """Networks that take about as long to measure as those that will be, for estimates before rows are known."""
        begun = () if journal is None else self._begun(journal)
        rng, count = random.Random(self.seed), self.lacks_networks
        return (*begun, *dict.fromkeys(self.space.sample(rng) for _ in range(count - len(begun))))[:count]

    def _begun(self, journal: Journal) -> tuple[Arch, ...]:
        """The networks that the journal names and that neither the table nor, meanwhile, its card has."""
        checks = () if self.table is None else self.table.checks
        measured = {network.arch for network in (*self._known_networks, *checks)}
        return tuple(arch for arch in map(Arch.from_json, journal.networks) if arch not in measured)

    def both_ways(self, networks: Sequence[Arch]) -> tuple[Arch, ...]:
        """The networks that are timed as a whole and in situ, which tells what the node profiler costs: some of those
        that are measured, or where there are none, of those that the table has. None but in situ.
        """
        known = tuple(networks) or tuple(network.arch for network in self._known_networks)
        return known[:: max(len(known) // TIMED_BOTH_WAYS, 1)] if self.inside else ()

    def items(self, networks: Sequence[Arch] = ()) -> list[Item]:
        """Everything to time, the networks spread evenly among the rows."""
        items: list[Item] = [formula.terms for formula in self.formulas]
        step = max(len(items) // max(len(networks), 1), 1)
        for number, arch in enumerate(networks):
            items.insert(number * (step + 1), network_item(arch))
        return items

    def header(self, variant: str = "") -> Header:
        """What a new table would say of itself."""
        machine = this_machine(self.config.runtime)
        return Header(
            device=machine.slug,
            cpu=machine.cpu,
            cores=machine.cores,
            runtime=self.config.runtime,
            runtime_version=load_backend(self.config.runtime).version(),
            variant=variant,
            precision=self.config.precision,
            threads=self.config.threads,
            level=self.level,
            spaces=(),
            method=self.method,
            protocol=f"{IN_SITU_PROTOCOL}; others: {self.settings}" if self.method == IN_SITU else str(self.settings),
            date=datetime.date.today().isoformat(),
            sentinel_us=0.0,
        )

    def begin(self, journal: Journal, variant: str) -> None:
        """Write the first line of a new journal."""
        journal.begin(asdict(self.header(variant)))

    def check(self, journal: Journal) -> None:
        """Raise where a journal that was begun before does not fit.

        Raises:
            InputError: where its samples come from another device, runtime version or settings, naming both.
        """
        if journal.header is not None:
            self._check(journal.header, journal.path)

    def _check(self, found: Mapping[str, Any], where: Path) -> None:
        mine = asdict(self.header())
        for name in SAME:
            old = tuple(found[name]) if isinstance(found[name], list) else found[name]
            if old != mine[name]:
                raise InputError(
                    f"{where}: holds measurements with {name} {old!r}, this profile has {mine[name]!r}; "
                    "they do not go into one table. Write to another one with --table"
                )

    def result(
        self,
        log: Log,
        variant: str,
        networks: Sequence[Arch] = (),
        passes: int | None = None,
        predicted: Iterable[Entry] = (),
    ) -> Table:
        """The table with everything that the log has complete samples of, in the first `passes` or all.

        Args:
            log: raw samples.
            variant: of the backend.
            networks: those that may be in the log.
            passes: how many count; None for all.
            predicted: rows that count where they are not measured.

        Raises:
            MeasureError: where the machine is in another state than when the table was made, beyond what one factor
                mends.
        """
        times = Times(log.samples)
        header = self.table.header if self.table is not None else self.header(variant)
        if self.table is None:
            header = replace(header, sentinel_us=round(times.reference_us, 2))
        scale = header.sentinel_us / times.reference_us  # of a table that gets new rows in another state of the machine
        if abs(self.drift(log)) > MOST_DRIFT:
            raise MeasureError(
                f"{self.path}: the reference block takes {times.reference_us:.0f} us now and took "
                f"{header.sentinel_us:.0f} us when the table was made; over {MOST_DRIFT:.0%} apart, new rows do not go "
                "with the old ones. Nothing was added. Close other programs and run the same command again, which "
                "measures anew, or write to another table with --table"
            )
        entries = {entry.row: entry for entry in (*self._known_entries, *predicted)}
        measured = {} if self.table is None else {network.arch: network for network in self.table.networks}
        entries |= {entry.row: entry for entry in self._inside_entries(log, times, networks, passes, scale)}
        for formula in self.formulas:
            if self._finished(log, formula.terms, passes):
                timing = times.row(formula)
                us, spread_us = timing.us * scale, timing.spread_us * scale
                entries[formula.row] = Entry(formula.row, us, spread_us, timing.count)
        for arch in networks:
            fits = arch not in measured and entries.keys() >= set(rows_of_arch(arch, self.level))
            if fits and self._finished(log, network_item(arch), passes):
                timing = times.timing(Probe(arch=arch).key)
                measured[arch] = NetworkEntry(arch, timing.us * scale, timing.spread_us * scale, timing.count)
        checks = () if self.table is None else self.table.checks
        header = replace(header, noise=self._noise_with(self.noise(log, networks)))
        return Table(self._with_space(header, entries), entries.values(), measured.values(), self.path, checks)

    def _inside_entries(
        self, log: Log, times: Times, networks: Sequence[Arch], passes: int | None, scale: float
    ) -> list[Entry]:
        """The lacking rows that stand in networks which were profiled in every process."""
        if not self.inside:
            return []
        count = self.settings.passes if passes is None else passes
        archs = dict.fromkeys((*self.inside, *self.both_ways(networks)))
        found = {arch: said for arch, said in insides(log.samples, archs).items() if len(said) >= count}
        plain = {network.arch: network.us / scale for network in self._known_networks}
        plain |= {arch: times.us(key) for arch in networks if (key := Probe(arch=arch).key) in times}
        rows = row_times({arch: found[arch] for arch in self.inside if arch in found}, node_cost_us(found, plain))
        return [
            Entry(row, scale * rows[row][0], scale * rows[row][1], rows[row][2]) for row in self.lacking if row in rows
        ]

    def drift(self, log: Log) -> float:
        """How much longer the reference block takes than when the table was made, as a fraction; 0 without a table."""
        if self.table is None or not log.has_samples:
            return 0.0
        return Times(log.samples).reference_us / self.table.header.sentinel_us - 1

    def predict(self, table: Table, without: Iterable[Row] = ()) -> Prediction | None:
        """The wanted rows that a table has not measured, predicted from those that it has; None where there are none.

        Args:
            table: with measured rows.
            without: rows to leave out, such as those that the runtime cannot run.

        Raises:
            MeasureError: where too few rows are measured.
        """
        measured = [entry for entry in table.entries if entry.source == "measured"]
        known = {entry.row for entry in measured}.union(without)
        rows = [row for row in self.wanted if row not in known]
        return predict(measured, rows) if rows else None

    def noise(self, log: Log, networks: Sequence[Arch]) -> Noise:
        """How disturbed the machine was while what the table lacked was measured."""
        keys = {probe.key for item in self.items(networks) for probe, _ in item}
        return noise_of(log.samples, keys.union(map(inside_key, (*self.inside, *self.both_ways(networks)))))

    def _noise_with(self, new: Noise) -> float | None:
        """What the header says of noise with what is new; of an old table that says nothing, only that it is noisy."""
        known = 0.0 if self.table is None else self.table.header.noise
        return None if known is None and not new.is_too_much else round(max(known or 0.0, new.slow), 3)

    def _with_space(self, header: Header, rows: Iterable[Row]) -> Header:
        """The header of a table with these rows."""
        whole = self.space.whole or self.space
        needed = whole.rows() if self.level == "block" else whole.op_rows()
        if not set(rows).issuperset(needed):
            return header
        return replace(header, spaces=tuple(dict.fromkeys((*header.spaces, scope_of(self.space)))))

    def _finished(self, log: Log, item: Item, passes: int | None) -> bool:
        return all(
            len(log.taken(number, probe.key)) >= self.settings.rounds
            for number in range(self.settings.passes if passes is None else passes)
            for probe, _ in item
        )


def methods_of(runtime: str, level: str) -> tuple[str, ...]:
    """How the rows of a runtime can be timed."""
    backend = load_backend(runtime)
    in_situ = level == "block" and issubclass(backend, FileBackend) and backend.profiles_nodes
    return (CHAINS, IN_SITU) if in_situ else (CHAINS,)


def method_for(space: Space, runtime: str, level: str) -> str:
    """The method that validated better on a runtime."""
    wanted = load_backend(runtime).method
    return wanted if wanted in methods_of(runtime, level) and space.input_shape[-1] >= IN_SITU_PIXELS else CHAINS


def network_item(network: Arch | Foreign) -> Item:
    """A whole network or model, to be timed."""
    return ((Probe.of(network), 1.0),)
