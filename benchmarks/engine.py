"""What a search costs for each trial besides training: the engine alone, Optuna's samplers and its journal.

Candidates take no time to score here. "Engine" is all time outside the sampler, the storage and the scoring: our own
code, and Optuna's between its sampler and its storage. All is CPU time of one core, so that other programs and a slow
disk count little. Then the study is read and taken up again, as a killed run's is.

Run: python benchmarks/engine.py [SPACE] [TRIALS] [SAMPLER ...]
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from made_up import Instantly, made_up_table
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

import search_spaces
from nas.core.errors import NasError
from nas.core.space import Space
from nas.search import samplers
from nas.search.budgets import Budget
from nas.search.engine import Engine, Standing
from nas.search.fitting import context_of, feasible_set
from nas.search.ledger import Ledger
from nas.search.limits import Estimator, Survey, resolve
from nas.search.study import distributions_of, open_study

WINDOW = 100  # trials that a figure is the mean of


class Stopwatch:
    """Adds up the time inside methods, by owner; of a method that calls another, only the outer counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inside = False

    def watch(self, owner: Any, names: list[str], label: str) -> None:
        """Replace methods by ones that are timed under a label."""
        self.seconds[label] = 0.0
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name), label))

    def _timed(self, method: Callable[..., Any], label: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return method(*args, **kwargs)
            self.inside, start = True, time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                self.inside = False
                self.seconds[label] += time.process_time() - start

        return timed


def digest(arch: str) -> float:
    """A score that costs nothing: the digest of the arch, 0..1."""
    return int(hashlib.sha256(arch.encode()).hexdigest()[:6], 16) / 16**6


def public_methods(kind: type) -> list[str]:
    """Names of the methods that a base class declares."""
    return [name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")]


def run(space: Space, estimator: Estimator, sampler_name: str, trials: int) -> None:
    """Search, and print the cost of a trial in the last `WINDOW` trials before the end."""
    distributions = distributions_of(space.choices)
    context = context_of(space, estimator, feasible_set(space, estimator))
    sampler = samplers.load_sampler(sampler_name, 0, distributions, context)
    watch = Stopwatch()
    watch.watch(sampler, public_methods(BaseSampler), "sampler")
    with tempfile.TemporaryDirectory() as folder:
        storage = JournalStorage(JournalFileBackend(str(Path(folder) / "study.journal")))
        watch.watch(storage, public_methods(BaseStorage), "journal")
        study: optuna.Study = open_study("benchmark", storage, sampler, 1)
        marks: list[tuple[float, ...]] = []

        def mark(progress: Standing) -> None:
            marks.append((time.process_time(), *watch.seconds.values()))

        engine = Engine(
            Ledger(study, distributions), space, estimator, Instantly(digest), trials=trials, seed=0, on_trial=mark
        )
        engine.run()
        resumed(space, estimator, sampler_name, Path(folder) / "study.journal", len(marks))
    window = min(WINDOW, len(marks) - 1)
    for end in sorted({min(500, len(marks)), len(marks)}):
        total, draw, keep = (
            1000 * (after - before) / window
            for before, after in zip(marks[end - window - 1], marks[end - 1], strict=True)
        )
        print(
            f"{sampler_name}, trial {end}: engine {total - draw - keep:.2f} ms (goal under 5), "
            f"sampler {draw:.1f} ms, journal {keep:.1f} ms"
        )


def resumed(space: Space, estimator: Estimator, sampler_name: str, journal: Path, trials: int) -> None:
    """Read a study and take it up, and print what that costs up to the next proposal."""
    distributions = distributions_of(space.choices)
    context = context_of(space, estimator, feasible_set(space, estimator))
    gc.collect()
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    study = open_study("benchmark", journal, samplers.load_sampler(sampler_name, 0, distributions, context), 1)
    read = time.process_time()
    ledger = Ledger(study, distributions)
    Engine(ledger, space, estimator, Instantly(digest), trials=trials + 1, seed=0)
    ledger.propose()
    taken = time.process_time()
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    print(
        f"{sampler_name}: a study of {trials} trials is read in {read - start:.1f} s and taken up in "
        f"{taken - read:.1f} s (goal under 10 together), with {more:.0f} MB more memory (goal under 500)"
    )


def main(name: str, trials: int, chosen: Sequence[str] = ()) -> None:
    """Measure and print, for every sampler, or the ones named."""
    space = search_spaces.load(name)
    table = made_up_table(space)
    limits = resolve([Budget.parse("latency_ms<=p40")], Survey(space, 0, 1000), table, {})
    for sampler in chosen or samplers.names():
        run(space, Estimator(table, limits), sampler, trials)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What a search costs for each trial besides training.")
    parser.add_argument("space", nargs="?", default="efficientformer")
    parser.add_argument("trials", nargs="?", type=int, default=300)
    parser.add_argument("samplers", nargs="*", help="default: all")
    asked = parser.parse_args()
    try:
        main(asked.space, asked.trials, asked.samplers)
    except NasError as error:
        sys.exit(str(error))
