"""What commands print: text, tables and JSON on standard output, progress on standard error."""

from __future__ import annotations

import contextlib
import json
import math
import os
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80
PIPE_WIDTH = 10_000  # of what no terminal shows: a line is never folded there


def print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, indent=2))


def say(*parts: str | tuple[str, str]) -> None:
    """Print a line, some parts of it in a style: `say(("run", "bold"), ": done")`. Brackets, as in a name, stay."""
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False, soft_wrap=True).print(Text.assemble(*parts))


def say_filled(text: str, indent: str = "", further: str = "  ") -> None:
    """Print text in lines of a terminal, the first behind `indent` and the others behind `further`.

    A name that is longer than a line, such as a path, is never broken.
    """
    lines = textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )
    say("\n".join(lines).replace("\N{NO-BREAK SPACE}", " "))


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], gap: int = 2) -> None:
    """Print rows with a gap of so many columns between theirs; a column whose name begins with `>` is aligned right.

    In a terminal what is too wide is folded; elsewhere a row is a line.
    """
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    table = RichTable(box=None, header_style="bold", pad_edge=False, padding=(0, gap, 0, 0))
    for name in columns:
        right = name.startswith(">")
        table.add_column(name.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def note(line: str, progress: Callable[..., None]) -> None:
    """A line worth telling, above the bar on standard error."""
    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)  # type: ignore[attr-defined]


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[..., None]]:
    """A bar on standard error, and the callback that moves it: `(done, total, seconds_left, text)`.

    Where standard error is no terminal, lines stand for the bar, now and then.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(console)
        return
    # the text shrinks before the figures do, and never becomes markup
    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    left = TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True))
    with Progress(text, BarColumn(bar_width=20), left, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def report(done: float, total: float, seconds_left: float | None = None, text: str = "") -> None:
            bar.update(task, completed=done, total=total, description=text, left=_left(seconds_left))

        report.console = bar.console  # type: ignore[attr-defined]
        yield report


class Lines:
    """Stands for a bar where there is no terminal: a line at first, then one every `SECONDS` at most.

    Args:
        console: where to.
        clock: gives seconds.
    """

    SECONDS = 30.0

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock, self._last = console, clock, -math.inf

    def __call__(self, done: float, total: float, seconds_left: float | None = None, text: str = "") -> None:
        now = self._clock()
        if now - self._last < self.SECONDS:
            return
        self._last = now
        share = f"{done / total:.0%}" if total else ""
        note(", ".join(filter(None, (share, text, _left(seconds_left)))), self)


def _left(seconds: float | None) -> str:
    from nas.core.units import show_seconds

    return "" if seconds is None else f"{show_seconds(seconds)} left"
