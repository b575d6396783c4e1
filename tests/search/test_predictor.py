"""The model of `guided`, asked by itself."""

import numpy as np
import pytest
from scipy import stats

import search_spaces
from nas.core.errors import InputError
from nas.networks.building import cost_of
from nas.search.predictor import Predictor, everything_of
from nas.search.surrogate import Surrogate, standardized
from tests.small import by_macs

SPACE = search_spaces.load("efficientformer-32")
ARCHS = by_macs(60, SPACE)
LOSSES = np.array([-np.log(cost_of(arch).macs) for arch in ARCHS])
HIDDEN = np.random.default_rng(0).normal(size=(60, 2))


def test_others_are_ranked_by_what_some_taught():
    found = Predictor(ARCHS[::3], LOSSES[::3]).losses_of(ARCHS)
    asked = np.arange(60) % 3 > 0
    assert stats.kendalltau(found[asked], LOSSES[asked])[0] > 0.8


def test_scores_are_learned_from_beside_the_networks():
    losses = LOSSES + HIDDEN[:, 0]
    asked = np.arange(60) % 2 > 0
    alone = Predictor(ARCHS[::2], losses[::2]).losses_of(ARCHS)
    beside = Predictor(ARCHS[::2], losses[::2], 1e6 * HIDDEN[::2]).losses_of(ARCHS, 1e6 * HIDDEN)
    taus = [stats.kendalltau(found[asked], losses[asked])[0] for found in (alone, beside)]
    assert taus[1] > max(0.7, taus[0] + 0.1)


def test_it_is_the_model_that_a_sampler_fits():
    context = everything_of(SPACE)
    lattice = context.feasible.lattice
    paths = np.array([lattice.path_of_arch(arch) for arch in ARCHS])
    known, new = HIDDEN[:20], HIDDEN[20:]
    model = Surrogate(context.encoder(paths[:20]).beside(standardized(known, known)), LOSSES[:20])
    expected = model.mean(context.encoder(paths[20:]).beside(standardized(known, new)))
    predictor = Predictor(ARCHS[:20], LOSSES[:20], known)
    np.testing.assert_allclose(predictor.losses_of(ARCHS[20:], new), expected)


def test_what_cannot_be_learned_from_is_refused():
    hybrid = search_spaces.presets()["nextvit-s"]
    with pytest.raises(InputError, match="finite loss of each: got 3 networks and losses of shape"):
        Predictor(ARCHS[:3], [1.0, float("nan"), 2.0])
    with pytest.raises(InputError, match="networks of several spaces: efficientformer-32, nextvit"):
        Predictor([ARCHS[0], hybrid], [1.0, 2.0])
    with pytest.raises(InputError, match="features: not a number in line 1"):
        Predictor(ARCHS[:3], LOSSES[:3], np.array([[1.0], [np.nan], [2.0]]))
    with pytest.raises(InputError, match=r"expected 2 lines of 1 each, got shape \(2, 2\)"):
        Predictor(ARCHS[:3], LOSSES[:3], HIDDEN[:3, :1]).losses_of(ARCHS[:2], HIDDEN[:2])
    with pytest.raises(InputError, match="features are given both where"):
        Predictor(ARCHS[:3], LOSSES[:3]).losses_of(ARCHS[:2], HIDDEN[:2])
