"""`nas report`: write the report of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands._app import PATH, app
from nas.commands._options import JsonOption
from nas.commands._output import print_json, say


@app.command(rich_help_panel=PATH)
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")],
    as_json: JsonOption = False,
) -> None:
    """Write the report of a run again: one HTML file, for offline, too."""
    from nas.report.page import write_report

    path = write_report(run)
    print_json({"report": str(path)}) if as_json else say((str(path), "bold"))
