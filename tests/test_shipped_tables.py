"""The contract of every shipped table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import latency_tables
import search_spaces
from nas.arch import calls_of
from nas.latency import Table

NAMES = latency_tables.names()


def test_there_is_a_table_for_every_space_or_the_readme_says_how_to_make_one():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    shipped = {Table.read(latency_tables.find(name)).header.space for name in NAMES}
    assert [
        name for name in search_spaces.spaces() if name not in shipped and f"`nas profile {name}`" not in readme
    ] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_table_prices_its_whole_space_with_a_stated_error(name, rng):
    table = Table.read(latency_tables.find(name))
    header = table.header
    space = replace(search_spaces.load(header.space), input_shape=header.input_shape, classes=header.classes)
    table.require(space)
    assert table.calibration is not None
    assert table.mape_percent < 10
    (low, _), (high, _) = table.extremes(space)
    for _ in range(20):
        latency = table.price(calls_of(space.sample(rng)))
        assert low <= latency.total_us <= high
        assert latency.low_us < latency.total_us < latency.high_us


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_table_is_written_as_it_is_read(name):
    path = latency_tables.find(name)
    assert Table.read(path).to_text() == path.read_text(encoding="utf-8")
