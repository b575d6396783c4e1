"""Which published networks fit a device: figures against estimates, fronts and orders against plain definitions."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import random

import numpy as np
import pytest

import latency_tables
import nas
import search_spaces
from nas.core.arch import calls_of
from nas.core.errors import BudgetError, InputError, TableError
from nas.networks.building import cost_of
from nas.report import answers, facts, plots
from nas.report.front import non_dominated
from nas.search import shortlist
from nas.tables.table import Entry, NetworkEntry, Table
from search_spaces import mobileformer
from tests.small import TINY, fake_table, fake_us

FEW = ("deit-t", "efficientformer-l1", "efficientformer-l3", "mobileformer-26m", "mobileformer-96m", "swin-xt")
PRICED = FEW[1:]


@pytest.fixture(autouse=True)
def few_presets(monkeypatch):
    """Six presets, and nothing remembered of them."""
    everything = search_spaces.presets()
    monkeypatch.setattr(search_spaces, "presets", lambda: {name: everything[name] for name in FEW})
    monkeypatch.setattr(answers, "_answer", lambda question, find, keep=True: json.loads(json.dumps(find())))


def table_of(presets, us=fake_us, networks=0, **header):
    """A table of made-up rows of these presets; calibrated by Mobile-Formers where it has networks."""
    rows = {call.row for name in presets for call in calls_of(search_spaces.presets()[name])}
    empty = fake_table(TINY, networks=0)
    rng = random.Random(0)
    archs = list({mobileformer.SPACE.sample(rng): None for _ in range(networks)})
    rows |= {call.row for arch in archs for call in calls_of(arch)}
    entries = [Entry(row, us(row), 0.1, 5) for row in rows]
    plain = Table(empty.header, entries)
    known = [NetworkEntry(a, plain.raw_us(calls_of(a)) * (1.1 + 0.01 * (n % 3)), 0.1, 3) for n, a in enumerate(archs)]
    return Table(dataclasses.replace(empty.header, spaces=(), **header), entries, known)


@functools.cache
def calibrated():
    return table_of(PRICED, networks=45)


@pytest.fixture
def table(tmp_path):
    return calibrated().write(tmp_path / "one.csv")


def test_figures_are_those_of_estimate_and_describe(table):
    found = shortlist.figures(table)
    assert {row["name"] for row in found["networks"]} == set(FEW)
    known = Table.read(table)
    for row in found["networks"]:
        arch = search_spaces.presets()[row["name"]]
        cost = cost_of(arch)
        assert (row["params"], row["macs"]) == (cost.params, cost.macs)
        assert (row["top1"], row["source"], row["recipe"]) == search_spaces.published()[row["name"]]
        if row["name"] in PRICED:
            estimate = facts.estimate(arch, known)
            ends = ("predicted_ms", "predicted_low_ms", "predicted_high_ms")
            assert (row["predicted_ms"], row["low_ms"], row["high_ms"]) == tuple(estimate[key] for key in ends)
            assert row["low_ms"] < row["predicted_ms"] < row["high_ms"]
            assert row["missing"] == []
    (table_facts,) = found["tables"]
    assert (table_facts["this_machine"], table_facts["priced"]) == (False, 5)


def test_a_network_that_lacks_rows_is_there_and_names_them(table):
    (row,) = (row for row in shortlist.figures(table)["networks"] if row["mark"] == "not priced")
    assert row["name"] == "deit-t"
    assert row["predicted_ms"] is row["low_ms"] is row["memory_mb"] is None
    assert row["missing"] == list(map(str, dict.fromkeys(c.row for c in calls_of(search_spaces.presets()["deit-t"]))))


@pytest.mark.parametrize("budgets", [(), ("params<=13e6",), ("latency_ms<=30", "macs<=1e9"), "params<=1"])
def test_the_front_is_that_of_what_keeps_the_budgets(table, budgets):
    rows = shortlist.figures(table, budgets)["networks"]
    limits = [budgets] if isinstance(budgets, str) else budgets
    columns = {"params": "params", "macs": "macs", "latency_ms": "predicted_ms"}
    for row in rows:
        asked = [text.split("<=") for text in limits]
        assert row["over"] == [
            f"{metric}<={bound}"
            for metric, bound in asked
            if row[columns[metric]] is not None and row[columns[metric]] > float(bound)
        ]
    fit = [row for row in rows if not row["over"] and row["top1"] is not None and row["predicted_ms"] is not None]
    front = non_dominated(np.array([(row["predicted_ms"], -row["top1"]) for row in fit]).reshape(-1, 2))
    assert [row["on_front"] for row in fit] == front.tolist()
    assert all(not row["on_front"] for row in rows if row not in fit)
    assert [shortlist.MARKS.index(row["mark"]) for row in rows] == sorted(
        shortlist.MARKS.index(row["mark"]) for row in rows
    )
    ahead = [row for row in rows if row["on_front"]]
    assert [row["top1"] for row in ahead] == sorted((row["top1"] for row in ahead), reverse=True)


def test_a_network_of_unknown_accuracy_has_no_part_in_the_front(table):
    (row,) = (row for row in shortlist.figures(table)["networks"] if row["name"] == "swin-xt")
    assert (row["top1"], row["mark"], row["on_front"]) == (None, "no top-1", False)


def test_a_budget_on_another_table_does_not_fit_what_that_table_cannot_price(table, tmp_path):
    other = table_of(["efficientformer-l1"]).write(tmp_path / "other.csv")
    rows = shortlist.figures(table, f"latency_ms[{other}]<=1e6")["networks"]
    assert {row["name"]: row["mark"] for row in rows if row["name"] in PRICED} == {
        "efficientformer-l1": "front",
        **dict.fromkeys(["efficientformer-l3", "mobileformer-26m", "mobileformer-96m", "swin-xt"], "not known"),
    }


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("latency_ms<=p40", "a quantile is one of a space"),
        ("latency<=5", "unknown metric 'latency', did you mean 'latency_ms'"),
        ("memory_mb<=5", "networks with measured memory"),
    ],
)
def test_a_budget_that_cannot_be_kept_or_broken_is_refused(table, budget, message):
    with pytest.raises((BudgetError, TableError), match=message):
        shortlist.figures(table, budget)


def test_a_confidence_needs_as_many_networks_as_in_a_search(tmp_path):
    few = table_of(PRICED, networks=8).write(tmp_path / "few.csv")
    with pytest.raises(BudgetError, match=r"a confidence of 0\.95 needs \d+ calibration networks"):
        shortlist.figures(few, "latency_ms<=5 @ 0.95")


def test_a_table_of_another_resolution_says_so(tmp_path):
    small = fake_table(TINY).write(tmp_path / "small.csv")
    with pytest.raises(TableError, match=r"prices no published network.*for input 3x32x32, they take 3x224x224"):
        shortlist.figures(small)


def test_a_table_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="unknown table 'nowhere'"):
        shortlist.figures("nowhere")


def test_flips_are_the_pairs_whose_order_is_beyond_all_intervals():
    rng = np.random.default_rng(0)
    rows = []
    for table, name in itertools.product(("a", "b", "c"), map(str, range(12))):
        ms, off = rng.uniform(1, 10), rng.uniform(0, 2)
        low = None if (table, name) == ("b", "3") else ms - off
        rows.append({"table": table, "name": name, "predicted_ms": ms, "low_ms": low, "high_ms": low and ms + off})
    found = shortlist.flips_of(rows, "a", "b")
    at = {(row["table"], row["name"]): (row["low_ms"], row["high_ms"]) for row in rows}

    def faster(table, one, two):
        return at[table, one][1] < at[table, two][0]

    names = [str(number) for number in range(12) if number != 3]
    pairs = list(itertools.permutations(names, 2))
    flipped = {(x, y) for x, y in pairs if faster("a", x, y) and faster("b", y, x)}
    agreed = {(x, y) for x, y in pairs if faster("a", x, y) and faster("b", x, y)}
    assert flipped
    assert agreed
    assert {(p["faster_on_first"], p["faster_on_second"]) for p in found["pairs"]} == flipped
    assert (found["sure"], found["flipped"], found["known"]) == (len(flipped) + len(agreed), len(flipped), 11)
    x, y = found["pairs"][0]["faster_on_first"], found["pairs"][0]["faster_on_second"]
    clear = {(x, y): min(at["a", y][0] / at["a", x][1], at["b", x][0] / at["b", y][1]) for x, y in flipped}
    assert clear[x, y] == max(clear.values())


def test_two_tables_give_a_row_each_and_their_flips(table, tmp_path):
    def other_us(row):  # the more multiply-adds, the faster
        return 1e7 / (1e4 + fake_us(row))

    second = table_of(PRICED, other_us, networks=45).write(tmp_path / "two.csv")
    frame = nas.shortlist([table, second])
    assert frame.groupby("table").size().to_dict() == {str(table): 6, str(second): 6}
    (flips,) = frame.attrs["flips"]
    rows = shortlist.figures([table, second])["networks"]
    assert flips == shortlist.flips_of(rows, str(table), str(second))
    assert flips["flipped"] > 0
    assert [each["name"] for each in frame.attrs["tables"]] == [str(table), str(second)]
    assert len(nas.shortlist([table, table])) == 6


def test_without_a_name_a_table_of_this_machine_comes_first(tmp_path, monkeypatch):
    shipped = {
        "large": table_of(PRICED).write(tmp_path / "large.csv"),
        "small": table_of(PRICED[:2]).write(tmp_path / "small.csv"),
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency_tables, "names", lambda: sorted(shipped))
    monkeypatch.setattr(latency_tables, "find", lambda name: shipped.get(str(name), tmp_path / str(name)))
    assert [table["name"] for table in shortlist.figures()["tables"]] == ["large"]
    table_of(PRICED[:1], device="mine").write(tmp_path / "latency_tables" / "mine" / "own.csv")
    (tmp_path / "latency_tables" / "mine" / "broken.csv").write_text("no table\n")
    monkeypatch.setattr(answers, "_is_this_machine", lambda runtime, device, cpu: device == "mine")
    (found,) = shortlist.figures()["tables"]
    assert (found["name"], found["this_machine"]) == ("latency_tables/mine/own.csv", True)


def test_the_plot_shows_what_has_both_accuracy_and_latency(table):
    frame = nas.shortlist(table, ["params<=13e6"])
    data = plots.shortlist_data(frame)
    assert set(data["name"]) == set(PRICED) - {"swin-xt"}
    figure = plots.plot_shortlist(data)
    drawn = {trace.name: {round(y, 6) for y in trace.y} for trace in figure.data}
    assert drawn["over budget"] == {82.4}
    assert drawn["front"] | drawn["dominated"] == {64.0, 72.8, 79.2}
    front = next(trace for trace in figure.data if trace.name == "front")
    assert list(front.x) == sorted(front.x)
    spans = frame[frame["on_front"]].sort_values("predicted_ms")
    assert list(front.error_x.array) == pytest.approx((spans["high_ms"] - spans["predicted_ms"]).tolist())


def test_a_plot_of_two_tables_has_two_fields_with_one_accuracy_axis(table, tmp_path):
    second = table_of(["efficientformer-l1"]).write(tmp_path / "two.csv")  # without intervals
    figure = plots.plot_shortlist(plots.shortlist_data(nas.shortlist([table, second])))
    assert {trace.xaxis for trace in figure.data} == {"x", "x2"}
    assert figure.layout.yaxis2.matches == "y"
    assert "two.csv" in figure.layout.annotations[1].text
