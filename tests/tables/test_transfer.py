from __future__ import annotations

import dataclasses
import functools
import random

import numpy as np
import pytest

import search_spaces
from nas.core.arch import calls_of
from nas.core.errors import InputError, MissingLatency, TableError
from nas.tables.calibration import row_kind
from nas.tables.table import Entry, Header, NetworkEntry, Table
from nas.tables.transfer import choose, fit, parts_of
from tests.small import fake_table

SPACE = search_spaces.load("efficientformer-32")
ROWS = SPACE.rows()
KINDS = sorted({row_kind(row) for row in ROWS})
FACTORS = {"Embedding": 2.0, "MB3D": 0.5}
ARCHS = tuple(dict.fromkeys(SPACE.sample(random.Random(seed)) for seed in range(300)))


@functools.cache
def header_of(**changes: object) -> Header:
    return dataclasses.replace(fake_table(SPACE, networks=0).header, **changes)


def device(us: dict, **header: object) -> Table:
    """A full table with these rows."""
    return Table(header_of(**header), [Entry(row, us[row], 0.1, 5) for row in ROWS])


def made_up(seed: int) -> dict:
    """Rows that follow no law: from 20 to 200 us."""
    rng = random.Random(seed)
    return {row: rng.uniform(20, 200) for row in ROWS}


def measured(us: dict, archs, noise: float = 0.0, seed: int = 0) -> list[NetworkEntry]:
    """Networks of a device with these rows, with relative errors of measurement."""
    rng = random.Random(seed)
    return [NetworkEntry(arch, sum(us[c.row] for c in calls_of(arch)) * rng.gauss(1, noise), 0.1, 3) for arch in archs]


def errors_of(table: Table, us: dict, archs) -> np.ndarray:
    """Relative errors of the predictions of networks."""
    truth = [network.us for network in measured(us, archs)]
    return np.array([table.price(calls_of(arch)).total_us for arch in archs]) / truth - 1


def drawn(count: int, seed: int) -> list:
    return random.Random(seed).sample(ARCHS, count)


def test_a_device_that_is_a_mixture_of_others_is_recovered_to_the_row():
    first, second = made_up(1), made_up(2)
    target = {row: 0.7 * first[row] + 1.6 * second[row] for row in ROWS}
    networks = measured(target, drawn(12, 0))
    table = fit([device(first), device(second)], header_of(), networks)
    for entry in table.entries:
        assert entry.us == pytest.approx(target[entry.row], rel=1e-3)
        assert entry.source == "predicted"
        assert 0 < entry.spread_us < 0.2 * entry.us


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_device_that_scales_each_kind_of_block_is_recovered_from_few_networks(seed):
    source = made_up(seed)
    target = {row: source[row] * FACTORS.get(row_kind(row), 1.0) for row in ROWS}
    sources = [device(source)]
    fitted, calibrating = parts_of(20)
    picked = choose(sources, ARCHS, fitted)
    others = [arch for arch in ARCHS if arch not in picked]
    even = random.Random(0).sample(others, calibrating)
    table = fit(sources, header_of(), measured(target, picked), measured(target, even))
    unseen = [arch for arch in others if arch not in even]
    assert np.abs(errors_of(table, target, unseen)).mean() < 0.025
    scaled = Table(header_of(), sources[0].entries, measured(target, even))
    assert np.abs(errors_of(scaled, target, unseen)).mean() > 0.04  # what calibrating the source would leave


def test_the_stated_error_is_that_on_networks_never_seen():
    stated, true = [], []
    for seed in range(8):
        rng, source = random.Random(seed), made_up(seed)
        target = {row: us * rng.lognormvariate(0, 0.3) for row, us in source.items()}
        archs = drawn(20, seed)
        networks = measured(target, archs, 0.01, seed)
        table = fit([device(source)], header_of(), networks[:13], networks[13:])
        stated.append(table.mape_percent)
        true.append(100 * np.abs(errors_of(table, target, [arch for arch in ARCHS if arch not in archs])).mean())
    assert 0.7 < np.mean(stated) / np.mean(true) < 1.4


def test_the_rows_never_see_the_networks_that_calibrate():
    us, archs = made_up(1), drawn(20, 0)
    networks = measured(us, archs, 0.05)
    one = fit([device(made_up(2))], header_of(), networks[:13], networks[13:])
    other = fit([device(made_up(2))], header_of(), networks[:13], measured(made_up(3), archs[13:]))
    assert one.entries == other.entries
    assert {network.arch for network in one.networks} == set(archs[13:])


def test_the_standard_errors_of_rows_are_of_the_right_size():
    inside = []
    for seed in range(12):
        rng, source = random.Random(seed), made_up(seed)
        kinds = {kind: rng.lognormvariate(0, 0.2) for kind in KINDS}
        target = {row: us * kinds[row_kind(row)] * rng.lognormvariate(0, 0.1) for row, us in source.items()}
        table = fit([device(source)], header_of(), measured(target, drawn(20, seed), 0.01, seed))
        inside += [abs(entry.us - target[entry.row]) <= 1.645 * entry.spread_us for entry in table.entries]
    assert 0.8 < np.mean(inside) < 0.97  # 90 % were the prior exactly how devices differ


def test_rows_that_were_measured_stand_as_they_are_and_teach_the_others():
    source = made_up(1)
    target = {row: source[row] * FACTORS.get(row_kind(row), 1.0) for row in ROWS}
    rows = [Entry(row, target[row], 0.2, 7) for row in random.Random(0).sample(ROWS, len(ROWS) // 2)]
    table = fit([device(source)], header_of(), (), (), rows)
    known = {entry.row: entry for entry in table.entries}
    assert all(known[entry.row] == entry for entry in rows)
    guessed = [entry for entry in table.entries if entry.source == "predicted"]
    assert {entry.row for entry in guessed} == set(ROWS) - {entry.row for entry in rows}
    assert np.mean([abs(entry.us / target[entry.row] - 1) for entry in guessed]) < 0.1


def test_the_design_tells_kinds_apart_better_than_random_networks():
    table = device(made_up(1))

    def information(archs) -> float:
        """log det of the Gram matrix of the shares that kinds have in networks."""
        sums = np.zeros((len(archs), len(KINDS)))
        for line, arch in zip(sums, archs, strict=True):
            for call in calls_of(arch):
                line[KINDS.index(row_kind(call.row))] += table.raw_us([call])
        shares = sums / sums.sum(1, keepdims=True)
        return np.linalg.slogdet(shares.T @ shares + 1e-3 * np.eye(len(KINDS)))[1]

    picked = choose([table], ARCHS, 13)
    assert len(set(picked)) == 13
    assert information(picked) > np.quantile([information(drawn(13, seed)) for seed in range(200)], 0.95)
    assert set(choose([table], ARCHS[:4], 13)) == set(ARCHS[:4])


def test_a_third_of_the_networks_calibrates_where_five_are_left_for_the_rows():
    assert [parts_of(count) for count in (5, 9, 10, 20, 40)] == [(5, 0), (9, 0), (5, 5), (13, 7), (27, 13)]


def test_op_rows_are_transferred_like_block_rows():
    rng = random.Random(0)
    source = {row: rng.uniform(2, 20) for row in SPACE.op_rows()}
    header = dataclasses.replace(header_of(), level="op")
    table = Table(header, [Entry(row, us, 0.1, 5) for row, us in source.items()])
    networks = [
        NetworkEntry(arch, 3 * sum(source[op.row] for call in calls_of(arch) for op in call.ops), 0.1, 3)
        for arch in drawn(12, 0)
    ]
    found = fit([table], header_of(), networks)
    assert found.header.level == "op"
    assert {entry.row: entry.us for entry in found.entries} == pytest.approx({r: 3 * us for r, us in source.items()})


def test_the_header_says_how_it_came_about(tmp_path):
    us = made_up(1)
    networks = measured(us, drawn(20, 0))
    table = fit([device(us)], header_of(spaces=(), level="op", method="chains"), networks[:13], networks[13:])
    assert (table.header.method, table.header.spaces) == ("transfer", ("efficientformer-32",))
    again = Table.read(table.write(tmp_path / "new.csv"))
    assert again.header == table.header
    latency = again.price(calls_of(ARCHS[0]))
    assert latency.unmeasured_us == pytest.approx(latency.total_us - latency.offset_us)


def test_what_does_not_go_together_is_refused():
    us, networks = made_up(1), measured(made_up(1), drawn(10, 0))
    table, header = device(us), header_of()
    with pytest.raises(InputError, match="at least 5 measurements, got 4"):
        fit([table], header, networks[:4])
    with pytest.raises(InputError, match="at least one source table"):
        fit([], header, networks)
    with pytest.raises(InputError, match=r"different levels .*\(block\), .*\(op\)"):
        fit([table, device(us, level="op")], header, networks)
    with pytest.raises(TableError, match=r"no whole space in common:\n.*efficientformer-32.*\n.*: nextvit-32"):
        fit([table, device(us, spaces=("nextvit-32",))], header, networks)
    part = Table(table.header, table.entries[1:])
    with pytest.raises(MissingLatency, match=r"lacks 1 of"):
        fit([table, part], header, networks)
    stranger = search_spaces.load("nextvit-32").sample(random.Random(0))
    with pytest.raises(MissingLatency, match=r"no space .* needs the row"):
        fit([table], header, [*networks, NetworkEntry(stranger, 1.0, 0.1, 3)])
