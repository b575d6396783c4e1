"""`nas measure`: time a whole network."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.commands._app import PATH, app
from nas.commands._options import (
    JsonOption,
    PatienceOption,
    TablesPrecisionOption,
    TablesRuntimeOption,
    TablesThreadsOption,
    read_arch,
    read_table,
)
from nas.commands._output import print_json, progress_bar, say
from nas.core.errors import InputError
from nas.core.units import show_count

if TYPE_CHECKING:
    from nas.networks.foreign import Foreign
    from nas.tables.table import Table


@app.command(rich_help_panel=PATH)
def measure(
    arch: Annotated[
        str | None,
        typer.Argument(
            metavar="[ARCH]", help="A preset name, a JSON file, a run (its winner) or a trial of one: runs/NAME@31."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="In place of ARCH a model of a library: timm:NAME, torchvision:NAME."),
    ] = None,
    input_size: Annotated[
        str | None, typer.Option("--input-size", help="Of --model: 224 or 3x224x224; default: as its library says.")
    ] = None,
    runtime: TablesRuntimeOption = None,
    threads: TablesThreadsOption = None,
    precision: TablesPrecisionOption = None,
    table: Annotated[
        str | None, typer.Option("--table", "-t", help="Also predict from this table; of --model only how to measure.")
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(
            "--points",
            help="Add --model to this file: for nas shortlist --points, or a run's report (RUN/points.json).",
        ),
    ] = None,
    top1: Annotated[
        float | None,
        typer.Option("--top1", min=0.0, max=1.0, help="Accuracy of --model on ImageNet, 0 to 1, as you know it."),
    ] = None,
    patience: PatienceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a network on this machine, beside a table's prediction.

    It is timed whole, in fresh processes. A model of timm or torchvision is measured and never predicted.
    """
    from nas.profiling import profiler
    from nas.profiling.backends import load_backend
    from nas.profiling.machine import this_machine
    from nas.report import facts

    if (arch is None) == (model is None):
        raise InputError("name one network to measure: ARCH, or --model timm:NAME")
    if model is None and (input_size or points or top1 is not None):
        raise InputError("--input-size, --points and --top1 are of a --model; a table predicts an ARCH")
    foreign = None if model is None else _foreign(model, input_size)
    network = read_arch(arch) if arch is not None else foreign
    assert network is not None
    known = read_table(table) if table else None
    usual = ("onnxruntime", 1, "fp32") if known is None else _engine_of(known)
    runtime, threads, precision = runtime or usual[0], threads or usual[1], precision or usual[2]
    variant = sentinel_us = None
    usually = profiler.MEASURE
    if known is not None and (runtime, threads, precision) == usual:
        variant = load_backend(runtime).known_variant(known.header.variant)
        if this_machine(runtime).measured(known.header):
            sentinel_us = known.header.sentinel_us
    cost = None if foreign is None else foreign.cost()  # before the long part: whether it is a classifier at all
    with progress_bar() as report:
        result = profiler.measure(
            network,
            runtime=runtime,
            threads=threads,
            precision=precision,
            variant=variant,
            sentinel_us=sentinel_us,
            settings=replace(usually, patience_seconds=patience or usually.patience_seconds),
            progress=report,
        )
    named: dict[str, Any] = {"arch": network.id}
    if foreign is not None and cost is not None:
        named = {"model": foreign.name, "input": list(foreign.input_shape), "params": cost.params, "macs": cost.macs}
    found: dict[str, Any] = named | {
        "measured_ms": result.us / 1e3,
        "measured_spread_ms": result.spread_us / 1e3,
        "samples": result.count,
        "runtime": f"{runtime} {result.runtime_version}",
        "precision": precision,
        "threads": threads,
        "device": result.device,
        "source": "measured",
        "noise": result.noise,
        "disturbed": result.disturbed,
        "noise_text": result.text,
    }
    if known is not None and arch is not None:
        prices = facts.estimate(read_arch(arch), known)
        found |= {key: prices[key] for key in ("predicted_ms", "predicted_low_ms", "predicted_high_ms", "table")}
    if points is not None:
        _add(points, found, top1)
    if as_json:
        return print_json(found)
    say((f"{found['measured_ms']:.4g} ms", "bold"), f" measured (spread {found['measured_spread_ms']:.2g} ms)")
    say(f"{found['runtime']}, {precision}, {threads} thread(s), {found['device']}")
    if cost is not None:
        say(
            f"{show_count(cost.params)} parameters, {show_count(cost.macs)} MACs; not predicted, its blocks are no rows"
        )
    say((result.text, "yellow" if result.disturbed else ""))
    if "predicted_ms" in found:
        off = found["predicted_ms"] / found["measured_ms"] - 1
        say(f"{found['predicted_ms']:.4g} ms predicted by {table} ({off:+.1%})")


def _foreign(name: str, input_size: str | None) -> Foreign:
    from nas.networks.foreign import find

    return find(name, input_size)


def _add(path: Path, found: dict[str, Any], top1: float | None) -> None:
    from nas.report.points import FIELDS, add_point

    today = datetime.date.today().isoformat()
    known = found | {"name": found["model"], "date": today}
    add_point(path, {key: known[key] for key in FIELDS} | {"top1": top1})


def _engine_of(table: Table) -> tuple[str, int, str]:
    """Runtime, threads and precision of a table."""
    return table.header.runtime, table.header.threads, table.header.precision
