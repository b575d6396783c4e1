"""`nas evaluate`: what a network reaches in the form in which it is deployed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nas.commands._app import PATH, app
from nas.commands._options import JsonOption, PrecisionOption, RuntimeOption, ThreadsOption, WeightsOption
from nas.commands._output import print_json, progress_bar, say
from nas.core.errors import InputError
from nas.core.units import show_bytes


@app.command(rich_help_panel=PATH)
def evaluate(
    arch: Annotated[
        str,
        typer.Argument(metavar="RUN|ARCH", help="A run, the folder of a training, a preset, a JSON file or RUN@31."),
    ],
    weights: WeightsOption = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="digits, imagefolder:PATH, ...; default: what the run trained on."),
    ] = None,
    runtime: RuntimeOption = "onnxruntime",
    precision: PrecisionOption = "fp32",
    threads: ThreadsOption = 1,
    split: Annotated[str, typer.Option("--split", help="val, or test for final figures.")] = "val",
    images: Annotated[int | None, typer.Option("--images", min=1, help="Most images to look at; default: all.")] = None,
    calibration: Annotated[
        int, typer.Option("--calibration", min=1, help="Images of the training split that int8 is made with.")
    ] = 128,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", help="A kind of ops that int8 leaves in fp32: softmax, ... (repeatable)."),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Also: int8 with one kind of ops after the other in fp32.")
    ] = False,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Also time it on this machine.")] = True,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the division of the images; default: that of the training, or 0.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, help="As in the training, so that val is what it held out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a trained network as a runtime runs it.

    Accuracy and agreement with PyTorch in fp32, size of the file, latency. int8 is made by the runtime's own tools.
    """
    from nas.evaluation.deployment import evaluate_arch
    from nas.search.trained import load_trained

    found = load_trained(arch, weights, data)
    if found.weights is None:
        raise InputError(f"{arch}: fresh weights have no accuracy; name trained ones (--weights), or a run")
    if found.data is None:
        raise InputError(f"{arch}: on which images? Name them (--data)")
    with progress_bar() as report:
        facts = evaluate_arch(
            found.arch,
            found.weights,
            found.data,
            runtime=runtime,
            precision=precision,
            threads=threads,
            split=split,
            images=images,
            calibration_images=calibration,
            kept=keep or (),
            sensitivity=sensitivity,
            latency=latency,
            seed=found.seed if seed is None else seed,
            limit=found.limit if limit is None else limit,
            progress=report,
        )
    if as_json:
        return print_json(facts)
    _show(facts)


def _show(facts: dict[str, Any]) -> None:
    of = {"val": "validation", "test": "test"}[facts["split"]]
    say((f"{facts['accuracy']:.2%}", "bold"), f" accuracy in {facts['precision']} with {facts['runtime']}")
    say(f"{facts['fp32_accuracy']:.2%} in PyTorch, fp32; the same class on {facts['agreement']:.2%} of the images")
    made = ""
    if facts["calibration_images"] is not None:
        kept = f", {', '.join(facts['kept'])} left in fp32" if facts["kept"] else ""
        made = f"; made with {facts['calibration_images']} training images{kept}"
    say(f"{facts['images']} {of} images of {facts['data']}{made}")
    if facts["bytes"] is not None:
        say(f"file: {show_bytes(facts['bytes'])}")
    if "latency_ms" in facts:
        say(f"{facts['latency_ms']:.4g} ms on this machine, {facts['threads']} thread(s), {facts['latency_noise']}")
    if "sensitivity_text" in facts:
        say(facts["sensitivity_text"])
        for kind, each in facts["sensitivity"].items():
            say(f"  {kind} in fp32: {each['accuracy']:.2%}")
