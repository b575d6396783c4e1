"""Local search inside what fits: neighbours of the best candidate that has new ones, with restarts."""

from __future__ import annotations

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas.search.lattice import Path
from nas.search.samplers._context import Context, History, PathSampler
from nas.search.samplers.evolution import ranked

STARTS = 10  # draws by chance before the first step
RESTARTS = 20  # every so many trials one is drawn by chance


class Local(PathSampler):
    """A neighbour, one choice away, of the best candidate that still has new ones."""

    enough = STARTS

    def propose(self, study: Study, trial: FrozenTrial, history: History) -> Path | None:
        """A neighbour that fits and is new."""
        if len(history.paths) < STARTS or trial.number % RESTARTS == RESTARTS - 1:
            return None
        for place in np.argsort(ranked(history.values), kind="stable")[:5]:
            for path in self.feasible.neighbours(history.paths[place], self.rng, 24, 1):
                if path not in history.seen:
                    return path
        return None


def make(seed: int, context: Context) -> BaseSampler:
    """Local search; where it stands follows from the history."""
    return Local(seed, context)


SAMPLER = make
