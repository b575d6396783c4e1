"""What a search and those who score its candidates say to each other; who they are is up to `nas.search.executors`.

This module is what a worker imports first, so it loads nothing heavy; what a scorer needs, the scorer imports.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from nas.core.errors import NasError, RunError, brief
from nas.evaluation.evaluators import Score, title_of

SENT_AGAIN = 3  # times that a candidate goes to a fresh worker after its own was lost


class Scorer(Protocol):
    """Gives an arch its score; pickled into every worker, so it holds plain data and loads the rest on first use."""

    def __call__(self, arch: str, seed: int, on_epoch: OnEpoch) -> Score:
        """Score an arch, given as JSON, with everything random drawn from `seed`; tells epochs as they are done."""


OnEpoch = Callable[[int, int], None]
"""Called with the epochs done and those in all."""
Scorers = Scorer | tuple[Scorer, ...]
"""One, or one for each rung."""


@dataclass(frozen=True)
class Task:
    """One candidate to score.

    Attributes:
        key: number that the outcome comes back under.
        arch: the arch as JSON.
        seed: of everything random.
        rung: which of the scorers, where there are several; the last one unless said otherwise.
        attempt: how often it was sent out before and its worker was lost; then it goes to a fresh one.
    """

    key: int
    arch: str
    seed: int
    rung: int = -1
    attempt: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a score, or the reason why there is none.

    Attributes:
        key: of the task.
        score: None where there is none.
        reason: why.
        lost: its worker was: killed, gone, or out of memory. That says nothing of the candidate.
    """

    key: int
    score: Score | None
    reason: str = ""
    lost: bool = False


@dataclass(frozen=True)
class Stage:
    """How far a task is: epochs done (one or more), epochs in all, seconds since it began, its rung."""

    key: int
    epoch: int
    epochs: int
    seconds: float
    rung: int = -1


@dataclass(frozen=True)
class Plan:
    """What workers there are to be.

    Attributes:
        workers: how many.
        cpus: that each is given.
        gpus: likewise; parts of one are shared.
        minutes: after which a task is given up; None for no end.
    """

    workers: int
    cpus: int = 1
    gpus: float = 0.0
    minutes: float | None = None


class Workers(Protocol):
    """Where candidates are evaluated: an executor's, or what stands for them in a test."""

    @property
    def size(self) -> int:
        """How many tasks can be at work at once."""

    @property
    def idle(self) -> int:
        """How many tasks could start at once."""

    def submit(self, task: Task) -> None:
        """Start a task, in a fresh worker where it was sent out before."""

    def wait(self) -> Outcome:
        """The next outcome."""


class Dispatch:
    """Sends tasks to workers, and again where a worker was lost: `SENT_AGAIN` times at most.

    Args:
        workers: nobody else submits to them meanwhile.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._out: dict[int, Task] = {}

    @property
    def size(self) -> int:
        """See `Workers`."""
        return self._workers.size

    @property
    def idle(self) -> int:
        """See `Workers`."""
        return self._workers.idle

    def submit(self, task: Task) -> None:
        """See `Workers`; keys of tasks that are out at once differ."""
        self._out[task.key] = task
        self._workers.submit(task)

    def wait(self) -> Outcome:
        """The next outcome that stands: a score, a failure, or a worker lost once too often."""
        while True:
            outcome = self._workers.wait()
            task = self._out.pop(outcome.key)
            if not outcome.lost:
                return outcome
            if task.attempt == SENT_AGAIN:
                return replace(outcome, reason=f"{outcome.reason} (it was sent out {task.attempt + 1} times)")
            self.submit(replace(task, attempt=task.attempt + 1))

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Run all tasks, as many at once as there are workers; outcomes come as they are done."""
        left = deque(tasks)
        while left or self._out:
            while left and self.idle:
                self.submit(left.popleft())
            yield self.wait()


def outcome_of(scorer: Scorers, task: Task, tell: Callable[[Stage], None]) -> Outcome:
    """Score a task, where a worker is; `tell` hears of its epochs."""
    begun = time.monotonic()
    if isinstance(scorer, tuple):
        scorer = scorer[task.rung]

    def on_epoch(epoch: int, epochs: int) -> None:
        tell(Stage(task.key, epoch, epochs, time.monotonic() - begun, task.rung))

    try:
        score = checked(scorer(task.arch, task.seed, on_epoch))
    except Exception as error:
        return Outcome(task.key, None, reason_of(error), lost=isinstance(error, MemoryError))
    if score.seconds is None:
        score = replace(score, seconds=time.monotonic() - begun)
    return Outcome(task.key, score)


def too_long(minutes: float) -> str:
    """Why a task has no score that took longer."""
    return f"it took longer than {minutes:g} minutes (worker_minutes)"


def reason_of(error: Exception) -> str:
    """Why there is no score, in words."""
    if isinstance(error, NasError):  # first: one of them is a MemoryError, too
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".rstrip(": ")
    return f"{type(error).__name__}: {error}"


def checked(score: Any) -> Score:
    """A score that candidates can be compared by.

    Raises:
        RunError: it is none.
    """
    if not isinstance(score, Score):
        raise RunError(f"the evaluator gave {brief(score)}, which is no Score")
    if not math.isfinite(score.value):
        raise RunError(f"the {title_of(score.name)} is {score.value}")
    return score
