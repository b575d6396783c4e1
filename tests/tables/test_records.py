from __future__ import annotations

import random
from dataclasses import replace

import pytest

import search_spaces
from nas.core.errors import InputError, TableError
from nas.tables import records
from nas.tables.records import measured_text, scope_of, space_of
from nas.tables.table import Entry, NetworkEntry, Table
from tests.small import TINY, fake_table

ARCHS = tuple(dict.fromkeys(TINY.sample(random.Random(seed)) for seed in range(30)))


def full_table() -> Table:
    """A table with rows of every source, networks with and without memory, and a card."""
    plain = fake_table(TINY)
    first, second, *rest = plain.entries
    entries = [replace(first, source="predicted", spread_us=2.5), replace(second, source="imported"), *rest]
    taken = {network.arch for network in plain.networks}
    checks = [NetworkEntry(arch, 100.0 + n, 0.5, 30) for n, arch in enumerate(ARCHS) if arch not in taken][:6]
    networks = [replace(plain.networks[0], peak_bytes=123_456), *plain.networks[1:]]
    header = replace(plain.header, checked="6 networks, seed 1, 2026-11-23, sentinel +0.1%")
    return Table(header, entries, networks, None, checks)


def test_sources_memory_and_the_card_survive_the_file(tmp_path):
    table = full_table()
    again = Table.read(table.write(tmp_path / "t.csv"))
    assert again.header == table.header
    assert {e.row: (e.source, e.spread_us) for e in again.entries} == {
        e.row: (e.source, e.spread_us) for e in table.entries
    }
    assert sorted(e.source for e in again.entries)[:3] == ["imported", "measured", "measured"]
    assert sorted(n.peak_bytes or 0 for n in again.networks)[-2:] == [0, 123_456]
    assert [n.arch for n in again.checks] == [n.arch for n in table.checks]
    assert again.to_text() == table.to_text()
    assert again.card.errors.mape_percent == pytest.approx(table.card.errors.mape_percent, rel=1e-3)  # rounded


def test_the_hash_is_of_what_predictions_rest_on():
    table = full_table()
    bare = Table(replace(table.header, checked=""), table.entries, table.networks)
    assert bare.hash == table.hash
    assert Table(table.header, table.entries, table.networks[1:], None, table.checks).hash != table.hash
    assert "# checked" in table.to_text()
    kept = measured_text(table.to_text())
    assert not any(line.startswith(("check,", "# computed", "# checked")) for line in kept.splitlines())


def test_computed_lines_are_not_read(tmp_path):
    table = full_table()
    text = table.to_text()
    assert "# computed card: MAPE" in text
    assert "# computed calibration at 3x32x32: " in text
    changed = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("# computed"))
    (tmp_path / "t.csv").write_text(changed)
    assert Table.read(tmp_path / "t.csv").to_text() == text


@pytest.mark.parametrize(
    ("find", "old", "new", "message"),
    [
        (
            "row,",
            ",measured,",
            ",guessed,",
            r"column source: expected measured or predicted or imported, got 'guessed'",
        ),
        (
            "network,",
            ",123456",
            ",many",
            r"column peak_bytes: expected a whole number from 1 to 1000000000000000, got 'many'",
        ),
        (
            "network,",
            ",123456",
            ",-5",
            r"column peak_bytes: expected a whole number from 1 to 1000000000000000, got '-5'",
        ),
        ("# spaces", "efficientformer-32", "efficientformer-32@3x64", r":\d+: spaces"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, find, old, new, message):
    lines = full_table().to_text().splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith(find) and old in line)
    lines[number] = lines[number].replace(old, new)
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(TableError, match=message):
        Table.read(tmp_path / "t.csv")


def test_calibration_and_card_may_not_share_a_network(tmp_path):
    table = full_table()
    with pytest.raises(TableError, match=f"the calibration and the card share networks: {table.checks[0].arch.id}"):
        Table(table.header, table.entries, [*table.networks, table.checks[0]], None, table.checks)
    text = table.to_text()
    line = next(line for line in text.splitlines() if line.startswith("network,"))
    (tmp_path / "t.csv").write_text(text + line.replace("network,", "check,") + "\n")
    with pytest.raises(TableError, match="second row for network"):
        Table.read(tmp_path / "t.csv")


def test_a_space_of_another_size_is_spelled_out():
    own = search_spaces.load("efficientformer-32")
    assert scope_of(own) == "efficientformer-32"
    other = replace(own, input_shape=(3, 64, 64), classes=7)
    assert scope_of(other) == "efficientformer-32@3x64x64/7"
    for space in (own, other):
        found = space_of(scope_of(space))
        assert (found.name, found.input_shape, found.classes) == (space.name, space.input_shape, space.classes)
    with pytest.raises(InputError, match="unknown space 'efficientformer-33'"):
        space_of("efficientformer-33")


def test_a_row_keeps_three_digits_of_a_microsecond(tmp_path):
    table = fake_table(TINY)
    entries = [Entry(table.entries[0].row, 1.23456, 0.00049, 7), *table.entries[1:]]
    again = Table.read(Table(table.header, entries).write(tmp_path / "t.csv"))
    assert (again.entries[0].us, again.entries[0].spread_us, again.entries[0].count) == (1.235, 0.0, 7)


def test_a_space_is_looked_for_once_however_many_networks_a_table_has(monkeypatch, tmp_path):
    counts, load = [], search_spaces.load
    for networks in (3, 12):
        text, asked = fake_table(TINY, networks=networks).to_text(), []
        monkeypatch.setattr(search_spaces, "load", lambda name, asked=asked: asked.append(name) or load(name))
        content = records.read_text(text, tmp_path / "t.csv")
        counts.append(len(asked))
    assert len(content.networks) > 3
    assert counts[0] == counts[1]
