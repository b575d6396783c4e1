"""`nas train`: train one architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.commands._app import PATH, app
from nas.commands._options import ArchArgument, JsonOption, SeedOption, WeightsOption, read_arch
from nas.commands._output import print_json, progress_bar, say
from nas.core.errors import InputError


@app.command(rich_help_panel=PATH)
def train(
    arch: ArchArgument,
    data: Annotated[
        str, typer.Option("--data", "-d", help="digits, fashion-mnist, cifar10, imagefolder:PATH, hf:NAME, ...")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of weights and log; default runs/train-ARCH-DATA, after the data's own folder too.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="A paper's: efficientformer-300, ...; small for small images.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=2, help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Highest learning rate.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other field of the recipe.")
    ] = None,
    weights: WeightsOption = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="A preset, a JSON file of an arch, or a model of timm.")
    ] = None,
    teacher_weights: Annotated[
        str | None, typer.Option("--teacher-weights", help="Its own, as --weights; without, those that timm publishes.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="CPU threads; more only on cores that nobody else uses.")
    ] = 1,
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, help="Most images to train and validate on; default: all.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train an architecture on a dataset.

    The same command continues from the last epoch written. The head takes the dataset's number of classes; images are
    brought to the arch's input size. On several GPUs:
    torchrun --nproc-per-node 8 --no-python nas train ...
    """
    from nas.evaluation.runs import train_arch

    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr} | dict(read_pair(item) for item in set_ or [])
    fields = {key: value for key, value in given.items() if value is not None}
    network = read_arch(arch)
    with progress_bar() as report:
        found = train_arch(
            network,
            data,
            out,
            fields,
            name=Path(arch).stem,
            recipe=recipe,
            weights=weights,
            teacher=teacher,
            teacher_weights=teacher_weights,
            device=device,
            threads=threads,
            seed=seed,
            limit=limit,
            progress=report,
            note=None if as_json else say,
        )
    if not found.pop("first_process"):
        return  # the first of several processes speaks
    if as_json:
        return print_json(found)
    say("test accuracy ", (f"{found['test_accuracy']:.2%}", "bold"))
    say(f"validation accuracy {found['val_accuracy']:.2%}, loss {found['val_loss']:.4f}")
    place = f"{found['threads']} CPU thread(s)" if found["device"] == "cpu" else found["device"]
    say(f"{found['epochs']} epochs in {found['seconds']:.0f} s on {place}; weights: {found['weights']}")


def read_pair(text: str) -> tuple[str, Any]:
    from nas.core.plain import read_yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set: expected KEY=VALUE, got {text!r}")
    return key, read_yaml(value, f"--set {key}")
