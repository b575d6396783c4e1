"""Figures of scores, combined and learned from; values and accuracies are made up."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import search_spaces
from nas.core.errors import InputError
from nas.evaluation.truth import Known, Truth
from nas.networks.building import cost_of
from nas.search import verdicts
from nas.search.verdicts import Judged
from tests.small import by_macs

ARCHS = by_macs(40, search_spaces.load("efficientformer-32"))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Splits enough to see that they are averaged."""
    monkeypatch.setattr(verdicts, "SPLITS", 12)


def truth(accuracies, band=20, **more):
    """Networks of increasing MACs, `band` of them in the middle marked; an accuracy or a tuple of them for each."""
    first = (len(accuracies) - band) // 2
    networks = [
        Known(arch, "band" if first <= place < first + band else "broad", tuple(np.atleast_1d(each).tolist()), **more)
        for place, (arch, each) in enumerate(zip(ARCHS, accuracies, strict=False))
    ]
    return Truth(Path("made-up.jsonl"), tuple(networks), "small", 100)


def by_name(found):
    return {each["name"]: each for each in found["scores"]}


def test_a_combination_is_the_mean_of_ranks_or_a_regression_that_has_not_seen_what_it_predicts():
    rng = np.random.default_rng(0)
    accuracy = 0.8 + 0.1 * rng.random(40)
    errors = 0.02 * rng.normal(size=40)
    one, two = Judged("one", np.exp(30 * (accuracy + errors)), [1.0, 3.0]), Judged("two", accuracy - errors, [0.5])
    found = by_name(verdicts.figures(truth(accuracy), [one, two]))
    ranked = stats.rankdata(one.values) + stats.rankdata(two.values)
    assert found["rank average"]["kendall"] == pytest.approx(stats.kendalltau(ranked, accuracy)[0])
    assert found["rank average"]["of"] == found["ridge"]["of"] == ["one", "two"]
    assert found["ridge"]["seconds"] == 2.5
    assert found["ridge"]["kendall"] > max(found["one"]["kendall"], found["two"]["kendall"])
    json.dumps(list(found.values()), allow_nan=False)


def test_a_regression_on_chance_predicts_nothing():
    taus = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scores = [Judged(name, rng.normal(size=40)) for name in "abcdef"]
        taus.append(by_name(verdicts.figures(truth(rng.random(40)), scores))["ridge"]["kendall"])
    assert np.mean(taus) < 0.05


def test_a_combination_leaves_out_what_ranks_nothing_and_says_so():
    accuracy = np.linspace(0.8, 0.9, 40)
    good, other = Judged("good", accuracy**2), Judged("other", accuracy.copy())
    other.values[3] = math.nan
    bad = [Judged("constant", np.ones(40)), Judged("nothing", np.full(40, math.nan))]
    found = verdicts.figures(truth(accuracy), [good, *bad, other], labels=[8])
    both = by_name(found)["rank average"]
    assert both["of"] == ["good", "other"]
    assert both["networks"] == 39
    assert both["remark"].startswith("without constant, nothing, which")
    assert both["kendall"] == pytest.approx(1)
    assert [each["of"] for each in found["predictors"]] == [[], ["good", "other"], ["good", "other"]]
    assert {each["remark"] for each in found["predictors"]} == {"without constant, nothing, which ranks nothing"}


def test_the_model_of_guided_is_taught_by_some_networks_and_judged_by_the_others():
    macs = np.array([cost_of(arch).macs for arch in ARCHS], float)
    hidden = np.random.default_rng(1).normal(size=40)  # what only the score knows
    accuracy = 0.8 + 0.05 * stats.zscore(np.log(macs)) + 0.05 * hidden
    found = verdicts.figures(truth(accuracy), [Judged("knows", hidden)], labels=[8, 20])["predictors"]
    taus = {(each["labels"], each["from"]): each["kendall"] for each in found}
    assert list(taus) == [(count, kind) for count in (8, 20) for kind in ("encoding", "scores", "encoding and scores")]
    assert 0.2 < max(taus[20, "encoding"], taus[20, "scores"]) < taus[20, "encoding and scores"] < 1
    assert taus[8, "encoding and scores"] < taus[20, "encoding and scores"]
    assert all(each["kendall_low"] <= each["kendall"] <= each["kendall_high"] for each in found)
    assert found == verdicts.figures(truth(accuracy), [Judged("knows", hidden)], labels=[8, 20])["predictors"]


def test_labels_are_losses_where_the_file_has_them():
    macs = np.array([cost_of(arch).macs for arch in ARCHS], float)
    accuracy = 0.8 + 1e-3 * stats.rankdata(macs)
    misleading = truth(accuracy, val_losses=(1.0,))  # all the same: nothing can be learned
    networks = [
        Known(k.arch, k.set, k.accuracies, (float(-m),)) for k, m in zip(misleading.networks, macs, strict=True)
    ]
    telling = Truth(misleading.file, tuple(networks), "small", 100)
    (one,) = verdicts.figures(misleading, [], labels=[20])["predictors"]
    (two,) = verdicts.figures(telling, [], labels=[20])["predictors"]
    assert one["kendall"] is None
    assert two["kendall"] > 0.8


def test_what_nobody_was_taught_is_not_predicted():
    accuracies = [np.random.default_rng(seed).random(40) for seed in range(4)]
    taus = [verdicts.figures(truth(each), [], labels=[20])["predictors"][0]["kendall"] for each in accuracies]
    assert abs(np.mean(taus)) < 0.15


@pytest.mark.parametrize("labels", [1, 36])
def test_a_number_of_labels_leaves_networks_to_predict(labels):
    with pytest.raises(InputError, match=rf"labels: expected 2 to 35, .* has 40 networks .*; got {labels}"):
        verdicts.require_labels(truth(np.linspace(0, 1, 40)), [8, labels])


def test_where_no_network_is_marked_the_middle_by_macs_is_the_band():
    accuracy = np.linspace(0.8, 0.9, 40)
    found = verdicts.figures(truth(accuracy, band=0), [])
    macs = sorted(cost_of(arch).macs for arch in ARCHS)
    assert (found["networks_band"], found["macs_band"]) == (10, [macs[15], macs[24]])
    assert "no network is marked as of the band: it is the 10 in the middle by MACs" in found["remark"]
    assert "no network was trained twice" in found["remark"]
    assert found["ceiling"]["kendall"] is found["noise"] is None
    assert by_name(found)["macs"]["kendall_band"] == pytest.approx(1)
