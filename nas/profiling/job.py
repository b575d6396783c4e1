"""What a profile has to measure: which rows and networks a table lacks, and whether it may take them from here."""

from __future__ import annotations

import datetime
import functools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nas.arch import Arch, calls_of
from nas.errors import InputError
from nas.latency import LEVELS, MIN_NETWORKS, Entry, Header, Network, Table
from nas.ops import Row
from nas.profiling.backends import load_backend
from nas.profiling.bench import Item
from nas.profiling.device import this_machine
from nas.profiling.probes import Formula, Probe, formulas
from nas.profiling.process import Engine
from nas.profiling.protocol import Settings, Times
from nas.profiling.samples import Journal
from nas.profiling.selection import spread, typical_bytes
from nas.space import Space
from nas.tracing import calls_of_unit

DEFAULT = Settings()
#: header fields in which everything in a table agrees
SAME = ("device", "cpu", "runtime", "runtime_version", "precision", "threads", "form", "level", "space", "input_shape")


@dataclass(frozen=True)
class Job:
    """Rows of a space, to be measured into a table.

    Attributes:
        space: whose rows.
        path: of the table.
        engine: runtime and its settings.
        level: what a row is.
        settings: how long to measure.
        seed: of the choice of networks.
        only: these rows alone; None for all of the space.

    Raises:
        InputError: where the table at `path` comes from another device, runtime version or settings, naming both.
    """

    space: Space
    path: Path
    engine: Engine
    level: str = "block"
    settings: Settings = DEFAULT
    seed: int = 0
    only: tuple[Row, ...] | None = None

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InputError(f"level: expected {' or '.join(LEVELS)}, got {self.level!r}")
        load_backend(self.engine.runtime)(self.engine.threads, self.engine.precision)  # raises where it cannot run
        if self.table is not None:
            self._check(asdict(self.table.header), self.path)

    @property
    def journal_path(self) -> Path:
        """Raw samples go here."""
        return self.path.with_name(self.path.name + ".samples.jsonl")

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
    def formulas(self) -> tuple[Formula, ...]:
        """How to time each row that the table lacks; neighbours in a network stand near each other."""
        lacking = self.wanted if self.table is None else self.table.missing(self.wanted)
        found = formulas(lacking, self._space_rows, self.space.input_shape, typical_bytes(self.space))
        return tuple(sorted(found, key=lambda formula: (-_positions(formula.row), str(formula.row))))

    @property
    def wants_networks(self) -> bool:
        """Whether networks are missing, and the rows that price them will be there."""
        if self.table is not None and len(self.table.networks) >= MIN_NETWORKS:
            return False
        known = set(self.wanted).union(() if self.table is None else (entry.row for entry in self.table.entries))
        return self.settings.networks > 0 and known.issuperset(self._space_rows)

    @property
    def complete(self) -> bool:
        """Whether the table lacks nothing."""
        return self.table is not None and not self.formulas and not self.wants_networks

    def networks(self, journal: Journal, known: Table) -> tuple[Arch, ...]:
        """The networks to measure, once rows are known: those that the journal has begun with, else new ones.

        Those are evenly spread in log predicted latency, as a search and a validation meet networks. None where a row
        of the space is unknown.
        """
        if not self.wants_networks or known.missing(self._space_rows):
            return ()
        if journal.networks:
            return tuple(map(Arch.from_json, journal.networks))
        return spread(self.space, self.settings.networks, random.Random(self.seed), known.row_us)

    def likely_networks(self, journal: Journal | None = None) -> tuple[Arch, ...]:
        """Networks that take about as long to measure as those that will be, for estimates before rows are known."""
        if not self.wants_networks:
            return ()
        if journal is not None and journal.networks:
            return tuple(map(Arch.from_json, journal.networks))
        rng = random.Random(self.seed)
        return tuple(dict.fromkeys(self.space.sample(rng) for _ in range(self.settings.networks)))

    def items(self, networks: Sequence[Arch] = ()) -> list[Item]:
        """Everything to time, the networks spread evenly among the rows."""
        items: list[Item] = [formula.terms for formula in self.formulas]
        step = max(len(items) // max(len(networks), 1), 1)
        for number, arch in enumerate(networks):
            items.insert(number * (step + 1), network_item(arch))
        return items

    def header(self) -> Header:
        """What a new table would say of itself."""
        machine = this_machine()
        return Header(
            device=machine.slug,
            cpu=machine.cpu,
            cores=machine.cores,
            runtime=self.engine.runtime,
            runtime_version=load_backend(self.engine.runtime).version(),
            precision=self.engine.precision,
            threads=self.engine.threads,
            level=self.level,
            space=self.space.name,
            input_shape=self.space.input_shape,
            classes=self.space.classes,
            date=datetime.date.today().isoformat(),
            protocol=str(self.settings),
            sentinel_us=0.0,
        )

    def begin(self, journal: Journal, variant: str) -> None:
        """Write the first line of a new journal."""
        journal.begin(asdict(self.header()) | {"variant": variant})

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

    def result(self, journal: Journal, variant: str, networks: Sequence[Arch] = (), passes: int | None = None) -> Table:
        """The table with everything that the journal has complete samples of, in the first `passes` or all."""
        times = Times(journal.samples)
        header = self.table.header if self.table is not None else self.header()
        if self.table is None:
            protocol = header.protocol + (f"; variant {variant}" if self._has_variants else "")
            header = replace(header, sentinel_us=round(times.reference_us, 2), protocol=protocol)
        scale = header.sentinel_us / times.reference_us  # of a table that gets new rows in another state of the machine
        entries = [] if self.table is None else list(self.table.entries)
        measured = {} if self.table is None else {network.arch: network for network in self.table.networks}
        for formula in self.formulas:
            if self._finished(journal, formula.terms, passes):
                timing = times.row(formula)
                entries.append(Entry(formula.row, timing.us * scale, timing.spread_us * scale, timing.count))
        rows = {entry.row for entry in entries}
        for arch in networks:
            fits = arch not in measured and rows.issuperset(rows_of_arch(arch, self.level))
            if fits and self._finished(journal, network_item(arch), passes):
                timing = times.timing(Probe(arch=arch).key)
                measured[arch] = Network(arch, timing.us * scale, timing.spread_us * scale, timing.count)
        return Table(header, entries, measured.values(), self.path)

    @property
    def _has_variants(self) -> bool:
        return len(load_backend(self.engine.runtime).variants) > 1

    def _finished(self, journal: Journal, item: Item, passes: int | None) -> bool:
        return all(
            len(journal.taken(number, probe.key)) >= self.settings.rounds
            for number in range(self.settings.passes if passes is None else passes)
            for probe, _ in item
        )


def network_item(arch: Arch) -> Item:
    """A whole network, to be timed."""
    return ((Probe(arch=arch), 1.0),)


def rows_of_arch(arch: Arch, level: str = "block") -> tuple[Row, ...]:
    """The rows that an arch needs, each once."""
    blocks = [call.row for call in calls_of(arch)]
    if level == "block":
        return tuple(dict.fromkeys(blocks))
    return tuple(dict.fromkeys(op.row for row in blocks for op in calls_of_unit(row).ops))


def variant_of(header: Header) -> str | None:
    """The backend's variant that a table was measured with; None for a backend that has but one."""
    found = re.search(r"; variant (\w+)$", header.protocol)
    return found[1] if found else None


def _positions(row: Row) -> int:
    shape = row.inputs[0]
    return shape[2] * shape[3] if shape.is_map else shape[1] if len(shape) == 3 else 1
