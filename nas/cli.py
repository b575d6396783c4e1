"""The command line: each command translates its arguments into one call of the package and shows what came back.

Exit codes: 0 done, 1 failed (what was asked could not be done), 2 usage (what was asked is wrong).
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from typer.core import TyperGroup

from nas.errors import InputError, NasError, suggest

if TYPE_CHECKING:
    from nas.arch import Arch
    from nas.latency import Table
    from nas.profiling.profiler import Outcome
    from nas.space import Space


class _Commands(TyperGroup):
    """Builds the flags of `search` from the fields of `Request` when it is called, not for `nas --help`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return (name, _search_with_flags(), rest) if name == "search" else (name, command, rest)


app = typer.Typer(
    name="nas",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Search mobile hybrid vision transformers under a latency budget measured on your own device.\n\n"
    "Profile a device into a latency table, search a space under a budget, look at the report, then train, export and "
    "measure the network. An ARCH is a JSON file or a preset name such as efficientformer-l1; a TABLE is a CSV file or "
    "the name of a shipped table (nas tables).\n\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage.",
)

ArchArgument = Annotated[str, typer.Argument(metavar="ARCH", help="A JSON file or a preset name.")]
RequestArgument = Annotated[
    str | None, typer.Argument(metavar="[REQUEST]", help="A YAML file, or the name of a shipped request (quickstart).")
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
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
#: what a profile takes where neither a flag nor a table says otherwise
PROFILED = {"runtime": "onnxruntime", "threads": 1, "precision": "fp32", "level": "block", "method": "auto"}


def main() -> None:
    """Run the command line; errors that nas raises become one message and an exit code."""
    try:
        app(standalone_mode=False)
    except NasError as error:
        _fail(f"{type(error).__name__}: {error}", 2 if isinstance(error, InputError) else 1)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("stopped; the same command continues", 1)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        error.show()  # type: ignore[attr-defined]  # a usage error of the argument parser
        sys.exit(error.exit_code)


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from nas import __version__

        print(f"millinas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def describe(arch: ArchArgument, as_json: JsonOption = False) -> None:
    """Show what an architecture is and costs: parameters, MACs, activation bytes, blocks and ops.

    MACs are multiply-adds of convolutions, linears and matrix products at batch 1, as the papers count them.
    """
    from nas import facts
    from nas.units import show_bytes, show_count

    found = facts.describe(_arch(arch))
    if as_json:
        return _print_json(found)
    size = "x".join(map(str, found["input"]))
    _say(f"[bold]{arch}[/bold] ({found['arch']}), {found['family']}, input {size}, {found['classes']} classes")
    _say(f"{show_count(found['params'])} parameters ({found['params']:,})")
    _say(f"{show_count(found['macs'])} MACs ({found['macs']:,})")
    _say(f"{show_bytes(found['activation_bytes'])} of activations at most, fp32, batch 1")
    rows = [
        (b["stage"], b["block"], ", ".join(b["inputs"]), show_count(b["params"]), show_count(b["macs"]))
        for b in found["blocks"]
    ]
    _print_table(("stage", "block", "inputs", ">parameters", ">MACs"), rows)


@app.command()
def estimate(arch: ArchArgument, table: TableOption, as_json: JsonOption = False) -> None:
    """Predict the latency of an architecture from a table, with the share of each block."""
    from nas import facts

    found = facts.estimate(_arch(arch), _table(table))
    if as_json:
        return _print_json(found)
    low, high = found["predicted_low_ms"], found["predicted_high_ms"]
    interval = f", 90 % between {low:.4g} and {high:.4g} ms" if low is not None else ", no interval known"
    _say(f"[bold]{found['latency_ms']:.4g} ms[/bold] {found['source']}{interval}")
    if found["unmeasured_percent"]:
        _say(f"{found['unmeasured_percent']:.1f} % of it rests on rows that were themselves predicted or imported")
    if found["memory_bytes"] is not None:
        error = f"held-out error {found['memory_mape_percent']:.1f} %"
        _say(f"{found['memory_bytes'] / 1e6:.1f} MB of memory at its peak, predicted ({error})")
    if found["this_machine"]:
        _say(f"by {found['table']}, measured on a machine like this one", markup=False)
    else:
        _say(f"NOT THIS MACHINE: {found['table']} was measured on {found['cpu']}", markup=False)
    rows = [(b["stage"], b["block"], b["inputs"], f"{b['us']:.1f}", f"{b['share']:.1%}") for b in found["blocks"]]
    rows.append(("", "outside the blocks", "", f"{found['outside_blocks_us']:.1f}", ""))
    _print_table(("stage", "block", "inputs", ">us", ">share"), rows)


@app.command()
def measure(
    arch: ArchArgument,
    runtime: TablesRuntimeOption = None,
    threads: TablesThreadsOption = None,
    precision: TablesPrecisionOption = None,
    table: Annotated[str | None, typer.Option("--table", "-t", help="Also predict from this table.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time a whole network on this machine, in fresh processes, beside the prediction of a table."""
    from nas import facts
    from nas.profiling import profiler
    from nas.profiling.backends import load_backend

    network = _arch(arch)
    known = _table(table) if table else None
    usual = ("onnxruntime", 1, "fp32") if known is None else _engine_of(known)
    runtime, threads, precision = runtime or usual[0], threads or usual[1], precision or usual[2]
    variant = None
    if known is not None and (runtime, threads, precision) == usual:
        variant = load_backend(runtime).known_variant(known.header.variant)
    with _progress() as report:
        result = profiler.measure(
            network, runtime=runtime, threads=threads, precision=precision, variant=variant, progress=report
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
    }
    if known is not None:
        prices = facts.estimate(network, known)
        found |= {key: prices[key] for key in ("predicted_ms", "predicted_low_ms", "predicted_high_ms", "table")}
    if as_json:
        return _print_json(found)
    _say(f"[bold]{found['measured_ms']:.4g} ms[/bold] measured (spread {found['measured_spread_ms']:.2g} ms)")
    _say(f"{found['runtime']}, {precision}, {threads} thread(s), {found['device']}")
    if known is not None:
        off = found["predicted_ms"] / found["measured_ms"] - 1
        _say(f"{found['predicted_ms']:.4g} ms predicted by {found['table']} ({off:+.1%})")


def _engine_of(table: Table) -> tuple[str, int, str]:
    """Runtime, threads and precision of a table."""
    return table.header.runtime, table.header.threads, table.header.precision


@app.command()
def profile(
    spaces: Annotated[
        list[str] | None, typer.Argument(metavar="[SPACE]...", help="Spaces (nas spaces), all into one table.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", "-t", "--output", "-o", help="The table to write or complete.")
    ] = None,
    arch: Annotated[str | None, typer.Option("--arch", help="Only the rows that this arch needs.")] = None,
    runtime: TablesRuntimeOption = None,
    threads: TablesThreadsOption = None,
    precision: TablesPrecisionOption = None,
    level: Annotated[
        str | None, typer.Option("--level", help="What a row is, block or op; default: the table's, or block.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help="How rows are timed: chains, in-situ, or auto (default): the table's, or what is better."
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=3, help="Measuring rounds of each pass.")] = None,
    networks: Annotated[
        int | None,
        typer.Option(
            "--networks",
            min=5,
            help="Whole networks for the calibration; default 40: 90 % intervals and confidence budgets need 40.",
        ),
    ] = None,
    budget_minutes: Annotated[
        float | None,
        typer.Option("--budget-minutes", min=0.1, help="Measure the most used rows for so long, predict the others."),
    ] = None,
    accept_noise: Annotated[
        bool, typer.Option("--accept-noise", help="Write the table even where the machine is too noisy.")
    ] = False,
    seed: SeedOption = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is left and how long it takes.")] = False,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Only write a folder that measures on a device without PyTorch: python run.py."),
    ] = None,
    collect: Annotated[
        Path | None, typer.Option("--collect", metavar="DIR", help="Make the table of a bundle that was run.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Collect a bundle that is not complete.")] = False,
    host: Annotated[
        str | None, typer.Option("--host", metavar="USER@BOARD", help="Copy a bundle over ssh, run and collect it.")
    ] = None,
    ssh_port: Annotated[int | None, typer.Option("--ssh-port", help="Port of the host's ssh server.")] = None,
    identity: Annotated[Path | None, typer.Option("--identity", help="File of the private key for the host.")] = None,
    ssh_config: Annotated[Path | None, typer.Option("--ssh-config", help="Configuration file of ssh.")] = None,
    python: Annotated[str, typer.Option("--python", help="The host's Python, with NumPy and the runtime.")] = "python3",
    as_json: JsonOption = False,
) -> None:
    """Measure every row that spaces can need on this machine into a latency table.

    Rows that most archs use come first. Ends with whole networks, the calibration fitted on them, and their memory. The
    same command continues after an interruption, and measures what a time budget left to prediction once it has none;
    rows of another device, runtime version or thread count are never mixed into one file.
    """
    from nas.profiling import device, profiler
    from nas.units import show_seconds

    asked: dict[str, Any] = {"runtime": runtime, "threads": threads, "precision": precision, "level": level}
    asked |= {"method": method, "rounds": rounds, "networks": networks}
    _refuse_without_effect(
        {"--collect": collect, "--host": host, "--bundle": bundle},
        {"--budget-minutes": budget_minutes, "--dry-run": dry_run},
        {"SPACE": spaces, "--arch": arch, **{f"--{key}": value for key, value in asked.items()}},
        {"--partial": partial, "--ssh-port": ssh_port, "--identity": identity, "--ssh-config": ssh_config},
    )
    if collect is not None:
        return _collect(collect, table, partial, accept_noise, as_json)
    known = _table(str(table)) if table is not None and table.is_file() else None
    if known is not None and known.header.method in ("transfer", "imported"):
        raise InputError(
            f"{table}: its rows were not measured by nas profile (its method is {known.header.method}), so it cannot "
            "be completed; profile into a new file: nas profile SPACE --table FILE"
        )
    settings: dict[str, Any] = PROFILED if known is None else {key: getattr(known.header, key) for key in PROFILED}
    settings = settings | {key: value for key, value in asked.items() if value is not None} | {"seed": seed}
    if arch is not None:
        settings["rows"] = profiler.rows_of_arch(_arch(arch), settings["level"])
    if bundle is not None or host is not None:
        (space, *more) = _profiled_spaces(spaces, known, arch)
        if more:
            raise InputError("a bundle is of one space; make one for each, collect them into one table with --table")
        folder = _bundle(space, bundle or Path("bundles") / f"{host}-{space.name}", settings)
        if host is None:
            return _say(f"{folder}: copy it to the device, there: python run.py; back here: nas profile --collect DIR")
        from nas.profiling.remote import Remote

        with _progress() as report:
            Remote(host, ssh_port, identity, python, config=ssh_config).measure(folder, report)
        return _collect(folder, table, partial, accept_noise, as_json)
    jobs = []
    for space in _profiled_spaces(spaces, known, arch):
        name = profiler.table_name(space, *(settings[key] for key in ("runtime", "threads", "level", "precision")))
        path = table or Path("latency_tables") / device.this_machine(settings["runtime"]).slug / name
        jobs.append(profiler.job_of(space, path=path, **settings))
    left = [profiler.plan(job) for job in jobs]
    total = {
        "table": str(jobs[0].path),
        "rows": sum(plan.total for plan in left),
        "left": sum(plan.total - plan.done for plan in left),
        "seconds": sum(plan.seconds for plan in left),
    }
    if dry_run and as_json:
        return _print_json(total)
    for job, plan in zip(jobs, left, strict=True):
        if not as_json:
            text = f"{plan.done} of {plan.total} rows of {job.space.name} measured"
            _say(f"{job.path}: {text}; about {show_seconds(plan.seconds)} left")
    if dry_run:
        return None
    with _progress() as report:
        outcomes = profiler.run_each(jobs, budget_minutes=budget_minutes, accept_noise=accept_noise, progress=report)
    found = [_profile_facts(job.space, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]
    if as_json:
        return _print_json(found[0] if len(found) == 1 else {"profiles": found})
    for facts in found:
        _say_profile(facts)


def _refuse_without_effect(
    ways: dict[str, Any], here: dict[str, Any], what: dict[str, Any], elsewhere: dict[str, Any]
) -> None:
    """Raise for options of `nas profile` that would be ignored.

    Args:
        ways: the options that make or use a bundle.
        here: those that only a profile of this machine heeds.
        what: those that say what to measure, which a bundle that was made knows.
        elsewhere: those of bundles that are collected.
    """
    way = next((name for name, value in ways.items() if value), None)
    if way == "--collect":
        idle = here | what | {"--host": ways["--host"], "--bundle": ways["--bundle"]}
    elif way is not None:
        idle = here | (elsewhere if way == "--bundle" else {})
    else:
        idle = elsewhere
    if given := [name for name, value in idle.items() if value]:
        where = f"with {way}" if way is not None else "without --collect or --host"
        raise InputError(f"{', '.join(given)}: no effect {where}; leave out one or the other")


def _bundle(space: Space, folder: Path, settings: dict[str, Any]) -> Path:
    """Write a bundle, or find it there already."""
    from nas.profiling.bundle import make

    if settings["method"] not in ("chains", "auto"):
        raise InputError(f"method: bundles are timed by chains, not {settings['method']}")
    with _progress() as report:
        return make(space, folder=folder, progress=report, **{k: v for k, v in settings.items() if k != "method"})


def _collect(folder: Path, table: Path | None, partial: bool, accept_noise: bool, as_json: bool) -> None:
    """Make the table of a bundle."""
    from nas import facts
    from nas.profiling.bundle import collect

    result = collect(folder, output=table, partial=partial, accept_noise=accept_noise)
    found = facts.table_facts(result)
    if as_json:
        return _print_json(found)
    _say(f"[bold]{result.path}[/bold]: {found['rows']} rows, {found['networks']} networks, on {result.header.cpu}")


def _profile_facts(space: Space, outcome: Outcome) -> dict[str, Any]:
    """What a profile put into its table, for this space and as a whole."""
    from nas import facts
    from nas.latency import LARGE_US, SMALL_US, scope_of
    from nas.profiling.profiler import unmeasured_percent

    table, guess = outcome.table, outcome.prediction
    found = facts.table_facts(table) | {
        "space": space.name,
        "repeatability_p95_percent": table.repeatability(SMALL_US),
        "repeatability_p95_large_percent": table.repeatability(LARGE_US),
        "noise": None if outcome.noise is None else str(outcome.noise),
        "problems": list(outcome.problems),
        "prediction": None,
    }
    if guess is not None:
        whole = scope_of(space) in table.header.spaces  # not where only an arch's rows were asked for
        found["prediction"] = {
            "rows": len(guess.entries),
            "behind": guess.behind,
            "model": guess.model,
            "mape_percent": guess.mape_percent,
            "share_of_typical_network_percent": unmeasured_percent(table, space) if whole else None,
        }
    return found


def _say_profile(found: dict[str, Any]) -> None:
    path, guess = found["table"], found["prediction"]
    _say(f"[bold]{path}[/bold]: {found['rows']} rows, {found['networks']} networks, profiled {found['space']}")
    if guess is not None:
        share = guess["share_of_typical_network_percent"]
        typical = "" if share is None else f"; they are {share:.0f} % of the time of a typical network"
        _say(
            f"{guess['rows']} rows predicted from {guess['behind']} measured ones ({guess['model']}): off by "
            f"{guess['mape_percent']:.1f} % on average in cross-validation{typical}. The same command without "
            "--budget-minutes measures them"
        )
    for name, least in (("repeatability_p95_large_percent", "0.5"), ("repeatability_p95_percent", "0.1")):
        if found[name] is not None:
            _say(f"two fresh processes lie up to {found[name]:.1f} % apart (p95 of rows of {least} ms and more)")
        else:
            _say(f"repeatability of rows of {least} ms and more: there are none")
    for size, line in found["calibrations"].items():
        _say(f"calibration at {size}: {line}")
    if not found["calibrations"]:
        _say("calibration: none, fewer than 5 networks measured")
    for line in found["problems"]:
        _say(line, markup=False)
    _say(f"Next: nas validate {path}, or nas search --table {path} --budget 'latency_ms<=p40'")


def _profiled_spaces(names: list[str] | None, table: Table | None, arch: str | None) -> list[Space]:
    """The spaces to profile: those named, or those of the table or arch; with the arch's size and classes."""
    import search_spaces

    if arch is not None:
        network = _arch(arch)
        found = [search_spaces.load(name) for name in names or [network.family]]
        return [replace(space, input_shape=network.input_shape, classes=network.classes) for space in found]
    if names:
        return [search_spaces.load(name) for name in names]
    if table is None:
        raise InputError(f"which space? Known: {', '.join(search_spaces.spaces())}")
    if not table.spaces:
        raise InputError(f"which space? {table.where} holds none as a whole")
    return list(table.spaces)


@app.command()
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
    """Predict a table for this machine from few measured networks and the full tables of others.

    Its rows are marked as predicted and carry their standard errors. A third of the networks, unseen by the rows, gives
    the calibration and the error; nas validate checks it on others. The same command continues after an interruption.
    """
    from nas import facts
    from nas.profiling import transferring

    known = [_table(name) for name in sources]
    with _progress() as report:
        result = transferring.transfer_table(
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
        return _print_json(found)
    _say(f"[bold]{path}[/bold]: {found['rows']} rows predicted from {measure} networks and {len(known)} table(s)")
    for size, line in found["calibrations"].items():
        _say(f"calibration at {size}: {line}")
    if not found["calibrations"]:
        _say("calibration: none, so no error is known; 10 networks or more give one")
    _say(f"Next: nas validate {path}")


@app.command(name="import")
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
    """Take over a latency table of others; what has no exact equivalent is listed with the reason, never guessed.

    A csv has the columns block,fields,inputs, then us or ms, and if wanted spread_us or spread_ms and count.
    """
    from nas.importing import Origin, import_table

    origin = Origin(device, runtime, precision, threads, cpu, runtime_version=version, date=date)
    found = import_table(path, origin, format=kind, unit=unit, spaces=spaces or ())
    found.write(output)
    if as_json:
        skipped = [{"key": key, "reason": reason} for key, reason in found.skipped]
        return _print_json({"table": str(output), "rows": len(found.table.entries), "skipped": skipped})
    for key, reason in found.skipped:
        _say(f"not representable: {key}: {reason}", markup=False)
    _say(f"[bold]{output}[/bold]: {len(found.table.entries)} rows imported, {len(found.skipped)} not representable")


@app.command()
def search() -> None:
    """Search a space under hard budgets; train, measure, export and report the winner.

    The same command continues a stopped or killed search.
    """
    raise NotImplementedError  # _Commands puts the command with all flags in its place


def _search_with_flags() -> Any:
    """The search command: a request file, and a flag for every field of `Request`."""
    from nas.request import Request

    flags = [_flag(name, field) for name, field in Request.model_fields.items()]
    request = inspect.Parameter(
        "request", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=RequestArgument
    )
    as_json = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption)

    def command(request: str | None = None, as_json: bool = False, **fields: Any) -> None:
        given = {key: value for key, value in fields.items() if value is not None and value != []}
        _run_search(request, given, as_json)

    command.__doc__ = search.__doc__
    command.__signature__ = inspect.Signature([request, *flags, as_json])  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in (request, *flags, as_json)}
    only = typer.Typer(add_completion=False)
    only.command(name="search")(command)
    return typer.main.get_command(only)


def _flag(name: str, field: Any) -> inspect.Parameter:
    """A field of the request as an option; its default shows in the help but stays unset, for the file to fill in."""
    texts = name == "budgets"
    kind = list[str] if texts else bool if field.annotation is bool else int if _is_int(field) else str
    spelled = "--budget" if texts else f"--{name.replace('_', '-')}"
    shown = field.get_default(call_default_factory=True)
    default = f" Default: {shown}." if shown not in (None, (), False) else ""
    option = typer.Option(
        spelled, *(("-t",) if name == "table" else ()), help=field.description + default, show_default=False
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _is_int(field: Any) -> bool:
    return int in (field.annotation, *get_args(field.annotation))


def _run_search(request: str | None, given: dict[str, Any], as_json: bool) -> None:
    from nas.request import Request
    from nas.search.run import run_search

    asked = Request.read(_request_file(request), **given) if request is not None else Request(**given)
    with _progress() as report:
        folder = run_search(asked, log=lambda line: _note(line, report), progress=report)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if as_json:
        return _print_json(result | {"run": str(folder)})
    winner = result["winner"]
    measured = "not measured" if winner["measured_ms"] is None else f"{winner['measured_ms']:.3f} ms measured"
    _say(f"[bold]{winner['arch']}[/bold]: {measured}, {winner['predicted_ms']:.3f} ms predicted")
    for budget in result["budgets"]:
        _say(f"budget {budget['asked']}: {budget['limit']:.6g}")
    accuracy = winner["training"]["test_accuracy"]
    _say(f"test accuracy {accuracy:.2%}, {winner['params']:,} parameters, {winner['macs']:,} MACs")
    _say(f"[bold]{folder / 'report.html'}[/bold]; the network: {folder / 'best.onnx'}, {folder / 'best.json'}")


def _request_file(name: str) -> Path:
    """A request's file: a path, or the name of a shipped one."""
    shipped = {path.stem: path for path in (Path(__file__).parent / "requests").glob("*.yaml")}
    if Path(name).is_file() or Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    if name not in shipped:
        raise InputError(f"{suggest('request', name, shipped)} It is no file either")
    return shipped[name]


@app.command()
def validate(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A table: a CSV file or the name of a shipped one.")],
    archs: Annotated[int, typer.Option("--archs", min=12, help="Unseen networks to measure.")] = 40,
    seed: SeedOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure unseen networks, spread evenly in log latency over the table's spaces, against its predictions.

    They become the table's card, written into its file where it is one of this machine. On another machine the error is
    given raw and after one scale refitted on five other networks. The same command continues after an interruption.
    """
    from nas.profiling import validation

    with _progress() as report:
        result = validation.validate(_table(table), archs=archs, seed=seed, progress=report)
    if as_json:
        return _print_json(result.facts())
    _say(result.text(), markup=False)


@app.command()
def train(
    arch: ArchArgument,
    data: Annotated[str, typer.Option("--data", "-d", help="digits, fashion-mnist, cifar10, imagefolder:PATH, ...")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of weights and log; default runs/train-ARCH-DATA.")
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
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="A preset, a JSON file of an arch, or a model of timm.")
    ] = None,
    teacher_weights: Annotated[
        Path | None, typer.Option("--teacher-weights", help="Its state dict; without, those that timm publishes.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; 1 where others compute.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, help="Most images to train and validate on; default: all.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train an architecture on a dataset; the same command continues from the last epoch written.

    The head takes the dataset's number of classes; images are brought to the arch's input size. On several GPUs:
    torchrun --nproc-per-node 8 --no-python nas train ...
    """
    from nas.evaluation.runs import train_arch

    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr} | dict(_pair(item) for item in set_ or [])
    fields = {key: value for key, value in given.items() if value is not None}
    network = _arch(arch)
    folder = out or Path("runs") / f"train-{Path(arch).stem}-{data.split(':')[0]}"
    with _progress() as report:
        found = train_arch(
            network,
            data,
            folder,
            fields,
            recipe=recipe,
            teacher=teacher,
            teacher_weights=teacher_weights,
            device=device,
            threads=threads,
            seed=seed,
            limit=limit,
            progress=report,
        )
    if not found.pop("first_process"):
        return  # the first of several processes speaks
    if as_json:
        return _print_json(found)
    _say(f"test accuracy [bold]{found['test_accuracy']:.2%}[/bold]")
    _say(f"validation accuracy {found['val_accuracy']:.2%}, loss {found['val_loss']:.4f}")
    _say(f"{found['epochs']} epochs in {found['seconds']:.0f} s; weights: {found['weights']}")


@app.command()
def export(
    arch: ArchArgument,
    format_: Annotated[str, typer.Option("--format", "-f", help="File format: onnx.")] = "onnx",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file; default ARCH.FORMAT.")] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", "-w", help="A state dict (.pt); default: fresh weights.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a network in deployed form (norms folded, heads merged), checked against PyTorch's outputs."""
    from nas.evaluation.runs import export_arch

    target = out or Path(f"{Path(arch).stem}.{format_}")
    found = export_arch(_arch(arch), target, format_, weights)
    if as_json:
        return _print_json(found)
    _say(f"[bold]{found['file']}[/bold], {found['bytes'] / 2**20:.1f} MiB")
    _say(f"outputs within {found['difference']:.1e} of PyTorch's")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/quickstart.")],
    as_json: JsonOption = False,
) -> None:
    """Write the report of a finished run again: one HTML file that works offline."""
    from nas.report import write_report

    path = write_report(run)
    _print_json({"report": str(path)}) if as_json else _say(f"[bold]{path}[/bold]")


@app.command()
def spaces(as_json: JsonOption = False) -> None:
    """List the spaces: number of distinct archs, rows to measure, minutes to profile; and the presets."""
    import search_spaces
    from nas import facts

    found = facts.spaces()
    if as_json:
        return _print_json({"spaces": found, "presets": sorted(search_spaces.presets())})
    rows = [
        (
            s["space"],
            "x".join(map(str, s["input"])),
            f"{s['archs']:,}",
            str(s["rows"]),
            str(s["op_rows"]),
            f"{s['minutes_to_profile']:g}",
        )
        for s in found
    ]
    _print_table(("space", "input", ">archs", ">rows", ">op rows", ">minutes"), rows)
    for name in search_spaces.families():
        if names := sorted(getattr(search_spaces.family(name), "PRESETS", {})):
            _say(f"presets of {name}: {', '.join(names)}")


@app.command()
def tables(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[TABLE]...", help="Further table files.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the shipped latency tables with what they hold and how far they can be trusted; and the runtimes.

    MAPE, bias, share of networks within 5 %, Kendall's tau and coverage of the 90 % interval are of a table's card: of
    networks that it was not fitted on (nas validate).
    """
    from nas import facts

    found, runtimes, untested = facts.tables(*(paths or [])), facts.runtimes(), facts.untested()
    if as_json:
        return _print_json({"tables": found, "runtimes": runtimes, "untested_runtimes": untested})
    for device, group in itertools.groupby(found, key=lambda t: str(Path(t["name"]).parent)):
        _say(f"[bold]{device}[/bold]")
        columns = ("table", "measured with", "spaces", ">rows", ">MAPE", ">bias", ">in 5 %", ">Kendall", ">covered")
        _print_table(columns, [_table_line(t) for t in group])
    for t in found:
        if "error" in t:
            _say(f"{t['table']}: {t['error']}", markup=False)
    _say("[bold]runtimes[/bold] (untested: we had no such hardware to run them on)")
    lines = [(name, ", ".join(known), untested.get(name, "")) for name, known in runtimes.items()]
    _print_table(("runtime", "precisions", ""), [(*line, where and f"untested: {where}") for *line, where in lines])


def _table_line(table: dict[str, Any]) -> tuple[str, ...]:
    """A table's line in `nas tables`."""
    name = Path(table["name"]).name
    if "error" in table:
        return (name, "cannot be read, see below", *[""] * 7)
    settings = f"{table['runtime'].split()[0]} {table['precision']} {table['threads']}t, {table['level']}"
    predicted = f", {table['unmeasured_rows']} not measured" if table["unmeasured_rows"] else ""
    line = (name, settings, ", ".join(table["spaces"]) or "none whole", f"{table['rows']}{predicted}")
    if (card := table["card"]) is None:
        return (*line, "no card", *[""] * 4)
    covered = card["coverage_percent"]
    return (
        *line,
        f"{card['mape_percent']:.1f} %",
        f"{card['bias_percent']:+.1f} %",
        f"{card['within_5_percent']:.0f} %",
        f"{card['kendall']:.3f}",
        "-" if covered is None else f"{covered:.0f} %",
    )


def _arch(name: str) -> Arch:
    from nas.building import load_arch

    return load_arch(name)


def _table(name: str) -> Table:
    import latency_tables
    from nas.latency import Table

    return Table.read(latency_tables.find(name))


def _pair(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set: expected KEY=VALUE, got {text!r}")
    return key, yaml.safe_load(value)


def _print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, indent=2))


def _say(text: str, markup: bool = True) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=markup)


def _print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows; a column whose name begins with `>` is aligned right."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(highlight=False)
    table = RichTable(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _note(line: str, progress: Callable[..., None]) -> None:
    """A line worth telling, above the bar on standard error."""
    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _progress() -> Iterator[Callable[..., None]]:
    """A bar on standard error, and the callback that moves it: `(done, total, seconds_left, text)`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from nas.units import show_seconds

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def report(done: float, total: float, seconds_left: float | None = None, text: str = "") -> None:
            left = "" if seconds_left is None else f"{show_seconds(seconds_left)} left"
            bar.update(task, completed=done, total=total, description=text, left=left)

        report.console = bar.console  # type: ignore[attr-defined]
        yield report


if __name__ == "__main__":
    main()
