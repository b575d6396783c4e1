"""`nas shortlist` on tables that are made up."""

import json

import pytest

from tests.commands.test_commands import nas  # noqa: F401 - a fixture
from tests.search.test_shortlist import PRICED, calibrated, few_presets, table_of  # noqa: F401 - a fixture


@pytest.fixture
def tables(tmp_path):
    first = calibrated().write(tmp_path / "one.csv")
    return first, table_of(PRICED[:2]).write(tmp_path / "two.csv")


def test_json_names_every_network_with_its_figures(nas, tables):  # noqa: F811
    code, out, _ = nas("shortlist", "--table", tables[0], "--budget", "params<=13e6", "--json")
    found = json.loads(out)
    assert code == 0
    keys = {"name", "top1", "predicted_ms", "low_ms", "high_ms", "params", "macs", "on_front", "mark", "weights"}
    assert all(keys <= set(row) for row in found["networks"])
    (row,) = (row for row in found["networks"] if row["name"] == "efficientformer-l3")
    assert row["over"] == found["budgets"] == ["params<=13e6"]


def test_one_table_fits_100_columns(nas, tables):  # noqa: F811
    code, out, _ = nas("shortlist", "--table", tables[0], columns=100)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    assert "NOT THIS MACHINE" in out
    rows = [line.split() for line in out.splitlines() if line.startswith((*PRICED, "deit-t"))]
    assert {row[0] for row in rows} == set(PRICED)
    assert "deit-t lacks" in " ".join(out.split())  # told below, not left out
    assert "efficientformer_l1.snap_dist_in1k" in out
    assert next(row for row in rows if row[0] == "swin-xt")[1] == "-"
    assert "most accurate: efficientformer-l3, 82.4 % top-1" in " ".join(out.split())


def test_two_tables_stand_side_by_side(nas, tables):  # noqa: F811
    code, out, _ = nas("shortlist", "--table", tables[0], "--table", tables[1], columns=100)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    assert f"B: {tables[1]}" in " ".join(out.split())  # a long path begins on a line of its own
    shown = next(line.split() for line in out.splitlines() if line.startswith("mobileformer-26m"))
    assert shown[-1] == "-"  # the second lacks its rows
    assert "A and B: order not compared, fewer than two networks have intervals on both" in " ".join(out.split())


def test_the_plot_is_a_page_of_its_own(nas, tables, tmp_path):  # noqa: F811
    code, _, _ = nas("shortlist", "--table", tables[0], "--plot", tmp_path / "drawn.html")
    assert code == 0
    assert "efficientformer-l3" in (tmp_path / "drawn.html").read_text()


def test_what_nothing_fits_is_said(nas, tables):  # noqa: F811
    code, out, _ = nas("shortlist", "--table", tables[0], "--budget", "latency_ms<=0.001")
    assert code == 0
    assert "no published network of known accuracy within latency_ms<=0.001" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "nowhere"], "unknown table 'nowhere'"),
        (["--budget", "latency_ms<=p40"], "a quantile is one of a space"),
        (["--budget", "5 ms"], "expected a bound such as latency_ms<=5"),
    ],
)
def test_wrong_names_are_told_and_are_usage_errors(nas, tables, arguments, message):  # noqa: F811
    code, _, err = nas("shortlist", "--table", tables[0], *arguments)
    assert code == 2
    assert message in err
