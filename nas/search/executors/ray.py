"""Workers on Ray: one actor each, on whatever machines a cluster has.

Ray starts actors, gives them their CPUs and GPUs, moves tasks and tells of deaths; which candidate goes where and what
becomes of a lost one is decided here, as for local processes. An actor is never restarted by Ray (`max_restarts=0`): a
task whose actor was lost goes to a fresh one. Actors load the data set once each.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from nas.core.errors import InputError, RunError
from nas.core.source import code_of_package
from nas.search.scoring import CandidateScorer
from nas.search.workers import Dispatch, Outcome, Plan, Scorers, Stage, Task, outcome_of, too_long

TRAVEL = ("NAS_SPACES", "NAS_PLUGINS", "NAS_CACHE")  # folders that nodes have under the same names
ADDRESS = "RAY_ADDRESS"
CONNECT_SECONDS = 10.0
LOOK_SECONDS = 1.0  # between two looks at what takes too long


class Actor:
    """What runs in an actor: scores what comes, one candidate at a time."""

    def __init__(self, scorers: Scorers) -> None:
        self._scorers = on_given_gpu(scorers)

    def score(self, task: Task) -> Iterator[str | Stage | Outcome]:
        """Which nas is installed here, how far a task is whenever it has done an epoch, and its outcome at the end."""
        yield installed()
        told: queue.SimpleQueue[Stage | Outcome] = queue.SimpleQueue()
        work = threading.Thread(target=lambda: told.put(outcome_of(self._scorers, task, told.put)), daemon=True)
        work.start()
        while not isinstance(found := told.get(), Outcome):
            yield found
        yield found


def on_given_gpu(scorers: Scorers) -> Scorers:
    """Scorers on the GPU that Ray has given this actor, which is the only one that it sees; as they are where none."""
    import ray
    import torch

    if not ray.get_gpu_ids() or not torch.cuda.is_available():
        return scorers
    every = scorers if isinstance(scorers, tuple) else (scorers,)
    return tuple(replace(each, device="cuda") if isinstance(each, CandidateScorer) else each for each in every)


def installed() -> str:
    """What scores depend on where they are computed, besides the processor."""
    import nas

    return f"nas {nas.__version__} (code {code_of_package()}, with Python and torch)"


@dataclass
class _Worker:
    """An actor, and the task that it works on."""

    actor: Any
    task: Task | None = None
    stream: Any = None
    begun: float = math.inf  # when it began, which may be long after it was sent: machines come and go
    stage: Stage | None = None


class RayWorkers:
    """Actors on a Ray cluster: that of `RAY_ADDRESS`, else one on this machine that ends with this process.

    Args:
        scorers: what each of them runs; of several, one a rung.
        plan: how many, and what each is given.
        on_stages: called with how far the tasks at work are.

    Raises:
        InputError: Ray is not installed; there is no cluster at that address, or it has not what a worker needs.
        RunError: a machine of it has another version of nas, or none.
    """

    def __init__(
        self, scorers: Scorers, plan: Plan, on_stages: Callable[[tuple[Stage, ...]], None] | None = None
    ) -> None:
        self._ray = _connected(plan)
        self.size, self._plan, self._on_stages = plan.workers, plan, on_stages
        self._scorers = self._ray.put(scorers)
        self._workers: list[_Worker] = []

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def idle(self) -> int:
        """How many tasks could start at once."""
        return self.size - sum(worker.task is not None for worker in self._workers)

    def submit(self, task: Task) -> None:
        """Start a task, in a fresh actor where it lost one before."""
        worker = next((worker for worker in self._workers if worker.task is None), None)
        if worker is not None and task.attempt:
            self._remove(worker)  # also to make room for the fresh one
        if worker is None or task.attempt:
            worker = self._started()
        worker.task, worker.begun, worker.stage = task, math.inf, None
        worker.stream = worker.actor.score.options(num_returns="streaming").remote(task)

    def wait(self) -> Outcome:
        """The next outcome, of whichever task is done first."""
        while True:
            busy = {worker.stream: worker for worker in self._workers if worker.task is not None}
            assert busy, "nothing to wait for"
            ready, _ = self._ray.wait(list(busy), num_returns=1, timeout=LOOK_SECONDS)
            outcome = self._received(busy[ready[0]]) if ready else None
            outcome = outcome or self._late(busy.values())
            if not ready:
                self._make_room(busy.values())
            if self._on_stages is not None:
                self._on_stages(tuple(each.stage for each in self._workers if each.stage is not None))
            if outcome is not None:
                return outcome

    def _received(self, worker: _Worker) -> Outcome | None:
        """The outcome of a worker that has something to say; None where it is only further than before."""
        assert worker.task is not None
        try:
            found: str | Stage | Outcome = self._ray.get(next(worker.stream))
        except StopIteration:
            found = Outcome(worker.task.key, None, "its actor ended without a result", lost=True)
        except self._ray.exceptions.RayError as error:
            found = Outcome(worker.task.key, None, _cause(error), lost=True)
        if isinstance(found, str):
            _require_same(found)
            worker.begun = time.monotonic()
            return None
        if isinstance(found, Stage):
            worker.stage = found
            return None
        worker.task = worker.stream = worker.stage = None
        if found.lost:
            self._remove(worker)
        return found

    def _make_room(self, busy: Iterable[_Worker]) -> None:
        """End actors without a task, where there are tasks that no machine has had room for yet."""
        if any(worker.begun == math.inf for worker in busy):
            for idle in [worker for worker in self._workers if worker.task is None]:
                self._remove(idle)

    def _late(self, busy: Iterable[_Worker]) -> Outcome | None:
        """The outcome of a task that takes longer than is allowed; it ends with its actor."""
        limit = self._plan.minutes
        for worker in busy:
            if limit is not None and worker.task is not None and time.monotonic() - worker.begun > 60 * limit:
                self._remove(worker)
                return Outcome(worker.task.key, None, too_long(limit))
        return None

    def _started(self) -> _Worker:
        plan = self._plan
        kind = self._ray.remote(Actor).options(
            num_cpus=plan.cpus, num_gpus=plan.gpus, max_restarts=0, runtime_env={"env_vars": _environment()}
        )
        worker = _Worker(kind.remote(self._scorers))
        self._workers.append(worker)
        return worker

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._ray.kill(worker.actor)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Run all tasks; see `Dispatch`."""
        return Dispatch(self).run(tasks)

    def close(self) -> None:
        """End all actors, also those at work; the cluster stays."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            for worker in list(self._workers):
                self._remove(worker)


def _require_same(there: str) -> None:
    if there != installed():
        raise RunError(
            f"executor ray: a machine of the cluster has {there}, this one {installed()}; install the same there, or "
            "scores would not compare"
        )


def _connected(plan: Plan) -> Any:
    """Ray, connected to a cluster on which at least one worker fits."""
    try:
        import ray
    except ImportError as error:
        raise InputError("executor ray: Ray is not installed; pip install 'millinas[ray]'") from error
    if not ray.is_initialized():
        address = os.environ.get(ADDRESS)
        _require_server(address)
        own: dict[str, Any] = {} if address else {"num_cpus": plan.workers * plan.cpus, "include_dashboard": False}
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"no cluster at {ADDRESS}={address}" if address else "no cluster can be started here"
            raise InputError(f"executor ray: {where}: {str(error).partition(chr(10))[0]}") from error
    machines = [node["Resources"] for node in cast(Any, ray).nodes() if node["Alive"]]
    if not any(_fits(plan, machine) for machine in machines):
        have = "; ".join(f"{machine.get('CPU', 0):g} and {machine.get('GPU', 0):g}" for machine in machines)
        raise InputError(
            f"executor ray: no machine has the {plan.cpus} CPUs and {plan.gpus:g} GPUs of a worker (they have {have}): "
            "lower cpus_per_worker or gpus_per_worker"
        )
    return ray


def _require_server(address: str | None) -> None:
    """Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not port.isdigit() or "://" in host:
        return  # none, `auto`, or what Ray resolves
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(f"executor ray: no cluster at {ADDRESS}={address}: {error}") from error


def _fits(plan: Plan, machine: dict[str, float]) -> bool:
    return machine.get("CPU", 0) >= plan.cpus and machine.get("GPU", 0) >= plan.gpus


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in TRAVEL if name in os.environ}


def _cause(error: Exception) -> str:
    """Why an actor was lost, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"its actor was lost ({type(error).__name__}: {lines[0] if lines else 'no reason given'})"


def start(scorers: Scorers, plan: Plan, device: str, on_stages: Callable[[tuple[Stage, ...]], None]) -> RayWorkers:
    """Actors; a worker that is given a GPU uses it whatever the device is called here."""
    return RayWorkers(scorers, plan, on_stages)


EXECUTOR = start
