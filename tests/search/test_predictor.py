"""The model of `guided`, asked by itself."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import search_spaces
from nas.core.errors import InputError
from nas.networks.building import cost_of, with_classes
from nas.search.predictor import Predictor, Prior, encoded_in, everything_of
from nas.search.request import Request
from nas.search.resolved import name_request
from nas.search.surrogate import OFFSET, Surrogate, kernels, standardized
from tests.small import by_macs, write_truth

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


def test_what_is_held_out_is_predicted_by_the_others_alone():
    losses = LOSSES[:20] + 0.3 * HIDDEN[:20, 0]
    model = Surrogate(encoded_in(SPACE, ARCHS[:20]), losses)
    parts = kernels(model.known, model.known, not model.is_linear)
    kernel = OFFSET + sum(variance * parts[name] for name, variance in model.variances.items())
    for place in range(20):
        others = np.arange(20) != place
        noisy = kernel[np.ix_(others, others)] + model.noise * np.eye(19)
        expected = kernel[place, others] @ np.linalg.solve(noisy, model.y[others])
        assert model.held_out()[place] == pytest.approx(model.middle + model.spread * expected)


def test_a_prior_expects_of_a_network_what_the_others_let_expect(tmp_path):
    accuracies = {arch: 0.5 + 0.02 * place for place, arch in enumerate(ARCHS[:40])}
    prior = Prior(write_truth(tmp_path / "mine.jsonl", list(accuracies), 40, lambda place: [0.5 + 0.01 * place]))
    predictor = Predictor(ARCHS[:40], [-0.5 - 0.01 * place for place in range(40)])
    np.testing.assert_allclose(prior.losses_of(ARCHS[40:]), predictor.losses_of(ARCHS[40:]))
    np.testing.assert_allclose(prior.losses_of(ARCHS[:40]), predictor.model.held_out())
    others = [replace(with_classes(arch, 3), input_shape=(3, 64, 64)) for arch in ARCHS]
    np.testing.assert_allclose(prior.losses_of(others), prior.losses_of(ARCHS))
    with pytest.raises(InputError, match=r"holds networks of efficientformer-32, .* nothing of those of nextvit"):
        prior.losses_of([search_spaces.presets()["nextvit-s"]])


def test_a_prior_of_another_space_is_refused_before_anything_is_done():
    with pytest.raises(InputError, match="holds networks of hybrid-32, which say nothing of those of nextvit-32"):
        name_request(Request(space="nextvit-32", prior="fashion-mnist"), print)
    with pytest.raises(InputError, match=r"unknown truth 'mine'.*fashion-mnist"):
        name_request(Request(space="hybrid-32", prior="mine"), print)


def test_guided_learns_from_the_trainings_that_come_with_the_space():
    said = []
    assert name_request(Request(space="hybrid-32"), said.append).request.prior == "fashion-mnist"
    assert "80 networks of this space (fashion-mnist); prior: none" in said[0]
    assert name_request(Request(space="efficientformer-32"), print).request.prior == "none"
    assert name_request(Request(space="hybrid-32", sampler="random"), print).request.prior == "none"
    assert name_request(Request(space="hybrid-32", prior="none"), said.append).request.prior == "none"
    assert len(said) == 1
