"""The command line: each command translates its arguments into one call of the package and shows what came back.

Exit codes: 0 done, 1 failed (what was asked could not be done), 2 usage (what was asked is wrong), 130 stopped by
Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nas.core.errors import InputError, NasError
from nas.core.files import FULL, unwritable

INTERRUPTED = 128 + signal.SIGINT


#: commands that are built when they are called, not for `nas --help`, by name: their flags take long to find
BUILT_LATE: dict[str, Callable[[], Any]] = {}


class _Commands(TyperGroup):
    """Puts a command that is built late in the place of the one that stands for it in `nas --help`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return (name, BUILT_LATE[name]() if name in BUILT_LATE else command, rest)


app = typer.Typer(
    name="nas",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Search mobile hybrid vision transformers under a latency budget measured on your own device. First time: "
    "nas search quickstart.",
    epilog="ARCH: a preset such as efficientformer-l1, a JSON file, a run (runs/NAME, its winner) or a trial of one "
    "(runs/NAME@31). TABLE: a CSV file, or the name of a shipped table (nas tables). Exit codes: 0 done, 1 failed, "
    "2 wrong usage, 130 stopped by Ctrl-C.",
)

# panels of `nas --help`, in which commands stand in the order of `nas.commands`
PATH = "From a device to a network, in this order"
ANSWERS = "What there is, and what it costs"
TABLES = "Tables that others measured"


def main() -> None:
    """Run the command line; errors that nas raises, and what the system refuses, become one message and an exit code.

    Raises:
        KeyboardInterrupt: `nas.__main__` says what it means.
    """
    try:
        code = app(standalone_mode=False)
    except NasError as error:
        _fail(f"{type(error).__name__}: {error}", 2 if isinstance(error, InputError) else 1)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(f"{type(error).__name__}: {_refused(error)}", 1)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        error.show()  # type: ignore[attr-defined]  # a usage error of the argument parser
        sys.exit(error.exit_code)
    if code == INTERRUPTED:  # what Typer makes of an interrupt
        raise KeyboardInterrupt
    if code:
        sys.exit(code)


def _refused(error: OSError) -> str:
    """What the system refused, where nothing knew more about it."""
    where = error.filename or "a file of this command"
    if error.errno in FULL:
        return str(unwritable(where, error))
    return f"{where}: {error.strerror or error}; see to its permissions, or name another place"


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
