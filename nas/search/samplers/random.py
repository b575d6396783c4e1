"""Random search: every network that fits is as likely as any other; the baseline for every other sampler."""

from __future__ import annotations

from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas.search.lattice import Path
from nas.search.samplers._context import Context, History, PathSampler


class Uniform(PathSampler):
    """Even draws of what fits and is new."""

    def propose(self, study: Study, trial: FrozenTrial, history: History) -> Path | None:
        """An even draw."""
        return None


def make(seed: int, context: Context) -> BaseSampler:
    """Even draws of what fits and is new."""
    return Uniform(seed, context)


SAMPLER = make
