"""NSGA-II: evolves a population, for fronts with some hundred trials and more; kept inside what fits."""

from __future__ import annotations

from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from nas.search.samplers._context import Context
from nas.search.samplers._inside import Inside

POPULATION = 32  # Optuna's 50 would leave the usual few hundred trials only a handful of generations


class OrderedNSGAII(NSGAIISampler):
    """NSGA-II whose draws depend on the history alone.

    Optuna keeps the parents of a generation in the study; the first time they come in order of rank, later in order of
    trial. A process killed between the two would go on with other draws, so the order is always that of the trials.
    """

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The parents of a generation, by trial number."""
        return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)


def make(seed: int, context: Context) -> BaseSampler:
    """NSGA-II; the generation of a trial and the parents of a generation are kept in the study."""
    return Inside(OrderedNSGAII(seed=seed, population_size=POPULATION), seed, context)


SAMPLER = make
