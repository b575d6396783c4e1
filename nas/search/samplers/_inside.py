"""The wrapper that keeps one of Optuna's own samplers inside the feasible set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from nas.core.errors import InputError
from nas.search.samplers._context import Context, History, PathSampler

TRIES = 8


class Inside(PathSampler):
    """Draws again a few times until a candidate fits and is new, then takes the nearest one that does.

    Args:
        inner: Optuna's sampler.
        seed: of this draw.
        context: of the search.
    """

    def __init__(self, inner: BaseSampler, seed: int, context: Context) -> None:
        super().__init__(seed, context)
        self.inner = inner
        self._space: dict[str, BaseDistribution] = {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """See the inner sampler."""
        self.inner.before_trial(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See the class."""
        self._space = search_space
        return super().sample_relative(study, trial, search_space)

    def propose(self, study: Study, trial: FrozenTrial, history: History) -> Any:
        """See the class; nothing where the inner sampler leaves the draw to chance."""
        near = None
        for _ in range(TRIES):
            params = self.inner.sample_relative(study, trial, self._space)
            if not params:
                return None
            try:
                path = self.feasible.lattice.path_of(params)
            except InputError:
                continue
            if self.fitting_and_new(path, history):
                return path
            near = near or path
        return None if near is None else self.feasible.nearest(near, history.seen)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """See the inner sampler."""
        self.inner.after_trial(study, trial, state, values)
