"""`nas validate`: how far a table is off."""

from __future__ import annotations

from typing import Annotated

import typer

from nas.commands._app import PATH, app
from nas.commands._options import JsonOption, SeedOption, read_table
from nas.commands._output import print_json, progress_bar, say


@app.command(rich_help_panel=PATH)
def validate(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table: a CSV file or the name of a shipped one.")],
    archs: Annotated[int, typer.Option("--archs", min=12, help="Unseen networks to measure.")] = 40,
    seed: SeedOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure how far off a table is, on networks it never saw.

    They are spread evenly in log latency over the table's spaces. They become the table's card, written into its file
    where it is one of this machine. On another machine the error is given raw and after one scale refitted on five
    other networks. The same command continues after an interruption.
    """
    from nas.profiling import validation

    with progress_bar() as report:
        result = validation.validate(read_table(table), archs=archs, seed=seed, progress=report)
    if as_json:
        return print_json(result.facts())
    say(result.text())
