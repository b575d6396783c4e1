"""`nas slim`: take away from a trained network until it keeps a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nas.commands._app import PATH, app
from nas.commands._options import ArchArgument, JsonOption, SeedOption, TableOption
from nas.commands._output import note, print_json, progress_bar, say
from nas.core.errors import InputError, suggest


@app.command(rich_help_panel=PATH)
def slim(
    arch: ArchArgument,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            "-w",
            help="Trained weights: a file (.pt, .safetensors; ours or timm's), the folder of a run, timm or timm:TAG.",
        ),
    ],
    table: TableOption,
    budget: Annotated[
        list[str], typer.Option("--budget", "-b", help="latency_ms<=6, latency_ms<=p60, params<=5e6 (repeatable).")
    ],
    data: Annotated[str, typer.Option("--data", "-d", help="digits, fashion-mnist, cifar10, imagefolder:PATH, ...")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; default runs/slim-ARCH-DATA.")] = None,
    rule: Annotated[str, typer.Option("--rule", help="drop: the least loss for what is saved.")] = "drop",
    until: Annotated[
        str, typer.Option("--until", help="budget, or smallest: go on for the whole curve; the result is the same.")
    ] = "budget",
    by: Annotated[str, typer.Option("--by", help="What an action costs: validation loss or accuracy.")] = "loss",
    exponent: Annotated[
        list[str] | None,
        typer.Option(
            "--exponent",
            metavar="METRIC=VALUE",
            help="Of a metric in the joint score of several budgets; default latency_ms=1, others 0.5.",
        ),
    ] = None,
    recover: Annotated[int, typer.Option("--recover", min=0, help="Epochs of training after each step.")] = 1,
    recalibrate: Annotated[
        int, typer.Option("--recalibrate", min=2, help="Training images behind the statistics of batch norms.")
    ] = 512,
    validate: Annotated[
        int | None, typer.Option("--validate", min=1, help="Validation images that actions are tried on; default: all.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Of the trainings; see nas train.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Of fine-tuning the result.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other field of the recipe.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="A preset, a JSON file, a model of timm; default: the original.")
    ] = None,
    teacher_weights: Annotated[str | None, typer.Option("--teacher-weights", help="Its own, as --weights.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Processes that try actions at once.")] = 1,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, help="Most images to train and validate on; default: all.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Slim a trained network down to a budget, on your data.

    Step after step the cheaper neighbour in its space that loses least for what it saves by the table; then it is
    fine-tuned with the original as teacher, measured and exported. The same command continues.
    """
    from nas.commands.train import read_pair
    from nas.search.slimming import EXPONENTS
    from nas.search.slimming import slim as run

    for what, word, legal in (("--until", until, ("budget", "smallest")), ("--by", by, ("loss", "accuracy"))):
        if word not in legal:
            raise InputError(suggest(what, word, legal))
    fields = ({} if epochs is None else {"epochs": epochs}) | dict(read_pair(item) for item in set_ or [])
    with progress_bar() as report:
        found: dict[str, Any] = run(
            arch,
            weights,
            table,
            budget,
            data,
            out,
            rule=rule,
            until=until,  # type: ignore[arg-type]  # checked above
            by=by,  # type: ignore[arg-type]
            exponents={**EXPONENTS, **dict(_power(item) for item in exponent or [])},
            recover=recover,
            recalibrate=recalibrate,
            validate=validate,
            fields=fields,
            recipe=recipe,
            teacher=teacher,
            teacher_weights=teacher_weights,
            workers=workers,
            device=device,
            seed=seed,
            limit=limit,
            log=lambda line: note(line, report),
            progress=report,
        )
    if as_json:
        return print_json(found)
    first, last = found["original"], found["result"]
    if last is None:
        return say(f"nothing to slim: the original takes {first['latency_ms']:.4g} ms, within the budget")
    say(f"original {first['latency_ms']:.4g} ms, test accuracy {first['test_accuracy']:.2%}")
    measured = "not measured" if last["measured_ms"] is None else f"{last['measured_ms']:.4g} ms measured"
    say(
        (f"slimmed {last['predicted_ms']:.4g} ms", "bold"),
        f" predicted, {measured}, test accuracy {last['test_accuracy']:.2%}, after {last['step']} steps",
    )
    say(f"{last['onnx']}; each step: {Path(found['run']) / 'slimming.csv'}")


def _power(text: str) -> tuple[str, float]:
    from nas.metrics import load_metric

    name, equals, value = text.partition("=")
    try:
        power = float(value)
    except ValueError:
        power = 0.0
    if not equals or not 0 < power <= 1:
        raise InputError(f"--exponent: expected METRIC=VALUE with a value above 0 and up to 1, got {text!r}")
    return load_metric(name).name, power
