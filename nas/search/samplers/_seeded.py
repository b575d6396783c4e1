"""The wrapper that makes any Optuna sampler a function of the seed, the trial and the history."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from nas.search.samplers._context import Context, is_exhausted


class Seeded(BaseSampler):
    """Draws every trial with a fresh sampler seeded by (seed, trial number, what is drawn).

    So a killed study that continues draws what the uninterrupted one would have drawn, even where the kill fell between
    two parameters of one trial. Samplers that keep state keep it in the study (NSGA-II's generations), which survives.
    The search space is fixed and known, so it is not inferred from all trials again each time.

    Args:
        make: a new inner sampler from a seed and the context.
        seed: of all draws.
        distributions: the fixed parameters.
        context: the feasible set, and what is known of its candidates.
    """

    def __init__(
        self,
        make: Callable[[int, Context], BaseSampler],
        seed: int,
        distributions: Mapping[str, BaseDistribution],
        context: Context,
    ) -> None:
        self._make = make
        self._seed = seed
        self._context = context
        self._joint = {name: dist for name, dist in sorted(distributions.items()) if not dist.single()}

    def _sampler(self, trial: FrozenTrial, drawn: str) -> BaseSampler:
        entropy = np.random.SeedSequence([self._seed, trial.number, zlib.crc32(drawn.encode())])
        return self._make(int(entropy.generate_state(1)[0]), self._context)

    def is_exhausted(self, study: Study) -> bool:
        """Whether every candidate that fits was proposed."""
        return is_exhausted(self._context, study)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Let the inner sampler prepare, where it does."""
        self._sampler(trial, "").before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters: they are the same in every trial."""
        return dict(self._joint)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What the inner sampler draws jointly; Optuna refuses parameters that it did not ask for."""
        drawn = self._sampler(trial, "").sample_relative(study, trial, search_space)
        return {name: value for name, value in drawn.items() if name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What the inner sampler draws for one parameter alone."""
        inner = self._sampler(trial, param_name)
        return inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Let the inner sampler note the result, where it does."""
        self._sampler(trial, "").after_trial(study, trial, state, values)
