"""`nas measure`: time a whole network."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.commands._app import PATH, app
from nas.commands._options import (
    ArchArgument,
    JsonOption,
    PatienceOption,
    TablesPrecisionOption,
    TablesRuntimeOption,
    TablesThreadsOption,
    read_arch,
    read_table,
)
from nas.commands._output import print_json, progress_bar, say

if TYPE_CHECKING:
    from nas.tables.table import Table


@app.command(rich_help_panel=PATH)
def measure(
    arch: ArchArgument,
    runtime: TablesRuntimeOption = None,
    threads: TablesThreadsOption = None,
    precision: TablesPrecisionOption = None,
    table: Annotated[str | None, typer.Option("--table", "-t", help="Also predict from this table.")] = None,
    patience: PatienceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time a network on this machine, beside a table's prediction.

    It is timed whole, in fresh processes.
    """
    from nas.profiling import profiler
    from nas.profiling.backends import load_backend
    from nas.profiling.machine import this_machine
    from nas.report import facts

    network = read_arch(arch)
    known = read_table(table) if table else None
    usual = ("onnxruntime", 1, "fp32") if known is None else _engine_of(known)
    runtime, threads, precision = runtime or usual[0], threads or usual[1], precision or usual[2]
    variant = sentinel_us = None
    usually = profiler.MEASURE
    if known is not None and (runtime, threads, precision) == usual:
        variant = load_backend(runtime).known_variant(known.header.variant)
        if this_machine(runtime).measured(known.header):
            sentinel_us = known.header.sentinel_us
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
    found: dict[str, Any] = {
        "arch": network.id,
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
    if known is not None:
        prices = facts.estimate(network, known)
        found |= {key: prices[key] for key in ("predicted_ms", "predicted_low_ms", "predicted_high_ms", "table")}
    if as_json:
        return print_json(found)
    say((f"{found['measured_ms']:.4g} ms", "bold"), f" measured (spread {found['measured_spread_ms']:.2g} ms)")
    say(f"{found['runtime']}, {precision}, {threads} thread(s), {found['device']}")
    say((result.text, "yellow" if result.disturbed else ""))
    if known is not None:
        off = found["predicted_ms"] / found["measured_ms"] - 1
        say(f"{found['predicted_ms']:.4g} ms predicted by {table} ({off:+.1%})")


def _engine_of(table: Table) -> tuple[str, int, str]:
    """Runtime, threads and precision of a table."""
    return table.header.runtime, table.header.threads, table.header.precision
