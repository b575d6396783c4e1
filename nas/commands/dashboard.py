"""`nas dashboard`: a finished run in optuna-dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands._app import PATH, app
from nas.commands._output import say


@app.command(rich_help_panel=PATH)
def dashboard(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")],
    host: Annotated[str, typer.Option("--host", help="To listen on; 0.0.0.0 lets other machines look.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 8080,
) -> None:
    """Show a finished run in optuna-dashboard, until Ctrl-C.

    It shows a copy: nothing that is changed there reaches the run. Needs the extra `dashboard`.
    """
    from nas.search.dashboard import serve

    say((f"http://{host}:{port}", "bold"), "; Ctrl-C ends it")
    serve(run, host, port)
