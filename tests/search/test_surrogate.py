"""The model of loss against closed forms, draws of itself, and sums that it can learn."""

import numpy as np
import pytest

from nas.core.tracing import macs_of_unit
from nas.search.feasible import FeasibleSet, Sum
from nas.search.fitting import lattice_of
from nas.search.lattice import sums
from nas.search.surrogate import OFFSET, Encoder, Surrogate, fit
from tests.search.fakes import fake_table, tiny_space

SPACE = tiny_space()
LATTICE = lattice_of(SPACE)


@pytest.fixture(scope="module")
def paths():
    """All networks."""
    everything = FeasibleSet(LATTICE, [Sum("", LATTICE.costs(macs_of_unit), np.inf)])
    return np.unique(everything.draw(np.random.default_rng(0), 1000), axis=0)


@pytest.fixture(scope="module")
def fitted(paths):
    """A model of a sum over rows, known for 25 networks, with an encoder and all networks."""
    encoder = Encoder(LATTICE.groups(), [LATTICE.costs(macs_of_unit)], paths)
    losses = sums(LATTICE.costs(fake_table(SPACE).cost_of_row(SPACE)), paths)
    known = np.random.default_rng(1).permutation(len(paths))[:25]
    return Surrogate(encoder(paths[known]), losses[known]), encoder, paths, losses, known


def test_features_are_counts_less_those_of_the_middle_of_the_reference(paths):
    encoder = Encoder({"rows": LATTICE.groups()["rows"]}, [], paths)
    counts = np.zeros((len(paths), len(LATTICE.rows)))
    for line, path in enumerate(paths.tolist()):
        for layer, step in enumerate(path):
            counts[line] += LATTICE.groups()["rows"][layer][step].toarray()[0]
    centred = counts - counts.mean(0)
    centred /= np.sqrt((centred**2).sum(1).mean())
    encoded = encoder(paths)
    assert encoded.products("rows", encoded) == pytest.approx(centred @ centred.T, abs=1e-9)
    assert encoded.squares("rows") == pytest.approx((centred**2).sum(1), abs=1e-9)


def test_one_group_alone_is_ridge_regression(paths):
    encoder = Encoder({"rows": LATTICE.groups()["rows"]}, [], paths)
    losses = np.random.default_rng(4).normal(3.0, 2.0, 20)
    model = Surrogate(encoder(paths[:20]), losses)
    encoded = encoder(paths)
    features = with_level(encoded.groups["rows"].toarray() - encoded.middles["rows"])
    known, y = features[:20], (losses - losses.mean()) / losses.std()
    penalty = np.diag(model.noise / np.array([*[model.variances["rows"]] * (features.shape[1] - 1), OFFSET]))
    weights = np.linalg.solve(known.T @ known + penalty, known.T @ y)
    assert model.mean(encoded) == pytest.approx(losses.mean() + losses.std() * features @ weights, abs=1e-8)
    assert model.linear()["rows"] == pytest.approx(weights[:-1], abs=1e-8)


def with_level(features):
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def test_what_steps_add_sums_to_the_mean(paths):
    encoder = Encoder(LATTICE.groups(), [LATTICE.costs(macs_of_unit)], paths)
    losses = sums(LATTICE.costs(lambda row: float(len(str(row)) % 7)), paths)
    model = Surrogate(encoder(paths[::3]), losses[::3], curved=False)
    mean = model.mean(encoder(paths))
    added = model.spread * sums(encoder.scores(model.linear()), paths)
    assert mean - added == pytest.approx(np.full(len(paths), (mean - added)[0]), abs=1e-8)
    fits = FeasibleSet(LATTICE, [Sum("", LATTICE.costs(macs_of_unit), np.inf)])
    (best,) = fits.best([-score for score in encoder.scores(model.linear())])
    assert model.mean(encoder(np.array([best])))[0] == pytest.approx(mean.min())


def test_draws_of_weights_spread_as_the_posterior_of_ridge_regression(paths):
    encoder = Encoder({"rows": LATTICE.groups()["rows"]}, [], paths)
    model = Surrogate(encoder(paths[:20]), np.random.default_rng(4).normal(size=20))
    encoded = encoder(paths)
    features = encoded.groups["rows"].toarray() - encoded.middles["rows"]
    whole = with_level(features)
    prior = np.diag(1 / np.array([*[model.variances["rows"]] * features.shape[1], OFFSET]))
    cover = np.linalg.inv(whole[:20].T @ whole[:20] / model.noise + prior)
    rng = np.random.default_rng(0)
    drawn = np.stack([features @ model.linear(rng)["rows"] for _ in range(4000)])
    deviation = np.sqrt(np.diag(features @ cover[:-1, :-1] @ features.T))
    assert drawn.std(0) == pytest.approx(deviation, rel=0.1)
    assert model.joint(encoded)[1] == pytest.approx(model.spread**2 * whole @ cover @ whole.T, abs=1e-8)


def test_each_candidate_is_predicted_from_the_others():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(15, 4))
    parts = {"rows": features @ features.T, "choices": np.exp(-((features[:, :1] - features[:, 0]) ** 2))}
    y = features @ rng.normal(size=4) + 0.1 * rng.normal(size=15)
    y = (y - y.mean()) / y.std()
    found = fit(parts, y)
    matrix = OFFSET + sum(found.variances[name] * parts[name] for name in parts)
    densities = []
    for out in range(15):
        rest = np.delete(np.arange(15), out)
        solve = np.linalg.inv(matrix[np.ix_(rest, rest)] + found.noise * np.eye(14))
        mean = matrix[out, rest] @ solve @ y[rest]
        variance = matrix[out, out] + found.noise - matrix[out, rest] @ solve @ matrix[rest, out]
        assert found.held_out[out] == pytest.approx(mean, abs=1e-6)
        densities.append(-0.5 * np.log(2 * np.pi * variance) - 0.5 * (y[out] - mean) ** 2 / variance)
    assert found.density == pytest.approx(np.mean(densities), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-14, 1e12])
def test_the_unit_of_losses_does_not_matter(paths, scale):
    encoder = Encoder(LATTICE.groups(), [LATTICE.costs(macs_of_unit)], paths)
    losses = sums(LATTICE.costs(fake_table(SPACE).cost_of_row(SPACE)), paths)
    plain, scaled = (Surrogate(encoder(paths[::4]), factor * losses[::4]) for factor in (1.0, -scale))
    again = Surrogate(encoder(paths[::4]), scale * losses[::4])
    assert again.mean(encoder(paths)) == pytest.approx(scale * plain.mean(encoder(paths)), rel=1e-3)
    assert np.argmax(again.gain(encoder(paths))) == np.argmax(plain.gain(encoder(paths)))
    assert np.isfinite(scaled.gain(encoder(paths))).all()


def test_losses_that_are_all_the_same_give_no_order(paths):
    encoder = Encoder(LATTICE.groups(), [LATTICE.costs(macs_of_unit)], paths)
    model = Surrogate(encoder(paths[:12]), np.full(12, 0.1))  # whose mean is another number by rounding
    assert np.isnan(model.correlation)
    assert model.mean(encoder(paths)) == pytest.approx(np.full(len(paths), 0.1))


def test_a_part_that_explains_nothing_is_given_little_variance():
    rng = np.random.default_rng(0)
    right, wrong = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    y = right @ np.array([1.0, -2.0, 0.5])
    y = (y - y.mean()) / y.std()
    found = fit({"rows": right @ right.T, "choices": wrong @ wrong.T}, y)
    assert found.variances["choices"] < 0.02 * found.variances["rows"]
    assert found.noise < 1e-3


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
