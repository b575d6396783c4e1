"""`nas search`: a request file, and a flag for every field of a request."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from nas.commands._app import PATH, app
from nas.commands._options import JsonOption
from nas.commands._output import note, print_json, progress_bar, say
from nas.core.errors import InputError, suggest

RequestArgument = Annotated[
    str | None, typer.Argument(metavar="[REQUEST]", help="A YAML file, or the name of a shipped request (quickstart).")
]


@app.command(rich_help_panel=PATH)
def search() -> None:
    """Search a space under budgets; train and measure the winner.

    Budgets are hard. The winner is exported, and the run reported. The same command continues a stopped or killed
    search.
    """
    raise NotImplementedError  # _Commands puts the command with all flags in its place


def search_with_flags() -> Any:
    """The search command: a request file, and a flag for every field of `Request`."""
    from nas.search.request import Request

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
    texts = name in ("budgets", "fix")
    named = (field.annotation, *get_args(field.annotation))
    kind = list[str] if texts else next((each for each in (bool, int, float) if each in named), str)
    spelled = "--budget" if name == "budgets" else f"--{name.replace('_', '-')}"
    shown = field.get_default(call_default_factory=True)
    default = f" Default: {shown}." if shown not in (None, (), False, {}) else ""
    option = typer.Option(
        spelled, *(("-t",) if name == "table" else ()), help=field.description + default, show_default=False
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _run_search(request: str | None, given: dict[str, Any], as_json: bool) -> None:
    from nas.search.request import Request
    from nas.search.run import run_search

    asked = Request.read(_request_file(request), **given) if request is not None else Request(**given)
    told: list[str] = []

    def log(line: str) -> None:
        told.append(line)
        note(line, report)

    with progress_bar() as report:
        folder = run_search(asked, log=log, progress=report)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if as_json:
        return print_json(result | {"run": str(folder)})
    winner = result["winner"]
    measured = "not measured" if winner["measured_ms"] is None else f"{winner['measured_ms']:.3f} ms measured"
    say(f"[bold]{winner['arch']}[/bold]: {measured}, {winner['predicted_ms']:.3f} ms predicted")
    for budget in result["budgets"]:
        say(f"budget {budget['asked']}: {budget['limit']:.6g}")
    accuracy = winner["training"]["test_accuracy"]
    chance = winner["training"].get("chance")
    guesses = chance is not None and not chance["beyond"]
    beside = f", NO BETTER THAN CHANCE ({chance['level']:.2%})" if guesses else ""
    say(f"test accuracy {accuracy:.2%}{beside}, {winner['params']:,} parameters, {winner['macs']:,} MACs")
    warnings = [f"WARNING: {warning}" for warning in result.get("warnings", [])]
    above = sum(warning in told for warning in warnings)
    if above:
        say(f"{above} warning{'s' if above > 1 else ''} above, also in the report")
    for warning in warnings:
        if warning not in told:
            say(warning, markup=False)
    say(f"[bold]{folder / 'report.html'}[/bold]; the network: {folder / 'best.onnx'}, {folder / 'best.json'}")


def _request_file(name: str) -> Path:
    """A request's file: a path, or the name of a shipped one."""
    shipped = {path.stem: path for path in (Path(__file__).parents[1] / "search" / "requests").glob("*.yaml")}
    if Path(name).is_file() or Path(name).suffix in (".yaml", ".yml"):
        return Path(name)
    if name not in shipped:
        raise InputError(f"{suggest('request', name, shipped)} It is no file either")
    return shipped[name]
