"""What commands print: text, tables and JSON on standard output, progress on standard error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, indent=2))


def say(text: str, markup: bool = True) -> None:
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(text, markup=markup)


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
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


def note(line: str, progress: Callable[..., None]) -> None:
    """A line worth telling, above the bar on standard error."""
    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)  # type: ignore[attr-defined]


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[..., None]]:
    """A bar on standard error, and the callback that moves it: `(done, total, seconds_left, text)`."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from nas.core.units import show_seconds

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def report(done: float, total: float, seconds_left: float | None = None, text: str = "") -> None:
            left = "" if seconds_left is None else f"{show_seconds(seconds_left)} left"
            bar.update(task, completed=done, total=total, description=text, left=left)

        report.console = bar.console  # type: ignore[attr-defined]
        yield report
