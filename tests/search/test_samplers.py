"""What holds for every sampler: one contract, parametrized over the files there are."""

import functools
import gc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

import search_spaces
from nas.core.errors import InputError
from nas.search import samplers
from nas.search.fitting import context_of, feasible_set
from nas.search.lattice import sums
from nas.search.samplers._context import History
from nas.search.study import distributions_of
from nas.search.trials import record_of
from tests.search.fakes import (
    FakeScorer,
    HereWorkers,
    ToySpace,
    any_of,
    estimator_at,
    fake_table,
    make_engine,
    make_study,
    tiny_space,
)
from tests.small import TINY

SPACE = ToySpace()


def draw(trial, names=("dead", "depth", "width")):
    params = {}
    for name in names:
        values = SPACE.choices[name].values
        if name == "depth":
            params[name] = trial.suggest_int(name, values[0], values[-1])
        else:
            params[name] = trial.suggest_categorical(name, values)
    return params


def study_after(sampler, told, seed=0, objectives=1):
    """A study in which `told` trials are finished, with losses that grow with depth."""
    study = make_study(InMemoryStorage(), SPACE, sampler, seed=seed, objectives=objectives)
    for _ in range(told):
        trial = study.ask()
        params = draw(trial)
        trial.set_constraint("budget", params["depth"] - 10)
        study.tell(trial, [float(params["depth"] + objective) for objective in range(objectives)])
    return study


def params_of(study):
    return [trial.params for trial in study.get_trials()]


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("sampler", samplers.names())
def test_draws_are_legal_and_follow_from_the_seed(sampler, objectives):
    first, again, other = (params_of(study_after(sampler, 40, seed, objectives)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert all(params[name] in SPACE.choices[name].values for params in first for name in SPACE.choices)


@pytest.mark.parametrize("told", [0, 12, 70])
@pytest.mark.parametrize("sampler", samplers.names())
def test_a_draw_cut_off_between_two_parameters_goes_on_as_it_would_have(sampler, told):
    whole = draw(study_after(sampler, told).ask())
    study = study_after(sampler, told)
    draw(study.ask(), ["dead", "depth"])
    (frozen,) = study.get_trials(states=[TrialState.RUNNING])
    assert draw(optuna.Trial(study, frozen._trial_id)) == whole


WIDE = SimpleNamespace(choices={name: SimpleNamespace(values=tuple(range(6))) for name in "abcde"})


@pytest.mark.parametrize("sampler", [name for name in samplers.names() if name != "random"])
def test_a_sampler_that_learns_beats_random_search(sampler):
    def late_losses(name):
        study = make_study(InMemoryStorage(), WIDE, name)
        for _ in range(90):
            trial = study.ask()
            study.tell(trial, float(sum(trial.suggest_int(choice, 0, 5) for choice in WIDE.choices)))
        return sum(trial.value for trial in study.get_trials()[60:])

    assert late_losses(sampler) < 0.8 * late_losses("random")


@pytest.mark.parametrize(
    ("name", "objectives"), [("tiny", 1), ("small", 2), ("nextvit-32", 1), ("efficientformer-32", 2)]
)
@pytest.mark.parametrize("sampler", samplers.names())
def test_every_proposal_fits_and_is_new(sampler, name, objectives):
    space = {"tiny": tiny_space(), "small": TINY}.get(name) or search_spaces.load(name)
    estimator = estimators(name, space)
    context = context_of(space, estimator, feasible_set(space, estimator), objectives)
    study = make_study(InMemoryStorage(), space, sampler, objectives=objectives, context=context)
    make_engine(study, space, estimator, HereWorkers(FakeScorer(), 2), 20).run()
    records = [record_of(trial) for trial in study.trials]
    assert {record.state for record in records} == {"evaluated"}
    assert len({record.arch for record in records}) == len(records)
    assert not any(estimator.misfit(estimator.estimate(space.arch(trial.params))) for trial in study.trials)


@functools.cache
def estimators(name, space):
    return estimator_at(space, fake_table(space), "latency_ms<=p25", "params<=p60")


def test_a_study_that_is_gone_leaves_nothing_that_a_later_one_could_take_for_its_own():
    context = any_of(SPACE)
    study = make_study(InMemoryStorage(), SPACE, context=context)
    for _ in range(3):
        trial = study.ask()
        draw(trial)
        study.tell(trial, 1.0)
    assert len(History.of(context, study).paths) == 3
    assert len(context._paths) == 1
    del study, trial
    gc.collect()
    assert not context._paths


def test_an_unknown_sampler_is_named_with_the_closest():
    with pytest.raises(InputError, match="did you mean 'random'"):
        samplers.load_sampler("randm", 0, {}, None)


def test_random_draws_cover_every_value_evenly():
    params = params_of(study_after("random", 192))
    assert len({tuple(sorted(item.items())) for item in params}) == 192


@pytest.mark.parametrize("free", [False, True])
def test_before_there_is_a_model_guided_believes_features_every_other_time(free):
    space = search_spaces.load("efficientformer-32")
    estimator = estimators("efficientformer-32", space)
    context = context_of(space, estimator, feasible_set(space, estimator), 1, False)
    sizes, asked = context.scalars["params"], []

    def size(paths):
        asked.append(len(paths))
        return sums(sizes, paths)[:, None]

    context = replace(context, features=size, features_are_free=free)
    study = make_study(InMemoryStorage(), space, "guided", context=context)
    for _ in range(8):
        study.tell(study.ask(distributions_of(space.choices)), 1.0)
    paths = np.array(History.of(context, study).paths)
    found = sums(sizes, paths)
    smaller = np.mean(sums(sizes, context.reference)[:, None] < found[None], axis=0)  # share of all that is smaller
    assert max(smaller[::2]) < (0.05 if free else 0.5)
    assert np.mean(smaller[1::2]) > 0.25
    assert len(asked) == 4
