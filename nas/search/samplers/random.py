"""Random search: the baseline for every other sampler."""

from __future__ import annotations

from optuna.samplers import BaseSampler, RandomSampler


def make(seed: int) -> BaseSampler:
    """Every parameter drawn evenly."""
    return RandomSampler(seed=seed)


SAMPLER = make
