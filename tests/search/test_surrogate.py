"""The model of loss against draws of itself and against sums that it can learn."""

import numpy as np
import pytest

from nas.core.tracing import macs_of_unit
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import lattice_of
from nas.search.lattice import sums
from nas.search.surrogate import Encoder, Surrogate
from tests.search.fakes import fake_table, tiny_space

SPACE = tiny_space()


@pytest.fixture(scope="module")
def fitted():
    """A model of a sum over rows, known for 25 networks, with an encoder and all networks."""
    lattice = lattice_of(SPACE)
    everything = FeasibleSet(lattice, [Sum("", lattice.costs(macs_of_unit), np.inf)])
    paths = np.unique(everything.draw(np.random.default_rng(0), 1000), axis=0)
    encoder = Encoder(lattice.groups(), [lattice.costs(macs_of_unit)], paths)
    losses = sums(lattice.costs(fake_table(SPACE).cost_of_row(SPACE)), paths)
    known = np.random.default_rng(1).permutation(len(paths))[:25]
    return Surrogate(encoder(paths[known]), losses[known]), encoder, paths, losses, known


def test_expected_gains_are_the_mean_of_the_gains_of_draws(fitted):
    model, encoder, paths, losses, known = fitted
    encoded = encoder(paths)
    drawn = model.draws(encoded, np.random.default_rng(2), 40_000)
    least = drawn[:, known].mean(0).min()
    expected = np.maximum(least - drawn, 0).mean(0)
    assert model.gain(encoded) == pytest.approx(expected, rel=0.1, abs=0.01 * losses.std())
    assert model.gain(encoded).max() > 0.02 * losses.std()


def test_what_is_expected_to_gain_most_is_better_than_chance(fitted):
    model, encoder, paths, losses, known = fitted
    gain = model.gain(encoder(paths))
    gain[known] = -1
    best = np.argsort(-gain)[:5]
    unseen = np.setdiff1d(np.arange(len(paths)), known)
    assert losses[best].mean() < np.quantile(losses[unseen], 0.25)
