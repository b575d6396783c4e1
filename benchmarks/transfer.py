"""How well a table is transferred: each table in turn is the new device, the others are the sources; nothing is timed.

The measurements are the target's own networks; the error is on its card's networks, or on every other network where it
has no card, beside that of the full profile on the same. Run: python benchmarks/transfer.py TABLE TABLE...
"""

from __future__ import annotations

import argparse

import latency_tables
from nas.tables.table import NetworkEntry, Table
from nas.tables.transfer import LEAST, choose, fit, parts_of

COUNTS = (5, 10, 20, 40)


def main(names: list[str], counts: list[int]) -> None:
    """Transfer to each table from the others, and print the errors in percent."""
    tables = [Table.read(latency_tables.find(name)) for name in names]
    print(f"{'target':40}{'full profile':>14}" + "".join(f"{f'{count} networks':>14}" for count in counts))
    for target in tables:
        sources = [table for table in tables if table is not target]
        pool, checks = halves(target)
        full = Table(target.header, target.entries, pool, target.path, checks)
        errors = [mape(full)]
        errors += [mape(transferred(sources, target, pool, checks, count)) for count in counts if count <= len(pool)]
        header = target.header
        label = f"{header.device[:16]} {header.runtime} {header.precision} {header.threads}t"
        print(f"{label:40}" + "".join(f"{error:>13.1f}%" for error in errors))


def halves(table: Table) -> tuple[tuple[NetworkEntry, ...], tuple[NetworkEntry, ...]]:
    """Networks to measure, and networks to check."""
    return (table.networks, table.checks) if table.checks else (table.networks[::2], table.networks[1::2])


def transferred(
    sources: list[Table], target: Table, pool: tuple[NetworkEntry, ...], checks: tuple[NetworkEntry, ...], count: int
) -> Table:
    """The table from `count` networks of the target; those that calibrate lie evenly among the others."""
    known = {network.arch: network for network in pool}
    fitted, calibrating = parts_of(count)
    picked = choose(sources, tuple(known), fitted)
    rest = [network for network in pool if network.arch not in picked]
    even = [rest[number * (len(rest) - 1) // max(calibrating - 1, 1)] for number in range(calibrating)]
    table = fit(sources, target.header, [known[arch] for arch in picked], even)
    return Table(table.header, table.entries, table.networks, target.path, checks)


def mape(table: Table) -> float:
    """Error on the networks of the card, in percent."""
    assert table.card is not None
    return table.card.errors.mape_percent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="+", metavar="TABLE")
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help=f"networks to measure, {LEAST} or more")
    given = parser.parse_args()
    main(given.tables, given.counts)
