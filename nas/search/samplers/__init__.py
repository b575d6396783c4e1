"""Samplers: how the next candidate is proposed. One file a sampler; the file is the registration.

Such a file has one function, `make(seed, context) -> optuna.samplers.BaseSampler`, called anew for every draw. The
context holds the feasible set: what a sampler proposes fits, and was not proposed before.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from nas.core.errors import InputError, suggest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

    from nas.search.samplers._context import Context


def names() -> list[str]:
    """All samplers, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load_sampler(
    name: str, seed: int, distributions: Mapping[str, BaseDistribution], context: Context
) -> BaseSampler:
    """A sampler whose draws depend only on the seed, the number of the trial and the finished trials.

    Args:
        name: one of `names()`.
        seed: of all draws.
        distributions: the fixed parameters of the space.
        context: the feasible set, and what is known of its candidates.

    Raises:
        InputError: unknown sampler, naming the closest ones.
    """
    if name not in names():
        raise InputError(suggest("sampler", name, names()))
    from nas.search.samplers._seeded import Seeded

    module = importlib.import_module(f"{__name__}.{name}")
    return Seeded(cast("Callable[[int, Context], BaseSampler]", module.make), seed, distributions, context)
