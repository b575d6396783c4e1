from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from nas.core.arch import calls_of
from nas.core.errors import BudgetError, InputError, MissingLatency, TableError
from nas.tables.calibration import calibrate
from nas.tables.table import Entry, NetworkEntry, Table
from tests.small import TINY, fake_table, fake_us


def test_a_price_is_the_calibrated_sum_of_the_rows(rng):
    table = fake_table(TINY)
    arch = TINY.sample(rng)
    total = 1.1 * sum(fake_us(call.row) for call in calls_of(arch))
    latency = table.price(calls_of(arch))
    assert latency.total_us == pytest.approx(total)
    assert sum(us for _, us in latency.blocks) == pytest.approx(total)
    assert latency.calibrated


def test_an_uncalibrated_price_says_so(rng):
    table = fake_table(TINY, networks=3)
    assert table.calibrations == {}
    latency = table.price(calls_of(TINY.sample(rng)))
    assert (latency.calibrated, latency.low_us, latency.high_us) == (False, None, None)
    assert "uncalibrated" in str(latency)


def test_a_missing_row_is_an_error_that_names_every_one(rng):
    table = fake_table(TINY)
    arch = TINY.sample(rng)
    calls = calls_of(arch)
    lacking = {str(calls[0].row), str(calls[-1].row)}
    part = Table(table.header, [entry for entry in table.entries if str(entry.row) not in lacking])
    with pytest.raises(MissingLatency, match=r"lacks 2 of .* block rows") as caught:
        part.price(calls)
    assert set(caught.value.missing) == lacking
    assert "nas profile --table" in str(caught.value)
    with pytest.raises(MissingLatency):
        part.require(TINY)


def test_op_rows_price_the_ops_inside_the_blocks(rng):
    rows = [Entry(row, fake_us(row), 0.1, 5) for row in TINY.op_rows()]
    table = Table(replace(fake_table(TINY).header, level="op"), rows)
    arch = TINY.sample(rng)
    calls = calls_of(arch)
    expected = sum(fake_us(op.row) for call in calls for op in call.ops)
    assert table.price(calls).total_us == pytest.approx(expected)
    assert table.raw_us(calls) == pytest.approx(expected)
    matrix = TINY.encode([arch])
    assert table.price_matrix(TINY, matrix)[0] == pytest.approx(expected)


def test_a_matrix_is_priced_as_one_by_one(rng):
    table = fake_table(TINY, error=0.02)
    archs = [TINY.sample(rng) for _ in range(300)]
    one_by_one = [table.price(calls_of(arch)).total_us for arch in archs]
    np.testing.assert_allclose(table.price_matrix(TINY, TINY.encode(archs)), one_by_one)
    with pytest.raises(InputError, match="row numbers from"):
        table.price_matrix(TINY, TINY.encode(archs) + len(TINY.rows()))


def test_the_extremes_are_exact():
    table = fake_table(TINY, error=0.01)
    prices = [table.price(calls_of(arch)).total_us for arch in TINY.archs()]
    (low, smallest), (high, largest) = table.extremes(TINY)
    assert low == pytest.approx(min(prices))
    assert high == pytest.approx(max(prices))
    assert table.price(calls_of(smallest)).total_us == pytest.approx(low)
    assert table.price(calls_of(largest)).total_us == pytest.approx(high)


def test_another_resolution_is_refused():
    with pytest.raises(TableError, match=r"was measured for input 3x32x32, space .* has 3x64x64.*nas profile"):
        fake_table(TINY).require(replace(TINY, input_shape=(3, 64, 64)))


def in_one_kind(sums):
    return [{"MB4D": float(total)} for total in sums]


@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_a_calibration_finds_the_line_it_was_made_from(offset):
    sums = np.geomspace(100, 1000, 10)
    fit = calibrate(in_one_kind(sums), 1.25 * sums + offset)
    assert fit.scale == pytest.approx(1.25)
    assert fit.offset_us == pytest.approx(offset)
    assert fit.mape_percent == pytest.approx(0, abs=1e-9)


def test_an_offset_needs_a_reason():
    generator = np.random.default_rng(0)
    for _ in range(20):  # noise of 3 % and no offset: a spurious one would mislead far from the networks
        sums = np.geomspace(100, 1000, 8)
        fit = calibrate(in_one_kind(sums), 1.1 * sums * generator.normal(1, 0.03, 8))
        assert fit.offset_us < 0.1 * sums[0]


def test_the_held_out_error_by_hand():
    # one scale fitted on four of (1, 1, 1, 1, 2) times the sum, least squares of relative errors
    sums, measured = np.ones(5) * 100, np.array([100.0, 100, 100, 100, 200])
    fit = calibrate(in_one_kind(sums), measured)
    others = 1.0  # fitted on the four equal ones
    mixed = (3 * 1 + 0.5) / (3 * 1 + 0.25)  # fitted on three of them and the odd one
    errors = [abs(mixed - 1)] * 4 + [abs(others * 100 - 200) / 200]
    assert fit.mape_percent == pytest.approx(100 * np.mean(errors))
    assert fit.ratios == pytest.approx(sorted([1 / mixed] * 4 + [2.0]))


def test_a_table_survives_its_file(tmp_path):
    table = fake_table(TINY, error=0.02)
    path = table.write(tmp_path / "box" / "fake-fp32-1t.csv")
    again = Table.read(path)
    assert again.header == table.header
    assert again.hash == table.hash
    assert [entry.row for entry in again.entries] == [entry.row for entry in table.entries]
    assert [network.arch for network in again.networks] == [network.arch for network in table.networks]
    (fit,), (first,) = again.calibrations.values(), table.calibrations.values()
    assert fit.scale == pytest.approx(first.scale, rel=1e-3)
    assert list(tmp_path.rglob("*.tmp")) == []


def break_line(text: str, find: str, change) -> str:
    lines = text.splitlines()
    number = next(n for n, line in enumerate(lines) if find in line)
    lines[number : number + 1] = change(lines[number])
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("find", "change", "message"),
    [
        ("# millinas", lambda line: ["hello"], r":1: this is no millinas latency table"),
        ("# millinas", lambda line: [line[:-1] + "9"], r":1: format 9; this version of nas reads 2"),
        ("# units", lambda line: ["# units: ms"], r":17: units: expected us, got 'ms'"),
        ("# level", lambda line: ["# level: node"], r"level: expected block or op, got 'node'"),
        ("# threads", lambda line: ["# threads: one"], r"threads: expected int, got 'one'"),
        ("# threads", lambda line: [], r"the header lacks 'threads'"),
        ("# spaces", lambda line: ["# spaces: nowhere"], r"unknown space 'nowhere'"),
        ("# method", lambda line: ["# method: guess"], r"method: expected chains or .*, got 'guess'"),
        ("kind,name", lambda line: ["kind,name"], r":20: expected the columns kind,name,fields"),
        ("row,Pooled", lambda line: [line, line], r":\d+: second row for Pooled"),
        (
            "row,Pooled",
            lambda line: [line.replace("Pooled", "Poold")],
            r"column name or fields: unknown block or op 'Poold'",
        ),
        ("row,MB4D", lambda line: [line.replace("ratio", "rato")], r"cannot read field 'rato=2'"),
        ("row,Pooled", lambda line: [line + ",1"], r":\d+: expected 9 columns, got 10"),
        ("row,Pooled", lambda line: [line.replace(",0.100,", ",nan,")], r"column spread_us: expected a finite number"),
        (
            "row,Pooled",
            lambda line: [line.replace(",0.100,", ",fast,")],
            r"column spread_us: expected a number, got 'fast'",
        ),
        ("row,Pooled", lambda line: [line.replace("1x", "1y")], r"column inputs: shape: expected sizes like"),
        (
            "row,Pooled",
            lambda line: [line.replace("row,", "roe,")],
            r"column kind: expected row, network or check, got 'roe'",
        ),
        (
            "network,",
            lambda line: [line.replace("MB4D", "MB5D")],
            r"unknown block or op 'MB5D'",
        ),
        ("network,", lambda line: [line, line], r"second row for network"),
    ],
)
def test_a_bad_file_is_named_by_line_and_column(tmp_path, find, change, message):
    path = tmp_path / "t.csv"
    path.write_text(break_line(fake_table(TINY).to_text(), find, change))
    with pytest.raises(InputError, match=message):
        Table.read(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TableError, match=r"nothing\.csv: cannot be read as a latency table"):
        Table.read(tmp_path / "nothing.csv")


def test_two_rows_of_one_key_are_refused():
    table = fake_table(TINY)
    with pytest.raises(TableError, match="two rows have one key"):
        Table(table.header, [*table.entries, table.entries[0]])


def test_the_hash_follows_the_content():
    table = fake_table(TINY)
    other = Table(table.header, [replace(table.entries[0], us=1.0), *table.entries[1:]])
    assert table.hash == fake_table(TINY).hash != other.hash


def power_table(space):
    """A table whose networks take 0.7 times their sum to the power of 1.1."""
    rows = fake_table(space, networks=0)
    archs = [space.sample(random.Random(seed)) for seed in range(12)]
    measured = {arch: 0.7 * rows.raw_us(calls_of(arch)) ** 1.1 for arch in archs}
    return Table(rows.header, rows.entries, [NetworkEntry(arch, us, 0.1, 3) for arch, us in measured.items()])


def test_a_power_is_found_where_large_networks_take_longer_than_their_rows(rng):
    table = power_table(TINY)
    fit = table.calibrations[TINY.input_shape]
    assert (fit.power, fit.scale) == pytest.approx((1.1, 0.7))
    calls = calls_of(TINY.sample(rng))
    latency = table.price(calls)
    assert latency.total_us == pytest.approx(0.7 * sum(fake_us(call.row) for call in calls) ** 1.1)
    assert sum(us for _, us in latency.blocks) == pytest.approx(latency.total_us)


def test_extremes_and_matrices_follow_a_power(rng):
    table = power_table(TINY)
    archs = list(TINY.archs())
    prices = [table.price(calls_of(arch)).total_us for arch in archs]
    np.testing.assert_allclose(table.price_matrix(TINY, TINY.encode(archs)), prices)
    (low, _), (high, _) = table.extremes(TINY)
    assert (low, high) == pytest.approx((min(prices), max(prices)))


def test_each_size_of_images_has_its_own_calibration(rng):
    large = replace(TINY, input_shape=(3, 64, 64))
    small, other = fake_table(TINY), fake_table(large)
    slower = [replace(network, us=2 * network.us) for network in other.networks]
    rows = {entry.row: entry for entry in (*small.entries, *other.entries)}
    table = Table(small.header, rows.values(), [*small.networks, *slower])
    assert {size: round(fit.scale, 6) for size, fit in table.calibrations.items()} == {
        (3, 32, 32): 1.1,
        (3, 64, 64): 2.2,
    }
    for space, scale in ((TINY, 1.1), (large, 2.2)):
        calls = calls_of(space.sample(rng))
        assert table.price(calls).total_us == pytest.approx(scale * sum(fake_us(call.row) for call in calls))


def test_forty_networks_give_an_interval_and_a_bound(rng):
    table = fake_table(TINY, networks=90, error=0.02)
    (fit,) = table.calibrations.values()
    assert fit.networks >= 40
    calls = calls_of(TINY.sample(rng))
    latency = table.price(calls)
    assert (latency.low_us, latency.high_us) == pytest.approx(
        (latency.total_us * (1 - fit.interval), latency.total_us * (1 + fit.interval))
    )
    assert 0.02 < fit.interval < 0.025
    assert table.bound_us(calls, 0.95) == pytest.approx(latency.total_us * fit.bound(0.95))


def test_a_family_that_is_off_more_has_a_wider_interval_and_bound_and_the_file_says_so(monkeypatch, rng):
    monkeypatch.setattr("nas.tables.table.line_of", lambda arch: "deep" if len(arch.stages[3]) > 2 else "flat")
    plain = fake_table(TINY, networks=150)
    off = {True: 0.2, False: 0.01}
    networks = [
        replace(network, us=network.us * (1 + off[len(network.arch.stages[3]) > 2] * (-1) ** number))
        for number, network in enumerate(plain.networks)
    ]
    table = Table(plain.header, plain.entries, networks)
    (fit,) = table.calibrations.values()
    assert dict(fit.by_family).keys() == {"deep", "flat"}
    calls = calls_of(TINY.sample(rng))
    flat, deep = table.price(calls, "flat"), table.price(calls, "deep")
    assert deep.total_us == flat.total_us
    assert deep.high_us == pytest.approx(deep.total_us * (1 + fit.interval_of("deep")))
    assert deep.high_us >= flat.high_us
    assert table.bound_us(calls, 0.9, "deep") == pytest.approx(deep.total_us * fit.bound(0.9, "deep"))
    lines = table.to_text().splitlines()
    assert sum(line.startswith("# computed 90 % interval of ") for line in lines) == 2


def test_rows_that_were_not_measured_are_told_and_widen_the_interval(rng):
    plain = fake_table(TINY, networks=90, error=0.02)
    calls = calls_of(TINY.sample(rng))
    row = next(call.row for call in calls if "MB4D" in str(call.row))
    uses = sum(call.row == row for call in calls)
    entries = [replace(e, source="predicted", spread_us=4.0) if e.row == row else e for e in plain.entries]
    table = Table(plain.header, entries, plain.networks)
    before, after = plain.price(calls), table.price(calls)
    (fit,) = table.calibrations.values()
    assert after.total_us == before.total_us
    assert (before.unmeasured_us, before.doubt_us) == (0, 0)
    assert after.unmeasured_us == pytest.approx(fit.scale * uses * fake_us(row))
    assert after.doubt_us == pytest.approx(fit.scale * uses * 4.0)  # the same error at every use
    assert after.high_us - before.high_us == pytest.approx(1.6449 * after.doubt_us, rel=1e-4)


def test_a_bound_needs_a_calibration():
    calls = calls_of(TINY.sample(random.Random(0)))
    with pytest.raises(
        BudgetError, match=r"needs 40 calibration networks for input 3x32x32, table has 3; measure more"
    ):
        fake_table(TINY, networks=3).bound_us(calls, 0.95)


def test_the_card_compares_its_networks_with_their_predictions():
    table = fake_table(TINY, networks=60, error=0.01)
    assert table.card is None
    taken = {network.arch for network in table.networks}
    archs = [arch for seed in range(200) if (arch := TINY.sample(random.Random(1000 + seed))) not in taken]
    checks = [
        NetworkEntry(arch, table.price(calls_of(arch)).total_us / factor, 0.1, 3)
        for arch, factor in zip(dict.fromkeys(archs), (1.03, 0.99, 1.08, 0.96), strict=False)
    ]
    card = Table(table.header, table.entries, table.networks, None, checks).card
    assert card.errors.mape_percent == pytest.approx((3 + 1 + 8 + 4) / 4)
    assert card.errors.bias_percent == pytest.approx((3 - 1 + 8 - 4) / 4)
    assert card.families[0][:2] == ("efficientformer-32", 4)
