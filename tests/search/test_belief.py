"""What the fitted model is said to believe, against a list of all networks and losses whose sum is known."""

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

import search_spaces
from nas.core.arch import calls_of
from nas.search.belief import LEAST, belief_of, believed_front
from nas.search.fitting import context_of, feasible_set
from nas.search.predictor import encoded_in
from nas.search.samplers._context import History
from nas.search.study import distributions_of
from nas.search.surrogate import Surrogate
from tests.search.fakes import digits, estimator_at, fake_table, make_study, tiny_space
from tests.small import fake_table as small_table

SPACE = tiny_space()
ESTIMATOR = estimator_at(SPACE, fake_table(SPACE), "latency_ms<=p70")


@pytest.fixture(scope="module")
def context():
    return context_of(SPACE, ESTIMATOR, feasible_set(SPACE, ESTIMATOR), starts=False)


def loss_of(arch):
    return 1 + sum(digits(f"loss {call.row}") for call in calls_of(arch)) / 10


def study_after(context, count):
    study = make_study(InMemoryStorage(), SPACE, "random", context=context)
    for _ in range(count):
        trial = study.ask()
        params = {name: trial._suggest(name, dist) for name, dist in distributions().items()}
        study.tell(trial, loss_of(SPACE.arch(params)))
    return study


def distributions():
    return dict(sorted(distributions_of(SPACE.choices).items()))


@pytest.fixture(scope="module")
def believed(context):
    study = study_after(context, 30)
    return study, belief_of(context, study)


def test_the_best_of_the_model_is_the_best_of_all_that_fit(context, believed):
    study, belief = believed
    history = History.of(context, study)
    model = Surrogate(context.encoder(np.array(history.paths)), history.values[:, 0], curved=False)
    archs = [arch for arch in SPACE.archs() if not ESTIMATOR.misfit(ESTIMATOR.estimate(arch))]
    paths = np.array([context.feasible.lattice.path_of_arch(arch) for arch in archs])
    means = model.mean(context.encoder(paths))
    assert belief["best"]["arch"] == archs[int(np.argmin(means))].id
    assert belief["best"]["expected"] == pytest.approx(means.min())
    assert belief["best"]["low"] < belief["best"]["expected"] < belief["best"]["high"]
    assert SPACE.arch(belief["best"]["choices"]).id == belief["best"]["arch"]


def test_the_best_trained_one_is_that_of_the_study_and_stands_behind(context, believed):
    study, belief = believed
    trained = belief["best_trained"]
    assert trained["number"] == study.best_trial.number
    assert SPACE.arch(trained["choices"]).id == SPACE.arch(study.best_trial.params).id
    assert belief["behind"] == pytest.approx(trained["expected"] - belief["best"]["expected"])
    assert belief["behind_low"] <= belief["behind"] <= belief["behind_high"]
    assert belief["behind"] >= 0
    numbers = {SPACE.arch(trial.params).id: trial.number for trial in study.trials}
    assert belief["best"]["number"] == numbers.get(belief["best"]["arch"])


def test_losses_that_are_sums_are_ordered_well_and_effects_are_the_true_ones(context, believed):
    _, belief = believed
    assert belief["candidates"] == 30
    assert belief["rank_correlation"] > 0.8
    lattice = context.feasible.lattice
    archs = [lattice.arch(tuple(path)) for path in context.reference.tolist()]
    losses = np.array([loss_of(arch) for arch in archs])
    params = [lattice.params_of(tuple(path)) for path in context.reference.tolist()]
    covered = []
    for effect in belief["effects"]:
        have = np.array([item[effect["choice"]] == effect["value"] for item in params])
        assert effect["share"] == pytest.approx(have.mean())
        assert effect["low"] <= effect["effect"] <= effect["high"]
        covered.append(effect["low"] <= losses[have].mean() - losses.mean() <= effect["high"])
    varied = {name for name in params[0] if len({item[name] for item in params}) > 1}
    assert {effect["choice"] for effect in belief["effects"]} == varied
    assert np.mean(covered) > 0.7


def test_too_few_candidates_give_no_belief(context):
    assert belief_of(context, study_after(context, LEAST - 1)) is None
    assert belief_of(context, study_after(context, LEAST)) is not None


def test_candidates_that_all_lose_the_same_give_a_belief_without_a_correlation(context):
    study = make_study(InMemoryStorage(), SPACE, "random", context=context)
    for _ in range(LEAST):
        trial = study.ask()
        for name, dist in distributions().items():
            trial._suggest(name, dist)
        study.tell(trial, 0.5)
    belief = belief_of(context, study)
    assert belief["rank_correlation"] is None
    assert belief["best"]["expected"] == pytest.approx(0.5)


def test_the_believed_front_is_the_best_of_all_networks_within_each_latency(rng):
    space = search_spaces.load("deit-32")
    table = small_table(space)
    archs = list({space.sample(rng) for _ in range(2000)})
    assert len(archs) == space.count() == 48
    losses = [loss_of(arch) for arch in archs]
    model = Surrogate(encoded_in(space, archs[:12]), np.array(losses[:12]), curved=False)
    expected = model.mean(encoded_in(space, archs))
    latencies = np.array([table.price(calls_of(arch)).total_us / 1000 for arch in archs])
    limits = [0.5 * latencies.min(), *np.quantile(latencies, [0.1, 0.4, 0.7, 1.0])]
    found = believed_front(archs[:12], losses[:12], table, limits)
    by_hand = {}
    for limit in limits[1:]:
        within = np.flatnonzero(latencies <= limit)
        by_hand.setdefault(archs[within[np.argmin(expected[within])]], limit)
    assert found["arch"].tolist() == list(by_hand)
    assert found["limit_ms"].tolist() == list(by_hand.values())
    assert found["expected"].tolist() == pytest.approx([expected[archs.index(arch)] for arch in by_hand])
    assert found["predicted_ms"].tolist() == pytest.approx([latencies[archs.index(arch)] for arch in by_hand])
    assert found["trained"].tolist() == [arch in archs[:12] for arch in by_hand]
    assert believed_front(archs[:12], losses[:12], table, limits[:1]).empty
