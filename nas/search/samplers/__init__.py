"""Samplers: how the next candidate is proposed. One file a sampler; the file is the registration.

Such a file ends in `SAMPLER`, a function `(seed, context) -> optuna.samplers.BaseSampler` that is called anew for every
draw. The context holds the feasible set: what a sampler proposes fits, and was not proposed before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nas.core import plugins

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

    from nas.search.samplers._context import Context


def names() -> list[str]:
    """All samplers, sorted; see `nas.core.plugins` for where they are found."""
    return plugins.names("samplers")


def load_sampler(name: str, seed: int, distributions: Mapping[str, BaseDistribution], context: Context) -> BaseSampler:
    """A sampler whose draws depend only on the seed, the number of the trial and the finished trials.

    Args:
        name: one of `names()`.
        seed: of all draws.
        distributions: the fixed parameters of the space.
        context: the feasible set, and what is known of its candidates.

    Raises:
        InputError: unknown sampler, naming the closest ones, or a file that cannot be loaded, naming it.
    """
    make: Callable[[int, Context], BaseSampler] = plugins.load("samplers", name)
    from nas.search.samplers._seeded import Seeded

    return Seeded(make, seed, distributions, context)
