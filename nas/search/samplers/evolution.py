"""Regularized evolution (arXiv:1802.01548) inside what fits, with crossover beside mutation."""

from __future__ import annotations

import numpy as np
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas.search.lattice import Path
from nas.search.samplers._context import Context, History, PathSampler

POPULATION = 20  # the paper's 100 would leave the usual few hundred trials no generation
SAMPLE = 6  # of the population, of which the best is the parent
CROSSED = 0.3  # share of children of two parents


class Evolution(PathSampler):
    """The youngest candidates are the population; the best of a few of them has a child."""

    enough = POPULATION

    def propose(self, study: Study, trial: FrozenTrial, history: History) -> Path | None:
        """A child that fits and is new."""
        if len(history.paths) < POPULATION:
            return None
        young = history.paths[-POPULATION:]
        ranks = ranked(history.values[-POPULATION:])
        one, two = (young[self._parent(ranks)] for _ in range(2))
        if self.rng.random() < CROSSED and one != two:
            child = self.feasible.crossed(one, two, self.rng)
            if child is not None and child not in history.seen:
                return child
        for changes in (1, 1, 2, 2):
            for child in self.feasible.neighbours(one, self.rng, 8, changes):
                if child not in history.seen:
                    return child
        return self.feasible.nearest(one, history.seen)

    def _parent(self, ranks: np.ndarray) -> int:
        drawn = self.rng.choice(len(ranks), size=min(SAMPLE, len(ranks)), replace=False)
        return int(drawn[np.argmin(ranks[drawn])])


def ranked(values: np.ndarray) -> np.ndarray:
    """Loss, or with two objectives by how many others a candidate is dominated. Shape: (n, objectives) -> (n,)"""
    if values.shape[1] == 1:
        return np.asarray(values[:, 0])
    worse = (values[None] <= values[:, None]).all(2) & (values[None] < values[:, None]).any(2)
    return np.asarray(worse.sum(1).astype(float))


def make(seed: int, context: Context) -> BaseSampler:
    """Regularized evolution; its population is the history."""
    return Evolution(seed, context)


SAMPLER = make
