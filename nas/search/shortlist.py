"""Before any search: which published networks fit a device, by their published accuracy and predicted latency."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import latency_tables
from nas.core.errors import BudgetError, TableError
from nas.report import answers
from nas.report.points import beside, read_points
from nas.search.budgets import Budget

if TYPE_CHECKING:
    import pandas as pd

HERE = Path("latency_tables")  # where `nas profile` writes, under the current folder
MARKS = ("front", "dominated", "no top-1", "over budget", "not known", "not priced")
"""What a network is on a table, the best first: none that keeps the budgets is nowhere worse and somewhere better; one
is; no accuracy of it is published; it exceeds a budget; the table does not know the metric of one; it lacks its rows.
"""
TABLE_FACTS = (
    *("name", "table", "table_hash", "device", "cpu", "this_machine", "runtime", "precision", "threads", "date"),
    "mape_percent",
)

Name = str | os.PathLike[str]


def shortlist(
    tables: Name | Sequence[Name] = (), budgets: str | Sequence[str] = (), points: Name | None = None
) -> pd.DataFrame:
    """The published networks on a table, or on several: a row for each network on each table, the best first.

    Args:
        tables: files, or names of shipped tables; by default one of this machine where there is one, else a shipped
            one of another machine: see `this_machine` in `attrs["tables"]`.
        budgets: as a search takes them, but no quantiles: `latency_ms<=20`, `params<=5e6`; those without a table of
            their own hold on each of `tables`.
        points: a file of other models that were measured (`nas measure --model timm:NAME --points FILE`): they stand
            beside those on the table of the device and runtime that they were measured with.

    Returns:
        Columns as in `figures`; `attrs` has its `tables`, `budgets`, `flips` and `points_elsewhere`.
    """
    import pandas as pd

    found = figures(tables, budgets, points)
    frame = pd.DataFrame(found.pop("networks"))
    frame.attrs.update(found)
    return frame


def figures(
    tables: Name | Sequence[Name] = (), budgets: str | Sequence[str] = (), points: Name | None = None
) -> dict[str, Any]:
    """What `shortlist` finds, as plain data.

    Returns:
        `networks`: of each on each table `name`, `family`, `input`, `top1` (a fraction, of ImageNet; None where none is
        known) with `source` and `recipe`, `params`, `macs`, `weights` (their name in timm), `table`, `predicted_ms`,
        `low_ms` and `high_ms` (the 90 % interval, None where the table has none), `measured_ms` (of points, which have
        no prediction), `memory_mb`, `mark` (of `MARKS`),
        `on_front`, `over` (the budgets that it exceeds) and `missing` (the rows that the table lacks). `flips`: see
        `flips_of`. `tables`: what each was measured on and when, whether that is `this_machine`, its error, and how
        many networks it has `priced`. `points_elsewhere`: by name, why points stand on none of the tables.

    Raises:
        InputError: there is no such table, or the file of points cannot be read.
        TableError: one is no table, or prices no published network.
        BudgetError: one cannot be read, is a quantile, or asks for what a table does not know.
    """
    asked = [_number(text) for text in ([budgets] if isinstance(budgets, str) else budgets)]
    names = [tables] if isinstance(tables, str | os.PathLike) else list(dict.fromkeys(tables))
    chosen = list(map(_known, names)) or [_default()]
    presets = answers.presets()
    measured = [] if points is None else read_points(Path(points))
    networks = [row for table in chosen for row in _on_table(presets, table, asked, measured)]
    shown = {row["name"] for row in networks if row["measured_ms"] is not None}
    return {
        "tables": chosen,
        "budgets": [budget.asked for budget in asked],
        "networks": networks,
        "flips": [flips_of(networks, *pair) for pair in itertools.combinations([each["name"] for each in chosen], 2)],
        "points_elsewhere": {p["name"]: _elsewhere(p, chosen[0]) for p in measured if p["name"] not in shown},
    }


def flips_of(networks: Iterable[Mapping[str, Any]], first: str, second: str) -> dict[str, Any]:
    """The pairs of networks whose order differs between two tables beyond the 90 % intervals of all four predictions.

    Returns:
        `tables`; `sure`: of how many pairs the order is beyond the intervals on both; `flipped`: of how many of these
        it differs; `pairs`: those, the clearest first, each with `faster_on_first` and `faster_on_second`; `known`:
        how many networks have an interval on both.
    """
    spans: dict[str, dict[str, tuple[float, float]]] = {first: {}, second: {}}
    for row in networks:
        if row["table"] in spans and row["low_ms"] is not None:
            spans[row["table"]][row["name"]] = (row["low_ms"], row["high_ms"])
    known = sorted(spans[first].keys() & spans[second].keys())
    flipped, sure = [], 0
    for one, two in itertools.permutations(known, 2):  # the first of them is faster on the first table
        gaps = [(spans[table][a][1], spans[table][b][0]) for table, a, b in ((first, one, two), (second, two, one))]
        back = spans[second][one][1] < spans[second][two][0]
        if gaps[0][0] < gaps[0][1] and (back or gaps[1][0] < gaps[1][1]):
            sure += 1
            if not back:
                flipped.append((min(slow / fast for fast, slow in gaps), one, two))
    flipped.sort(key=lambda pair: (-pair[0], *pair[1:]))
    pairs = [{"faster_on_first": one, "faster_on_second": two} for _, one, two in flipped]
    return {"tables": [first, second], "known": len(known), "sure": sure, "flipped": len(pairs), "pairs": pairs}


def _number(text: str) -> Budget:
    budget = Budget.parse(text)
    if budget.quantile is not None:
        raise BudgetError(
            f"{text}: a quantile is one of a space, and a shortlist has none: name a number, or ask nas feasible SPACE"
        )
    return budget


def _known(name: Name) -> dict[str, Any]:
    """A table with how many presets it prices."""
    table = answers.table(name)
    priced = sum(not each["missing"] for each in answers.presets_on(name).values())
    if priced == 0:
        sizes = sorted({"x".join(map(str, preset["input"])) for preset in answers.presets()})
        own = f"; it was measured for input {', '.join(table['calibrations'])}" if table["calibrations"] else ""
        raise TableError(
            f"{name} prices no published network: it lacks rows of each{own}, they take {' or '.join(sizes)}. Measure "
            f"those of one, on the table's device, with: nas profile --table {name} --arch PRESET"
        )
    return {key: table[key] for key in TABLE_FACTS} | {"priced": priced}


def _default() -> dict[str, Any]:
    """The table to take where none is named: of those of this machine, else of the shipped ones, that which prices most
    networks.
    """
    shipped = {latency_tables.find(name).resolve(): name for name in latency_tables.names()}
    own = [str(path) for path in sorted(HERE.glob("*/*.csv")) if path.resolve() not in shipped]
    found = [table for table in answers.tables(*map(Path, own)) if "error" not in table]
    here = [table for table in found if table["this_machine"]]
    best = _best(here) or _best([table for table in found if table["name"] in shipped.values()])
    if best is None:
        raise TableError("no table prices a published network; name one: nas tables lists the shipped ones")
    return best


def _best(tables: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The table that prices most networks, of several the one with most rows."""
    found = []
    everything = len(answers.presets())
    for table in sorted(tables, key=lambda table: -table["rows"]):
        with contextlib.suppress(TableError):
            found.append(_known(table["name"]))
            if found[-1]["priced"] == everything:
                break  # none prices more
    return max(found, key=lambda table: table["priced"], default=None)


def _elsewhere(point: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    return beside(point, *(table[key] for key in ("runtime", "precision", "threads", "device")))


def _point(point: Mapping[str, Any], table: Mapping[str, Any], asked: Sequence[Budget]) -> dict[str, Any]:
    """The row of a model that was measured."""
    own = {"latency_ms": point["measured_ms"], "params": point["params"], "macs": point["macs"]}
    used = [None if budget.table else own.get(budget.metric) for budget in asked]
    row = {key: point[key] for key in ("name", "input", "params", "macs", "top1", "measured_ms")}
    row |= dict.fromkeys(("family", "predicted_ms", "low_ms", "high_ms", "memory_mb")) | {"recipe": ""}
    row |= {"source": "" if point["top1"] is None else "as given to nas measure", "missing": []}
    row["weights"] = point["name"].partition(":")[2] if point["name"].startswith("timm:") else None
    return row | {"table": table["name"], "used": used}


def latency_ms(row: Mapping[str, Any]) -> float | None:
    """What a row says of latency: measured of a point, else predicted; None where it is not priced."""
    found: float | None = row["predicted_ms"] if row["measured_ms"] is None else row["measured_ms"]
    return found


def _on_table(
    presets: Iterable[Mapping[str, Any]],
    table: Mapping[str, Any],
    asked: Sequence[Budget],
    points: Iterable[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """A row for each network, the best first: by mark, then by accuracy."""
    costs = answers.presets_on(table["table"])
    used = [answers.presets_by(budget.metric, budget.table or table["table"], budget.confidence) for budget in asked]
    rows = [
        {**preset, "table": table["name"], **costs[preset["name"]], "measured_ms": None}
        | {"used": [each[preset["name"]] for each in used]}
        for preset in presets
    ]
    rows += [_point(point, table, asked) for point in points if not _elsewhere(point, table)]
    for row in rows:
        own = row.pop("used")
        over = [b.asked for b, value in zip(asked, own, strict=True) if value is not None and value > (b.limit or 0.0)]
        row |= {"over": over, "on_front": False}
        if row["missing"]:
            row["mark"] = "not priced"
        elif over:
            row["mark"] = "over budget"
        elif None in own:
            row["mark"] = "not known"
        else:
            row["mark"] = "no top-1" if row["top1"] is None else "dominated"
    fitting = [row for row in rows if row["mark"] == "dominated"]
    for row in fitting:
        row["on_front"] = not any(_beats(other, row) for other in fitting)
    for row in fitting:
        row["mark"] = "front" if row["on_front"] else "dominated"
    return sorted(rows, key=lambda row: (MARKS.index(row["mark"]), -(row["top1"] or 0.0), latency_ms(row) or 0.0))


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether one is nowhere worse and somewhere better."""
    a, b = ((latency_ms(each) or 0.0, -each["top1"]) for each in (one, other))
    return a[0] <= b[0] and a[1] <= b[1] and a != b
