"""`nas compare`: networks side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from nas.commands._app import ANSWERS, app
from nas.commands._options import JsonOption
from nas.commands._output import print_json, print_table, say_filled


@app.command(rich_help_panel=ANSWERS)
def compare(
    archs: Annotated[
        list[str],
        typer.Argument(metavar="ARCH ARCH...", help="Presets, JSON files, runs, trials such as runs/NAME@31."),
    ],
    table: Annotated[
        str | None, typer.Option("--table", "-t", help="A table: a CSV file or the name of a shipped one.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Lay networks side by side: costs, blocks, latency by stage.

    Without --table nothing is said of latency.
    """
    from nas.search.comparing import compare as find

    found = find(*archs, table=table)
    if as_json:
        return print_json(found.data)
    about, networks = found.data["table"], found.data["networks"]
    names = [each["name"] for each in networks]
    if about is not None and about["this_machine"]:
        say_filled(f"by {about['name']}, measured on a machine like this one")
    elif about is not None:
        say_filled(f"NOT THIS MACHINE: {about['name']} was measured on {about['cpu']}")
    print_table(("", *(f">{name}" for name in names)), found.costs())
    columns = [column for name in names for column in ((name,) if about is None else (name, ">ms"))]
    print_table(("stage", *columns), found.stages())
    for each in networks:
        if each["outside_blocks_us"]:
            say_filled(f"{each['name']}: {each['outside_blocks_us']:.1f} us outside the blocks")
        if each["missing"]:
            say_filled(
                f"{each['name']} is not priced: the table lacks {len(each['missing'])} rows of it (--json names them); "
                f"measure them, on the table's device, with: nas profile --table {table} --arch {each['name']}"
            )
