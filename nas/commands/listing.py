"""`nas spaces`, `nas tables`: what there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.commands._app import ANSWERS, PATH, app
from nas.commands._options import JsonOption
from nas.commands._output import print_json, print_table, say, say_filled

GOOD_PERCENT, FAIR_PERCENT = 5.0, 10.0  # mean absolute error of a table's card up to which it is called so


@app.command(rich_help_panel=PATH)
def spaces(as_json: JsonOption = False) -> None:
    """List the spaces that can be searched, and the presets.

    For each space: number of distinct archs, rows to measure, minutes to profile.
    """
    from nas.report import answers

    found = answers.spaces()
    if as_json:
        names = sorted(name for presets in found["presets"].values() for name in presets)
        return print_json(found | {"presets": names})
    rows = [
        (
            s["space"],
            "x".join(map(str, s["input"])),
            f"{s['archs']:,}",
            str(s["rows"]),
            str(s["op_rows"]),
            f"{s['minutes_to_profile']:g}",
        )
        for s in found["spaces"]
    ]
    print_table(("space", "input", ">archs", ">rows", ">op rows", ">minutes"), rows)
    for name, presets in found["presets"].items():
        _say_list(f"presets of {name}: ", presets)


@app.command(rich_help_panel=ANSWERS)
def tables(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[TABLE]...", help="Further table files.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="What each table holds, and its card.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the shipped tables, how good each is, and the runtimes.

    A verdict is of a table's card: networks that it was not fitted on (nas validate). Off by 3 % is a mean absolute
    error of 3 %; intervals hold where as many networks lie in their 90 % intervals as chance asks for.
    """
    from nas.report import answers

    found, runtimes = answers.tables(*(paths or [])), answers.runtimes()
    untested = {name: known["untested"] for name, known in runtimes.items() if known["untested"]}
    precisions = {name: known["precisions"] for name, known in runtimes.items()}
    if as_json:
        return print_json({"tables": found, "runtimes": precisions, "untested_runtimes": untested})
    for (device, here), group in itertools.groupby(found, key=_device):
        say((device, "bold"), here)
        for table in group:
            say(f"  {Path(table['name']).name:39} {verdict(table)}")
            for line in _details(table) if verbose and "error" not in table else ():
                say_filled(line, indent=" " * 4, further=" " * 6)
    for table in found:
        if "error" in table:
            say(f"{table['table']}: {table['error']}")
    names = (f"{name}{'*' if name in untested else ''} ({', '.join(precisions[name])})" for name in precisions)
    _say_list("runtimes: ", names)
    wanting = {where: [name for name in untested if untested[name] == where] for where in untested.values()}
    _say_list("* not run by us for want of ", (f"{where} ({', '.join(names)})" for where, names in wanting.items()))


def _device(table: dict[str, Any]) -> tuple[str, str]:
    """The folder of a table, and whether this machine is the one in it."""
    here = {True: ", this machine", False: ", not this machine", None: ""}[table.get("this_machine")]
    return str(Path(table["name"]).parent), here


def verdict(table: dict[str, Any]) -> str:
    """Whether a table's predictions can be trusted, in at most 38 characters."""
    if "error" in table:
        return "cannot be read, see below"
    if (card := table["card"]) is None:
        return "no card: run nas validate"
    off, covered = card["mape_percent"], card["coverage_percent"]
    holds = None if covered is None else covered >= card["coverage_band_percent"][0]
    grade = "good" if off <= GOOD_PERCENT and holds is not False else "fair" if off <= FAIR_PERCENT else "poor"
    intervals = {None: "no intervals", True: "intervals hold", False: "intervals fail"}[holds]
    return f"{grade}: {off:.1f} % off, {intervals}"


def _details(table: dict[str, Any]) -> list[str]:
    """What a table holds, its calibrations and its card, a line each."""
    predicted = f", {table['unmeasured_rows']} of them not measured" if table["unmeasured_rows"] else ""
    spaces = ", ".join(table["spaces"]) or "no whole space"
    lines = [
        f"{table['runtime']} {table['precision']}, {table['threads']} threads, on {table['cpu']}, {table['date']}",
        f"{table['rows']} {table['level']} rows{predicted} ({table['method']}), {table['networks']} networks: {spaces}",
        *(f"at {size}: {fit}" for size, fit in table["calibrations"].items()),
    ]
    if (card := table["card"]) is None:
        return lines
    covered, band = card["coverage_percent"], card["coverage_band_percent"]
    inside = "" if covered is None else f", {covered:.0f} % in their 90 % interval (chance allows {band[0]:.0f} up)"
    return [
        *lines,
        f"card of {len(card['networks'])} networks: bias {card['bias_percent']:+.1f} %, "
        f"{card['within_5_percent']:.0f} % of them off by at most 5 %, Kendall {card['kendall']:.3f}{inside}",
        "by family: " + ", ".join(map(_of_family, card["families"])),
    ]


def _of_family(each: dict[str, Any]) -> str:
    inside = "" if each["covered"] is None else f", {each['covered']} of {each['networks']} inside"
    return f"{each['family']} {each['mape_percent']:.1f} %{inside}"


def _say_list(start: str, items: Iterable[str]) -> None:
    """Items behind each other, in lines of a terminal."""
    say_filled(start + ", ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in items))  # an item is not broken
