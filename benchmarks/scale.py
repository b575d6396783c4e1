"""What the coordinator of many workers costs: how busy it keeps them, and its own time a candidate.

1. Workers whose candidates sleep: the share of their time that they work.
2. Candidates that cost nothing, in a study of some length: the time of one at its end, waiting for the disk or the
   database included.

Run: python benchmarks/scale.py [--workers 64] [--candidates 512] [--trials 1000 10000] [--storage URL]
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from engine import digest
from made_up import Instantly, made_up_table

import search_spaces
from nas.core.errors import NasError
from nas.core.space import Space
from nas.evaluation.evaluators import Score
from nas.search import samplers
from nas.search.engine import Engine, Standing
from nas.search.executors.local import Pool
from nas.search.fitting import context_of, feasible_set
from nas.search.ledger import Ledger
from nas.search.limits import Estimator
from nas.search.study import close_study, distributions_of, open_study
from nas.search.workers import OnEpoch, Workers

WINDOW = 100  # trials that a figure is the mean of


@dataclass(frozen=True)
class Sleep:
    """A scorer that only takes time."""

    seconds: float

    def __call__(self, arch: str, seed: int, on_epoch: OnEpoch) -> Score:
        time.sleep(self.seconds)
        return Score(digest(arch), "digest")


def searched(space: Space, workers: Workers, trials: int, storage: str | Path, sampler: str) -> list[float]:
    """Search; returns when each trial ended, in seconds from the begin of the first."""
    estimator, distributions = Estimator(made_up_table(space)), distributions_of(space.choices)
    context = context_of(space, estimator, feasible_set(space, estimator))
    made = samplers.load_sampler(sampler, 0, distributions, context)
    study = open_study(f"scale-{time.time_ns()}", storage, made, 1)
    ends: list[float] = []
    begun = time.perf_counter()

    def mark(standing: Standing) -> None:
        ends.append(time.perf_counter() - begun)

    ledger = Ledger(study, distributions)
    Engine(ledger, space, estimator, workers, trials=trials, seed=0, on_trial=mark).run()
    close_study(study)
    return ends


def main(
    name: str, count: int, seconds: float, candidates: int, lengths: list[int], storage: str, sampler: str
) -> None:
    """Measure and print."""
    space = search_spaces.load(name)
    with tempfile.TemporaryDirectory() as folder:
        with Pool(Sleep(seconds), count) as pool:
            searched(space, pool, count, Path(folder) / "warm", sampler)  # the processes have started then
            ends = searched(space, pool, candidates, storage or Path(folder) / "busy", sampler)
        share = candidates * seconds / (count * ends[-1])
        print(
            f"{count} workers, {candidates} candidates of {seconds:g} s: {share:.1%} of their time at work (goal 95 %; "
            f"the last round leaves {1 - candidates / (count * -(-candidates // count)):.1%} of them idle)"
        )
        for length in lengths:
            ends = searched(space, Instantly(digest), length, storage or Path(folder) / str(length), sampler)
            window = min(WINDOW, len(ends) - 1)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            print(
                f"{length} trials: {1000 * (ends[-1] - ends[-1 - window]) / window:.1f} ms a candidate (goal 20), "
                f"{memory:.0f} MB"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--space", default="hybrid")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a candidate sleeps")
    parser.add_argument("--candidates", type=int, default=512)
    parser.add_argument("--trials", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--storage", default="", help="URL; default: a journal")
    parser.add_argument("--sampler", default="random")
    given = parser.parse_args()
    try:
        main(given.space, given.workers, given.seconds, given.candidates, given.trials, given.storage, given.sampler)
    except NasError as error:
        sys.exit(str(error))
