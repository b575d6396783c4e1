"""`nas publish`: what a run found, for others to use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands._app import PATH, app
from nas.commands._options import JsonOption
from nas.commands._output import print_json, say


@app.command(rich_help_panel=PATH)
def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a search (its winner) or of a training.")],
    to: Annotated[str, typer.Option("--to", help="A folder; or USER/NAME on the Hub, where no folder USER is here.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository on the Hub private.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's network with all that others need.

    Weights (safetensors), architecture, ONNX, timm's config.json, and a model card that says of each figure whether it
    was measured or predicted. To load it: nas.from_pretrained("DIR") in Python.
    """
    from nas.evaluation.publishing import publish

    found = publish(run, to, private=private, note=None if as_json else say)
    if as_json:
        return print_json(found._asdict())
    say((found.where, "bold"), f": {', '.join(found.files)}")
