"""Workers that are processes of this machine: spawned, one candidate at a time each; none outlives its coordinator.

Kept rather than a library's pool: a worker dies with its coordinator however that dies, Ctrl-C reaches the coordinator
alone, a death costs the task of that worker and no other (`concurrent.futures` breaks the whole pool), a worker killed
while idle costs nothing, and epochs are told on the way.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from nas.profiling.device.parent import die_with
from nas.search.workers import Dispatch, Outcome, Plan, Scorers, Stage, Task, outcome_of, too_long

_SPAWN = multiprocessing.get_context("spawn")  # forked children of a process with threads can deadlock
_EXIT_SECONDS = 10.0
LOOK_SECONDS = 1.0  # between looks at whether a task takes too long
VISIBLE = "CUDA_VISIBLE_DEVICES"


class _Worker:
    """One process, its pipe, and the task it works on; `gpu` is the only one that it sees, "" for all."""

    def __init__(self, scorer: Scorers, gpu: str) -> None:
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs, scorer, os.getpid(), gpu), daemon=True)
        with _without_interrupts():
            self.process.start()
        theirs.close()  # so that the pipe ends when the process does
        self.gpu = gpu
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
        gpus: as CUDA names them: each worker sees one of them, which several may share; where none, all that there are.
    """

    def __init__(
        self,
        scorer: Scorers,
        workers: int,
        on_stages: Callable[[tuple[Stage, ...]], None] | None = None,
        minutes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        gpus: Sequence[str] = (),
    ) -> None:
        self.size = workers
        self._limit, self._clock = math.inf if minutes is None else 60 * minutes, clock
        self._scorer, self._on_stages, self._gpus = scorer, on_stages, list(gpus)
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
            worker = _Worker(self._scorer, self._free_gpu())
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
            if outcome is None and (late := self._late([worker])) is not None:
                return late  # it tells of its epochs too often to be silent
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
                return Outcome(worker.task.key, None, too_long(self._limit / 60))
        return None

    def _free_gpu(self) -> str:
        """The one that the fewest workers see."""
        seen = [worker.gpu for worker in self._workers]
        return min(self._gpus, key=seen.count, default="")

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


def _serve(pipe: Connection, scorer: Scorers, parent: int, gpu: str) -> None:
    """The life of a worker: score what comes until the pipe ends or the parent dies."""
    die_with(parent)
    if gpu:
        os.environ[VISIBLE] = gpu  # CUDA reads it when it is first used
    with contextlib.suppress(EOFError, OSError):
        while True:
            task: Task = pipe.recv()
            pipe.send(outcome_of(scorer, task, pipe.send))


def gpus_for(device: str) -> list[str]:
    """The GPUs to spread workers over; none where a device is named, or there are fewer than two."""
    import torch

    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return []
    named = os.environ.get(VISIBLE)
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def start(scorers: Scorers, plan: Plan, device: str, on_stages: Callable[[tuple[Stage, ...]], None]) -> Pool:
    """Processes on this machine."""
    return Pool(scorers, plan.workers, on_stages, minutes=plan.minutes, gpus=gpus_for(device))


EXECUTOR = start
