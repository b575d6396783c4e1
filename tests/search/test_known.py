"""What is told of how well scores rank; the figures here are made up."""

import json

import pytest

from nas.evaluation import truth
from nas.evaluation.evaluators import read_asked
from nas.search import known


def figures(tau):
    return {"kendall_band": tau, "kendall_low_band": tau - 0.17, "kendall_high_band": tau + 0.14}


@pytest.fixture
def file(tmp_path):
    """What was found of two scores, and of models that learned from them."""
    scores = [
        {"name": "naswot", "of": []} | figures(0.48),
        {"name": "short: {epochs: 2}", "of": []} | figures(0.5),
        {"name": "zico", "of": []} | dict.fromkeys(figures(0), None),
        {"name": "ridge", "of": ["naswot", "zico"]} | figures(0.9),
    ]
    predictors = [
        {"labels": 20, "from": "encoding", "of": []} | figures(0.4),
        {"labels": 8, "from": "encoding and scores", "of": ["naswot"]} | figures(0.1),
        {"labels": 20, "from": "scores", "of": ["naswot"]} | figures(0.2),
        {"labels": 20, "from": "encoding and scores", "of": ["naswot", "size"]} | figures(0.6),
        {"labels": 20, "from": "encoding and scores", "of": ["prior fashion-mnist"]} | figures(0.7),
    ]
    path = tmp_path / "judged.json"
    path.write_text(json.dumps({"band_marked": True, "networks_band": 20, "scores": scores, "predictors": predictors}))
    return path


def told(file, evaluator, features=(), sampler="random", prior="none"):
    asked = [one for each in features for one in read_asked(each)]
    return known.told(read_asked(evaluator), asked, sampler, prior, file)


def test_the_figure_of_a_score_is_told_with_its_interval(file):
    line = "ranks with tau .48 (.31 to .62) in a band of like MACs on Fashion-MNIST networks (nas judge)"
    assert told(file, "naswot") == [f"naswot {line}"]
    assert told(file, "naswot: {images: 64}") == [f"naswot {line}"]  # its default
    assert told(file, "naswot: {images: 32}") == []
    assert told(file, "short: {epochs: 3}") == []
    assert told(file, ["naswot", {"short": {"epochs": 2}}])[1].startswith("short: {epochs: 2} ranks with tau .50")
    assert told(file, "zico") == []  # judged, without a figure


def test_of_guided_the_model_with_its_features_is_told_else_the_one_without(file):
    (with_both,) = told(file, "zico", ["size", "naswot"], "guided")
    assert with_both.startswith(
        "the model of guided, after 20 trainings, from choices and naswot, size, ranks with tau .60 (.43 to .74)"
    )
    for features in ([], ["naswot"], ["naswot: {images: 32}", "size"]):
        assert told(file, "zico", features, "guided")[0].startswith(
            "the model of guided, after 20 trainings, from choices, ranks with tau .40"
        )
    assert told(file, "zico", ["size", "naswot"], "tpe") == []
    assert told(file, "zico", [], "guided", "fashion-mnist")[0].startswith(
        "the model of guided, after 20 trainings, from choices and prior fashion-mnist, ranks with tau .70"
    )
    assert "from choices, ranks with tau .40" in told(file, "zico", ["naswot"], "guided", "fashion-mnist")[0]


def test_nothing_is_told_without_a_band_or_without_figures(file, tmp_path):
    found = json.loads(file.read_text())
    for lacking in ({"band_marked": False}, {"networks_band": 19}):
        file.write_text(json.dumps(found | lacking))
        assert told(file, "naswot", sampler="guided") == []
    assert told(tmp_path / "none.json", "naswot", sampler="guided") == []


def test_the_shipped_figures_are_of_scores_that_there_are():
    found = known.read()
    asked = {each["name"] for each in found["scores"] if not each["of"]} - {"params", "macs"}
    priors = {name for name in asked if name.startswith("prior ")}
    assert {name.removeprefix("prior ") for name in priors} <= set(truth.names())
    assert all(read_asked(name) for name in asked - priors)
    assert {each["labels"] for each in found["predictors"]} <= {8, 20}
