"""What stands for a device and for trainings in benchmarks whose figures do not depend on them."""

from __future__ import annotations

import math
from collections.abc import Callable

from nas.core.space import Space
from nas.evaluation.evaluators import Score
from nas.search.workers import Outcome, Task
from nas.tables.table import Entry, Header, Table, scope_of


def made_up_table(space: Space) -> Table:
    """Rows of 1 to 7 microseconds, by the length of their names; uncalibrated."""
    header = Header(
        device="none",
        cpu="none",
        cores=1,
        runtime="none",
        runtime_version="0",
        variant="default",
        precision="fp32",
        threads=1,
        level="block",
        spaces=(scope_of(space),),
        method="chains",
        protocol="made up",
        date="",
        sentinel_us=float("nan"),
    )
    return Table(header, [Entry(row, 1.0 + len(str(row)) % 7, 0.0, 1) for row in space.rows()])


class Instantly:
    """A worker in this process that has every score at once.

    Args:
        score: of an arch, given as JSON; larger is better.
    """

    size = 1

    def __init__(self, score: Callable[[str], float]) -> None:
        self.score = score
        self.task: Task | None = None

    @property
    def idle(self) -> int:
        """One at a time."""
        return int(self.task is None)

    def submit(self, task: Task) -> None:
        """Take a task."""
        self.task = task

    def wait(self) -> Outcome:
        """Its score; a loss is a score with the other sign."""
        assert self.task is not None
        task, self.task = self.task, None
        value = float(self.score(task.arch))
        if not math.isfinite(value):
            return Outcome(task.key, None, f"the score is {value}")
        return Outcome(task.key, Score(-value, "score", seconds=0.0))
