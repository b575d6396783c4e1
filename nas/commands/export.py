"""`nas export`: write a network as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands._app import PATH, app
from nas.commands._options import ArchArgument, JsonOption, WeightsOption, read_arch
from nas.commands._output import print_json, say


@app.command(rich_help_panel=PATH)
def export(
    arch: ArchArgument,
    format_: Annotated[
        str, typer.Option("--format", "-f", help="onnx; python for plain PyTorch, without nas.")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; default ARCH.FORMAT, .py of python.")
    ] = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a network for a runtime, checked against PyTorch.

    It is exported in deployed form: norms folded, heads merged. What is compared are its outputs. As python it is a
    module of plain PyTorch that takes the weights of runs.
    """
    from nas.evaluation.runs import export_arch

    target = out or Path(f"{Path(arch).stem}.{'py' if format_ == 'python' else format_}")
    found = export_arch(read_arch(arch), target, format_, weights)
    if as_json:
        return print_json(found)
    say((found["file"], "bold"), f", {found['bytes'] / 2**20:.1f} MiB")
    say(f"outputs within {found['difference']:.1e} of PyTorch's")
