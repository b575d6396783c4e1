"""Where candidates are scored. One file an executor; the file is the registration.

Such a file ends in `EXECUTOR`, a function `(scorers, plan, device, on_stages)` that gives workers as a context, which
ends them; `nas.search.workers` says what passes between them and a search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from nas.core import plugins
from nas.search.workers import Outcome, Plan, Scorers, Stage, Task, Workers


class Running(Workers, AbstractContextManager["Running"], Protocol):
    """Workers of an executor."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Run all tasks; see `nas.search.workers.Dispatch`."""


Executor = Callable[[Scorers, Plan, str, Callable[[tuple[Stage, ...]], None]], Running]


def names() -> list[str]:
    """All executors, sorted; see `nas.core.plugins` for where they are found."""
    return plugins.names("executors")


def load_executor(name: str) -> Executor:
    """An executor.

    Raises:
        InputError: unknown, naming the closest ones, or a file that cannot be loaded, naming it.
    """
    found: Executor = plugins.load("executors", name)
    return found
