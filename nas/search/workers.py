"""Processes that score candidates: spawned, one candidate at a time each, and none outlives its coordinator.

This module is what a worker imports first, so it loads nothing heavy; what a scorer needs, the scorer imports.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from nas.core.errors import NasError, RunError, brief
from nas.evaluation.evaluators import Score, title_of
from nas.profiling.device.parent import die_with

_SPAWN = multiprocessing.get_context("spawn")  # forked children of a process with threads can deadlock
_EXIT_SECONDS = 10.0
LOOK_SECONDS = 1.0  # between looks at whether a task takes too long
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


class Workers(Protocol):
    """Where candidates are evaluated: a `Pool`, or what stands for it in a test."""

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


class _Worker:
    """One process, its pipe, and the task it works on."""

    def __init__(self, scorer: Scorers) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs, scorer, os.getpid()), daemon=True)
        with _without_interrupts():
            self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.task: Task | None = None
        self.stage: Stage | None = None
        self.begun = 0.0  # its task, by the pool's clock

    def start(self, task: Task, now: float) -> None:
        self.task, self.stage, self.begun = task, None, now
        with contextlib.suppress(OSError):  # a dead process is noticed when its outcome is awaited
            self.pipe.send(task)

    def outcome(self) -> Outcome | None:
        """The outcome of its task, once the pipe has something; a dead process is one too; None where it is at work."""
        assert self.task is not None
        try:
            found: Outcome | Stage = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(_EXIT_SECONDS)
            found = Outcome(self.task.key, None, _cause_of_death(self.process.exitcode), lost=True)
        if isinstance(found, Stage):
            self.stage = found
            return None
        self.task = self.stage = None
        return found

    def stop(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join(_EXIT_SECONDS)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, which reaches the whole group; here it waits until they have begun.

    Blocking the signal does for them, not for this process, where another thread would take it.
    """
    resource_tracker.ensure_running()  # otherwise it starts meanwhile, and lets the signal through when it has
    came: list[int] = []
    here = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, frame: came.append(number)) if here else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if here:
            signal.signal(signal.SIGINT, handler or signal.SIG_DFL)
    if came:
        signal.raise_signal(signal.SIGINT)


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = ", as the system does when memory runs out: use fewer workers" if exitcode == -signal.SIGKILL else ""
        return f"the worker process was ended by {name}{hint}"
    return f"the worker process ended by itself with exit code {exitcode}"


class Pool:
    """A number of workers; use it as a context, which ends them.

    Args:
        scorer: what each of them runs; of several, one a rung.
        workers: how many; they start when there is work for them.
        on_stages: called with how far the tasks at work are, whenever one has done an epoch or is finished.
        minutes: that a task may take, the start of its process included; what takes longer is ended, and has failed.
        clock: gives seconds.
    """

    def __init__(
        self,
        scorer: Scorers,
        workers: int,
        on_stages: Callable[[tuple[Stage, ...]], None] | None = None,
        minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.size = workers
        self._limit, self._clock = math.inf if minutes is None else 60 * minutes, clock
        self._scorer, self._on_stages = scorer, on_stages
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def idle(self) -> int:
        """How many tasks could start at once."""
        return self.size - sum(worker.task is not None for worker in self._workers)

    def submit(self, task: Task) -> None:
        """Start a task; there must be an idle worker. One that ended while it was idle is replaced first, and any where
        the task lost its worker before.
        """
        for dead in [each for each in self._workers if each.task is None and not each.process.is_alive()]:
            self._remove(dead)
        worker = next((worker for worker in self._workers if worker.task is None), None)
        if worker is not None and task.attempt:
            if len(self._workers) == self.size:
                self._remove(worker)
            worker = None
        if worker is None:
            assert len(self._workers) < self.size, "no idle worker"
            worker = _Worker(self._scorer)
            self._workers.append(worker)
        worker.start(task, self._clock())

    def wait(self) -> Outcome:
        """The next outcome, of whichever task is done first; a worker that was lost is replaced by a fresh one."""
        busy = {worker.pipe: worker for worker in self._workers if worker.task is not None}
        assert busy, "nothing to wait for"
        outcome = None
        while outcome is None:
            ready = wait(list(busy), None if self._limit == math.inf else LOOK_SECONDS)
            if (late := self._late([worker for pipe, worker in busy.items() if pipe not in ready])) is not None:
                return late
            if not ready:
                continue
            worker = next(worker for pipe, worker in busy.items() if pipe in ready)
            outcome = worker.outcome()
            if self._on_stages is not None:
                self._on_stages(tuple(each.stage for each in self._workers if each.stage is not None))
        if outcome.lost or not worker.process.is_alive():
            self._remove(worker)
        return outcome

    def _late(self, silent: Iterable[_Worker]) -> Outcome | None:
        """End a worker at work whose task takes too long, and say so."""
        for worker in silent:
            if worker.task is not None and self._clock() - worker.begun > self._limit:
                self._remove(worker)
                reason = f"it took longer than {self._limit / 60:g} minutes (worker_minutes)"
                return Outcome(worker.task.key, None, reason)
        return None

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.stop()

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Run all tasks; see `Dispatch`."""
        return Dispatch(self).run(tasks)

    def close(self) -> None:
        """End all workers, also those at work."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()


def _serve(pipe: Connection, scorer: Scorers, parent: int) -> None:
    """The life of a worker: score what comes until the pipe ends or the parent dies."""
    die_with(parent)
    with contextlib.suppress(EOFError, OSError):
        while True:
            task: Task = pipe.recv()
            pipe.send(_outcome(scorer, task, pipe.send))


def _outcome(scorer: Scorers, task: Task, tell: Callable[[Stage], None]) -> Outcome:
    begun = time.monotonic()
    if isinstance(scorer, tuple):
        scorer = scorer[task.rung]

    def on_epoch(epoch: int, epochs: int) -> None:
        tell(Stage(task.key, epoch, epochs, time.monotonic() - begun, task.rung))

    try:
        score = checked(scorer(task.arch, task.seed, on_epoch))
    except NasError as error:
        return Outcome(task.key, None, str(error), lost=isinstance(error, MemoryError))
    except MemoryError as error:
        return Outcome(task.key, None, f"out of memory: {error}".rstrip(": "), lost=True)
    except Exception as error:
        return Outcome(task.key, None, f"{type(error).__name__}: {error}")
    if score.seconds is None:
        score = replace(score, seconds=time.monotonic() - begun)
    return Outcome(task.key, score)


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
