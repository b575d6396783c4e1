"""`nas profile`: a latency table of this machine, or by a bundle of another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.commands._app import PATH, app
from nas.commands._options import (
    FixOption,
    JsonOption,
    PatienceOption,
    SeedOption,
    SideOption,
    TablesPrecisionOption,
    TablesRuntimeOption,
    TablesThreadsOption,
    read_arch,
    read_space,
    read_table,
)
from nas.commands._output import print_json, progress_bar, say
from nas.core.errors import InputError

if TYPE_CHECKING:
    from nas.core.space import Space
    from nas.profiling.profiler import Outcome
    from nas.tables.table import Table


#: what a profile takes where neither a flag nor a table says otherwise
PROFILED = {"runtime": "onnxruntime", "threads": 1, "precision": "fp32", "level": "block", "method": "auto"}


@app.command(rich_help_panel=PATH)
def profile(
    spaces: Annotated[
        list[str] | None, typer.Argument(metavar="[SPACE]...", help="Spaces (nas spaces), all into one table.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option("--table", "-t", "--output", "-o", help="The table to write or complete.")
    ] = None,
    fix: FixOption = None,
    side: SideOption = None,
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
    patience: PatienceOption = None,
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
    """Measure this machine into a latency table for whole spaces.

    Every row that they can need is measured. Rows that most archs use come first. Ends with whole networks, the
    calibration fitted on them, and their memory. The same command continues after an interruption, and measures what a
    time budget left to prediction once it has none; rows of another device, runtime version or thread count are never
    mixed into one file.
    """
    from nas.core.units import show_seconds
    from nas.profiling import machine, profiler

    asked: dict[str, Any] = {"runtime": runtime, "threads": threads, "precision": precision, "level": level}
    asked |= {"method": method, "rounds": rounds, "networks": networks}
    _refuse_without_effect(
        {"--collect": collect, "--host": host, "--bundle": bundle},
        {"--budget-minutes": budget_minutes, "--dry-run": dry_run},
        {"SPACE": spaces, "--fix": fix, "--side": side, "--arch": arch, "--patience": patience}
        | {f"--{key}": value for key, value in asked.items()},
        {"--partial": partial, "--ssh-port": ssh_port, "--identity": identity, "--ssh-config": ssh_config},
    )
    asked["patience_seconds"] = patience
    if collect is not None:
        return _collect(collect, table, partial, accept_noise, as_json)
    known = read_table(str(table)) if table is not None and table.is_file() else None
    if known is not None and known.header.method in ("transfer", "imported"):
        raise InputError(
            f"{table}: its rows were not measured by nas profile (its method is {known.header.method}), so it cannot "
            "be completed; profile into a new file: nas profile SPACE --table FILE"
        )
    settings: dict[str, Any] = PROFILED if known is None else {key: getattr(known.header, key) for key in PROFILED}
    settings = settings | {key: value for key, value in asked.items() if value is not None} | {"seed": seed}
    if arch is not None:
        settings["rows"] = profiler.rows_of_arch(read_arch(arch), settings["level"])
    if bundle is not None or host is not None:
        (space, *more) = _profiled_spaces(spaces, known, arch, side, fix)
        if more:
            raise InputError("a bundle is of one space; make one for each, collect them into one table with --table")
        folder = _bundle(space, bundle or Path("bundles") / f"{host}-{space.name}", settings)
        if host is None:
            return say(f"{folder}: copy it to the device, there: python run.py; back here: nas profile --collect DIR")
        from nas.profiling.remote import Remote

        with progress_bar() as report:
            Remote(host, ssh_port, identity, python, config=ssh_config).measure(folder, report)
        return _collect(folder, table, partial, accept_noise, as_json)
    jobs = []
    for space in _profiled_spaces(spaces, known, arch, side, fix):
        name = profiler.table_name(space, *(settings[key] for key in ("runtime", "threads", "level", "precision")))
        path = table or Path("latency_tables") / machine.this_machine(settings["runtime"]).slug / name
        jobs.append(profiler.job_of(space, path=path, **settings))
    left = [profiler.plan(job) for job in jobs]
    total = {
        "table": str(jobs[0].path),
        "rows": sum(plan.total for plan in left),
        "left": sum(plan.total - plan.done for plan in left),
        "seconds": sum(plan.seconds for plan in left),
    }
    if dry_run and as_json:
        return print_json(total)
    for job, plan in zip(jobs, left, strict=True):
        if not as_json:
            text = f"{plan.done} of {plan.total} rows of {job.space.name} measured"
            say(f"{job.path}: {text}; about {show_seconds(plan.seconds)} left")
    if dry_run:
        return None
    with progress_bar() as report:
        outcomes = profiler.run_each(jobs, budget_minutes=budget_minutes, accept_noise=accept_noise, progress=report)
    found = [_profile_facts(job.space, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]
    if as_json:
        return print_json(found[0] if len(found) == 1 else {"profiles": found})
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
    with progress_bar() as report:
        return make(space, folder=folder, progress=report, **{k: v for k, v in settings.items() if k != "method"})


def _collect(folder: Path, table: Path | None, partial: bool, accept_noise: bool, as_json: bool) -> None:
    """Make the table of a bundle."""
    from nas.profiling.bundle import collect
    from nas.report import facts

    result = collect(folder, output=table, partial=partial, accept_noise=accept_noise)
    found = facts.table_facts(result)
    if as_json:
        return print_json(found)
    say(f"[bold]{result.path}[/bold]: {found['rows']} rows, {found['networks']} networks, on {result.header.cpu}")


def _profile_facts(space: Space, outcome: Outcome) -> dict[str, Any]:
    """What a profile put into its table, for this space and as a whole."""
    from nas.profiling.profiler import unmeasured_percent
    from nas.report import facts
    from nas.tables.table import LARGE_US, SMALL_US, scope_of

    table, guess = outcome.table, outcome.prediction
    found = facts.table_facts(table) | {
        "space": space.name,
        "repeatability_p95_percent": table.repeatability(SMALL_US),
        "repeatability_p95_large_percent": table.repeatability(LARGE_US),
        "noise_text": None if outcome.noise is None else str(outcome.noise),
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
    say(f"[bold]{path}[/bold]: {found['rows']} rows, {found['networks']} networks, profiled {found['space']}")
    if guess is not None:
        share = guess["share_of_typical_network_percent"]
        typical = "" if share is None else f"; they are {share:.0f} % of the time of a typical network"
        say(
            f"{guess['rows']} rows predicted from {guess['behind']} measured ones ({guess['model']}): off by "
            f"{guess['mape_percent']:.1f} % on average in cross-validation{typical}. The same command without "
            "--budget-minutes measures them"
        )
    for name, least in (("repeatability_p95_large_percent", "0.5"), ("repeatability_p95_percent", "0.1")):
        if found[name] is not None:
            say(f"two fresh processes lie up to {found[name]:.1f} % apart (p95 of rows of {least} ms and more)")
        else:
            say(f"repeatability of rows of {least} ms and more: there are none")
    for size, line in found["calibrations"].items():
        say(f"calibration at {size}: {line}")
    if not found["calibrations"]:
        say("calibration: none, fewer than 5 networks measured")
    if found["noisy"]:
        say(f"NOISY: {found['noise']:.0%} of samples in slow spells of this machine; profile again when it is quiet")
    for line in found["problems"]:
        say(line, markup=False)
    say(f"Next: nas validate {path}, or nas search --table {path} --budget 'latency_ms<=p40'")


def _profiled_spaces(
    names: list[str] | None, table: Table | None, arch: str | None, side: int | None, fix: list[str] | None
) -> list[Space]:
    """The spaces to profile: those named, or those of the table or arch; with the arch's size and classes."""
    import search_spaces

    if (arch is not None or not names) and (side or fix):
        raise InputError("--side and --fix are of a space: name it, and no arch")
    if arch is not None:
        network = read_arch(arch)
        found = [search_spaces.load(name) for name in names or [network.family]]
        return [replace(space, input_shape=network.input_shape, classes=network.classes) for space in found]
    if names:
        return [read_space(name, side, fix) for name in names]
    if table is None:
        raise InputError(f"which space? Known: {', '.join(search_spaces.spaces())}")
    if not table.spaces:
        raise InputError(f"which space? {table.where} holds none as a whole")
    return list(table.spaces)
