"""`nas transfer`, `nas import`: tables made from those of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.commands._app import TABLES, app
from nas.commands._options import JsonOption, PrecisionOption, RuntimeOption, SeedOption, ThreadsOption, read_table
from nas.commands._output import print_json, progress_bar, say


@app.command(rich_help_panel=TABLES)
def transfer(
    sources: Annotated[
        list[str], typer.Option("--from", metavar="TABLE", help="A full table of another device or runtime; repeat.")
    ],
    path: Annotated[Path, typer.Option("--to", help="The table to write.")],
    measure: Annotated[int, typer.Option("--measure", min=5, help="Whole networks to measure.")] = 20,
    runtime: RuntimeOption = "onnxruntime",
    threads: ThreadsOption = 1,
    precision: PrecisionOption = "fp32",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Predict a table for this machine from those of others.

    A few networks are measured here. Its rows are marked as predicted and carry their standard errors. A third of the
    networks, unseen by the rows, gives the calibration and the error; nas validate checks it on others. The same
    command continues after an interruption.
    """
    from nas.profiling.transfer import transfer_table
    from nas.report import facts

    known = [read_table(name) for name in sources]
    with progress_bar() as report:
        result = transfer_table(
            known,
            path=path,
            measure=measure,
            runtime=runtime,
            threads=threads,
            precision=precision,
            seed=seed,
            progress=report,
        )
    found = facts.table_facts(result)
    if as_json:
        return print_json(found)
    say((str(path), "bold"), f": {found['rows']} rows predicted from {measure} networks and {len(known)} table(s)")
    for size, line in found["calibrations"].items():
        say(f"calibration at {size}: {line}")
    if not found["calibrations"]:
        say("calibration: none, so no error is known; 10 networks or more give one")
    say(f"Next: nas validate {path}")


@app.command(name="import", rich_help_panel=TABLES)
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A foreign latency table.")],
    kind: Annotated[str, typer.Option("--format", help="Of the file: ofa (Once-for-All, ProxylessNAS) or csv.")],
    output: Annotated[Path, typer.Option("--output", "-o", "--table", "-t", help="The table to write.")],
    device: Annotated[str, typer.Option("--device", help="What it was measured on: a short name.")],
    runtime: Annotated[str, typer.Option("--runtime", help="What ran the blocks.")],
    precision: Annotated[str, typer.Option("--precision", help="Of weights and activations.")],
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")],
    unit: Annotated[str | None, typer.Option("--unit", help="Of latencies in ofa files: us or ms.")] = None,
    cpu: Annotated[str, typer.Option("--cpu", help="Model name of the processor.")] = "unknown",
    version: Annotated[str, typer.Option("--runtime-version", help="Version of the runtime.")] = "unknown",
    date: Annotated[str, typer.Option("--date", help="When it was measured, ISO.")] = "unknown",
    spaces: Annotated[
        list[str] | None, typer.Option("--space", help="A space of which it holds every row; repeat.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take over a latency table of another tool.

    What has no exact equivalent is listed with the reason, never guessed. A csv has the columns block,fields,inputs,
    then us or ms, and if wanted spread_us or spread_ms and count.
    """
    from nas.tables.importing import Origin, import_table

    origin = Origin(device, runtime, precision, threads, cpu, runtime_version=version, date=date)
    found = import_table(path, origin, format=kind, unit=unit, spaces=spaces or ())
    found.write(output)
    if as_json:
        skipped = [{"key": key, "reason": reason} for key, reason in found.skipped]
        return print_json({"table": str(output), "rows": len(found.table.entries), "skipped": skipped})
    for key, reason in found.skipped:
        say(f"not representable: {key}: {reason}")
    say((str(output), "bold"), f": {len(found.table.entries)} rows imported, {len(found.skipped)} not representable")
