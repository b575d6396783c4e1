"""`nas export`: write a network as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands._app import PATH, app
from nas.commands._options import JsonOption, WeightsOption
from nas.commands._output import print_json, say
from nas.core.units import show_bytes


@app.command(rich_help_panel=PATH)
def export(
    arch: Annotated[
        str,
        typer.Argument(metavar="RUN|ARCH", help="A run, the folder of a training, a preset, a JSON file or RUN@31."),
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="onnx, openvino, ncnn, litert, executorch, pt2, safetensors, or python: plain PyTorch without nas.",
        ),
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file; default: named after the network and the format.")
    ] = None,
    weights: WeightsOption = None,
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or int8, as the format has it.")] = "fp32",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Images to compare on, and to make int8 with: digits, imagefolder:PATH, ...; default: what a run "
            "trained on, else random ones.",
        ),
    ] = None,
    calibration: Annotated[
        int, typer.Option("--calibration", min=1, help="Images of the training split that int8 is made with.")
    ] = 128,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, max=1, help="Accuracy that int8 may cost, else no file is left.")
    ] = 0.02,
    as_json: JsonOption = False,
) -> None:
    """Export a network for a runtime, with a script that runs it there.

    In deployed form: norms folded, heads merged. The file takes its name once that script has given PyTorch's outputs.
    As python it is a module of plain PyTorch that takes the weights of runs; as safetensors the weights alone.
    """
    from nas.evaluation.exporting import default_name, export_arch
    from nas.search.trained import load_trained

    found = load_trained(arch, weights, data)
    target = out or Path(default_name(Path(arch).stem, format_, precision))
    facts = export_arch(
        found.arch,
        target,
        format_,
        found.weights,
        precision=precision,
        data=found.data,
        calibration_images=calibration,
        max_drop=max_drop,
        seed=found.seed,
        limit=found.limit,
    )
    if as_json:
        return print_json(facts)
    say((facts["file"], "bold"), f", {show_bytes(facts['bytes'])}" + ("" if found.weights else ", fresh weights"))
    if "accuracy" in facts:
        say(
            f"{facts['accuracy']:.2%} of {facts['images']} validation images, PyTorch in fp32 "
            f"{facts['fp32_accuracy']:.2%}; the same class on {facts['agreement']:.2%}"
        )
    say(f"outputs within {facts['difference']:.1e} of PyTorch's")
    if "script" in facts:
        say(f"{facts['script']} runs it")
