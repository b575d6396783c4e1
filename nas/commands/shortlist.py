"""`nas shortlist`: which published networks fit a device, before any search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.commands._app import ANSWERS, app
from nas.commands._options import JsonOption
from nas.commands._output import print_json, print_table, say_filled

SHOWN = 8  # flips, and networks that are not priced; all are in --json


@app.command(rich_help_panel=ANSWERS)
def shortlist(
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table", "-t", help="A CSV file or the name of a shipped table; two of them stand side by side."
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option("--budget", "-b", help="latency_ms<=20, memory_mb<=60, params<=5e6, ... (repeatable)."),
    ] = None,
    points: Annotated[
        Path | None, typer.Option("--points", help="Also show other models that nas measure --points has measured.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it in this file, a page of HTML.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show which published networks fit a device, before any search.

    Each with its published ImageNet accuracy at its own image size, its predicted latency with the 90 % interval, and
    the name of its weights in timm. On the front is what no other that keeps the budgets beats. Without --table by a
    table of this machine; where there is none, by a shipped one of another machine.
    """
    from nas.search.shortlist import figures

    found = figures(table or (), budget or (), points)
    if plot is not None:
        _draw(found["networks"], plot)
    if as_json:
        return print_json(found)
    tables = found["tables"]
    by_table = {each["name"]: [row for row in found["networks"] if row["table"] == each["name"]] for each in tables}
    letters = dict(zip(by_table, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=False)) if len(tables) > 1 else {}
    for each in tables:
        _say_table(each, letters.get(each["name"]))
    if letters:
        _print_side_by_side(by_table, letters)
    else:
        _print_one(found["networks"])
    say_filled("top-1: of ImageNet, at the image size that each network takes; recipes differ (--json: recipe, source)")
    _say_unpriced(by_table, letters)
    for name, why in found["points_elsewhere"].items():
        say_filled(f"{name} is not shown: {why}")
    for pair in found["flips"]:
        _say_flips(pair, letters, by_table)
    for name, rows in by_table.items():
        _say_best(rows, found["budgets"], f" on {letters[name]}" if letters else "")


def _draw(networks: Sequence[Mapping[str, Any]], file: Path) -> None:
    from nas.core.files import write_text
    from nas.report import plots

    write_text(file, plots.plot_shortlist(plots.shortlist_data(networks)).to_html(include_plotlyjs=True))


def _say_table(table: Mapping[str, Any], letter: str | None) -> None:
    off = "its error is not known" if table["mape_percent"] is None else f"{table['mape_percent']:.1f} % off"
    threads = f"{table['threads']} thread{'' if table['threads'] == 1 else 's'}"
    begin = "" if letter is None else f"{letter}: "
    say_filled(f"{begin}{table['name']}: {table['runtime']} {table['precision']}, {threads}, {off}, {table['date']}")
    if table["this_machine"]:
        say_filled("measured on a machine like this one", indent="  ")
    else:
        say_filled(f"NOT THIS MACHINE: measured on {table['cpu']}", indent="  ", further="    ")


def _print_one(rows: Sequence[Mapping[str, Any]]) -> None:
    shown = [
        (
            row["name"],
            _top1(row),
            *_latency(row),
            _count(row["macs"]),
            _count(row["params"]),
            _mb(row),
            row["weights"] or "-",
        )
        for row in rows
        if not row["missing"]
    ]
    print_table(("network", ">top-1", ">ms", ">±%", "", ">MACs", ">params", ">MB", "weights in timm"), shown, gap=1)


def _print_side_by_side(by_table: Mapping[str, Sequence[Mapping[str, Any]]], letters: Mapping[str, str]) -> None:
    """One line a network, in the order of the first table that prices it."""
    rows = {name: {row["name"]: row for row in rows} for name, rows in by_table.items()}
    order = dict.fromkeys(row["name"] for each in by_table.values() for row in each if not row["missing"])
    absent: dict[str, Any] = {"missing": ["measured elsewhere"]}  # a point stands on the table of its device
    columns = [column for letter in letters.values() for column in (f">{letter} ms", ">±%", "")]
    shown = []
    for network in order:
        first = next(each[network] for each in rows.values() if network in each)
        figures = [part for each in rows.values() for part in _latency(each.get(network, absent | {"mark": ""}))]
        shown.append((network, _top1(first), _count(first["macs"]), _count(first["params"]), *figures))
    print_table(("network", ">top-1", ">MACs", ">params", *columns), shown)


def _latency(row: Mapping[str, Any]) -> tuple[str, str, str]:
    mark = {"front": "front", "over budget": "over", "not known": "?"}.get(row["mark"], "")
    if row["missing"]:
        return "-", "", ""
    if row["measured_ms"] is not None:
        return f"{row['measured_ms']:.4g}", "", f"{mark} measured".strip()
    ms = row["predicted_ms"]
    either_way = "" if row["low_ms"] is None else f"{100 * (row['high_ms'] / ms - 1):.0f}"
    return f"{ms:.4g}", either_way, mark


def _top1(row: Mapping[str, Any]) -> str:
    return "-" if row["top1"] is None else f"{100 * row['top1']:.1f}"


def _mb(row: Mapping[str, Any]) -> str:
    return "-" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"


def _count(count: float) -> str:
    from nas.core.units import show_count

    return show_count(float(f"{count:.3g}")).replace(" ", "")


def _say_unpriced(by_table: Mapping[str, Sequence[Mapping[str, Any]]], letters: Mapping[str, str]) -> None:
    for name, rows in by_table.items():
        lacking = sorted((row for row in rows if row["missing"]), key=lambda row: len(row["missing"]))
        if not lacking:
            continue
        listed = [f"{row['name']} lacks {len(row['missing'])}" for row in lacking]
        more = [f"and {len(listed) - SHOWN} more"] if len(listed) > SHOWN else []
        say_filled(
            f"not priced by {letters.get(name, name)}, which lacks rows of {len(lacking)} of {len(rows)} (--json names "
            f"them): {', '.join([*listed[:SHOWN], *more])}. To measure those of one, on the table's device: nas "
            f"profile --table {name} --arch {lacking[0]['name']}"
        )


def _say_flips(pair: Mapping[str, Any], letters: Mapping[str, str], by_table: Mapping[str, Any]) -> None:
    first, second = (letters[name] for name in pair["tables"])
    if pair["known"] < 2:
        return say_filled(f"{first} and {second}: order not compared, fewer than two networks have intervals on both")
    say_filled(
        f"{first} and {second}: of {pair['sure']} pairs whose order is beyond the intervals on both, {pair['flipped']} "
        f"flip{'s' if pair['flipped'] == 1 else ''}{', such as' if pair['pairs'] else ''}"
    )
    ms = [{row["name"]: row["predicted_ms"] for row in by_table[name]} for name in pair["tables"]]
    for each in pair["pairs"][:SHOWN]:
        one, two = each["faster_on_first"], each["faster_on_second"]
        sides = (
            f"{a[one]:.4g} against {a[two]:.4g} ms on {letter}" for letter, a in zip((first, second), ms, strict=True)
        )
        say_filled(f"{one} and {two}: {', '.join(sides)}", indent="  ", further="    ")


def _say_best(rows: Sequence[Mapping[str, Any]], budgets: Sequence[str], where: str) -> None:
    asked = f" within {', '.join(budgets)}" if budgets else ""
    best = next((row for row in rows if row["on_front"]), None)
    if best is None:
        return say_filled(
            f"no published network of known accuracy{asked}{where}: nas feasible SPACE shows what a search could"
        )
    weights = f"; weights in timm: {best['weights']}" if best["weights"] else "; no weights in timm"
    recipe = f"; {best['recipe']}" if best["recipe"] else ""
    ms = best["predicted_ms"] if best["measured_ms"] is None else best["measured_ms"]
    say_filled(
        f"most accurate{asked}{where}: {best['name']}, {_top1(best)} % top-1 ({best['source']}{recipe}), "
        f"{ms:.4g} ms{' measured' if best['measured_ms'] is not None else ''}{weights}"
    )
