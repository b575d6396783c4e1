"""Arguments and options that several commands share, and what reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.core.space import Space
    from nas.tables.table import Table


ArchArgument = Annotated[
    str,
    typer.Argument(
        metavar="ARCH", help="A preset name, a JSON file, a run (its winner) or a trial of one: runs/NAME@31."
    ),
]
TableOption = Annotated[str, typer.Option("--table", "-t", help="A table: a CSV file or the name of a shipped one.")]
RUNTIMES = "onnxruntime, openvino, torch, ... (nas tables lists them with their precisions)"
RuntimeOption = Annotated[str, typer.Option("--runtime", help=f"What runs the network: {RUNTIMES}.")]
PrecisionOption = Annotated[
    str,
    typer.Option("--precision", help="Of weights and activations: fp32, fp16, bf16 or int8, as the runtime has it."),
]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1, help="Threads set in the runtime itself.")]
#: the same for commands that know a table, which says them where they are not given
TablesRuntimeOption = Annotated[
    str | None, typer.Option("--runtime", help=f"{RUNTIMES}; default: the table's, or onnxruntime.")
]
TablesThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads in the runtime; default: the table's, or 1.")
]
TablesPrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="fp32, fp16, bf16, int8; default: the table's, or fp32.")
]
PatienceOption = Annotated[
    float | None,
    typer.Option(
        "--patience",
        min=1.0,
        help="Seconds after which a graph that does not load or end hangs and is given up; default 300, longer for "
        "large graphs.",
    ),
]
SideOption = Annotated[
    int | None,
    typer.Option("--side", min=1, max=4096, help="Side of the images in pixels; by default that of the space."),
]
FixOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fix", help="Hold a choice to a value or to several: stage3.kind=nextvit,mb3d, tokens=6, ... (repeatable)."
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        "-w",
        help="Trained weights: a file (.pt, .safetensors; ours or timm's), the folder of a run, or timm for those that "
        "it publishes of a preset (timm:TAG for one of several); default: fresh ones.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def read_space(name: str, side: int | None, fix: list[str] | None) -> Space:
    from nas.core import parts
    from nas.core.errors import InputError
    from nas.search.request import read_fix

    try:
        return parts.load(name, side, read_fix(fix))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"--fix: {error}") from error


def read_arch(name: str) -> Arch:
    from nas.search.archs import load_arch

    return load_arch(name)


def read_table(name: str) -> Table:
    import latency_tables
    from nas.tables.table import Table

    return Table.read(latency_tables.find(name))
