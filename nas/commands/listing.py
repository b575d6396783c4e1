"""`nas spaces`, `nas tables`: what there is."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer

from nas.commands._app import app
from nas.commands._options import JsonOption
from nas.commands._output import print_json, print_table, say


@app.command()
def spaces(as_json: JsonOption = False) -> None:
    """List the spaces: number of distinct archs, rows to measure, minutes to profile; and the presets."""
    import search_spaces
    from nas.report import facts

    found = facts.spaces()
    if as_json:
        return print_json({"spaces": found, "presets": sorted(search_spaces.presets())})
    rows = [
        (
            s["space"],
            "x".join(map(str, s["input"])),
            f"{s['archs']:,}",
            str(s["rows"]),
            str(s["op_rows"]),
            f"{s['minutes_to_profile']:g}",
        )
        for s in found
    ]
    print_table(("space", "input", ">archs", ">rows", ">op rows", ">minutes"), rows)
    for name in search_spaces.families():
        if names := sorted(getattr(search_spaces.family(name), "PRESETS", {})):
            say(f"presets of {name}: {', '.join(names)}")


@app.command()
def tables(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[TABLE]...", help="Further table files.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the shipped latency tables with what they hold and how far they can be trusted; and the runtimes.

    MAPE, bias, share of networks within 5 %, Kendall's tau and coverage of the 90 % interval are of a table's card: of
    networks that it was not fitted on (nas validate).
    """
    from nas.report import facts

    found, runtimes, untested = facts.tables(*(paths or [])), facts.runtimes(), facts.untested()
    if as_json:
        return print_json({"tables": found, "runtimes": runtimes, "untested_runtimes": untested})
    for device, group in itertools.groupby(found, key=lambda t: str(Path(t["name"]).parent)):
        say(f"[bold]{device}[/bold]")
        columns = ("table", "measured with", "spaces", ">rows", ">MAPE", ">bias", ">in 5 %", ">Kendall", ">covered")
        print_table(columns, [_table_line(t) for t in group])
    for t in found:
        if "error" in t:
            say(f"{t['table']}: {t['error']}", markup=False)
    say("[bold]runtimes[/bold] (untested: we had no such hardware to run them on)")
    lines = [(name, ", ".join(known), untested.get(name, "")) for name, known in runtimes.items()]
    print_table(("runtime", "precisions", ""), [(*line, where and f"untested: {where}") for *line, where in lines])


def _table_line(table: dict[str, Any]) -> tuple[str, ...]:
    """A table's line in `nas tables`."""
    name = Path(table["name"]).name
    if "error" in table:
        return (name, "cannot be read, see below", *[""] * 7)
    settings = f"{table['runtime'].split()[0]} {table['precision']} {table['threads']}t, {table['level']}"
    predicted = f", {table['unmeasured_rows']} not measured" if table["unmeasured_rows"] else ""
    line = (name, settings, ", ".join(table["spaces"]) or "none whole", f"{table['rows']}{predicted}")
    if (card := table["card"]) is None:
        return (*line, "no card", *[""] * 4)
    covered = card["coverage_percent"]
    return (
        *line,
        f"{card['mape_percent']:.1f} %",
        f"{card['bias_percent']:+.1f} %",
        f"{card['within_5_percent']:.0f} %",
        f"{card['kendall']:.3f}",
        "-" if covered is None else f"{covered:.0f} %",
    )
