"""The contract of every shipped table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import latency_tables
import search_spaces
from nas.core.arch import calls_of
from nas.tables.table import Table

NAMES = latency_tables.names()
ROUNDING = 1e-9  # the same rows, summed in another order
NUMBER = re.compile(r"(?<![A-Za-z\d])[+-]?\d+\.\d+")


def test_there_is_a_table_for_every_space_or_the_docs_say_how_to_make_one(monkeypatch):
    monkeypatch.delenv("NAS_SPACES", raising=False)  # spaces of other tests
    said = (Path(__file__).parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
    shipped = {scope for name in NAMES for scope in Table.read(latency_tables.find(name)).header.spaces}
    assert [
        name for name in search_spaces.spaces() if name not in shipped and f"`nas profile {name}`" not in said
    ] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_table_prices_its_whole_space_with_a_stated_error(name, rng):
    table = Table.read(latency_tables.find(name))
    assert table.mape_percent < 10
    for space in table.spaces:
        table.require(space)
        (low, _), (high, _) = table.extremes(space)
        for _ in range(20):
            latency = table.price(calls_of(space.sample(rng)))
            assert low * (1 - ROUNDING) <= latency.total_us <= high * (1 + ROUNDING)
            assert latency.calibrated


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_table_is_written_as_it_is_read(name):
    """What is computed when it is read may differ in the last digit on another CPU; all else is equal to the letter."""
    path = latency_tables.find(name)
    mine, stored = Table.read(path).to_text().splitlines(), path.read_text(encoding="utf-8").splitlines()
    assert len(mine) == len(stored)
    for line, expected in zip(mine, stored, strict=True):
        if not line.startswith("# computed "):
            assert line == expected
            continue
        assert NUMBER.sub("", line) == NUMBER.sub("", expected)
        numbers = [list(map(float, NUMBER.findall(text))) for text in (line, expected)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=0.11)
