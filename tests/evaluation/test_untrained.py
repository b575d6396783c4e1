"""Evaluators that train nothing, on a network of a few thousand weights."""

import random
from dataclasses import replace

import pytest
import torch

from nas.core.errors import InputError
from nas.evaluation import proxies
from nas.evaluation.data import load_data
from nas.evaluation.evaluators import load_evaluator
from nas.networks.building import build, cost_of
from tests.small import TINY

ARCH = TINY.sample(random.Random(0))
FIGURES = {
    "naswot": lambda model, batches: proxies.naswot(model, batches[0][0]),
    "synflow": lambda model, batches: proxies.synflow(model, ARCH.input_shape),
    "zico": lambda model, batches: proxies.zico(model, batches[:4]),
    "expressivity": lambda model, batches: proxies.expressivity(model, batches[0][0]),
    "trainability": lambda model, batches: proxies.trainability(model, batches[0][0]),
}


@pytest.fixture(scope="module")
def data():
    return replace(load_data("digits", ARCH.input_shape, limit=700), test=None)


def score(name, data, seed=0, device="cpu", **settings):
    evaluator = load_evaluator(name, **settings)
    return evaluator.score(lambda: build(ARCH, seed=seed), data, arch=ARCH, prepared={}, seed=seed, device=device)


@pytest.mark.parametrize("name", FIGURES)
def test_a_score_is_the_negative_of_its_figure_and_no_accuracy(name, data):
    batches = list(data.train.batches(64, seed=0))
    found = score(name, data)
    assert found.value == pytest.approx(-FIGURES[name](build(ARCH), batches), rel=1e-6)
    assert (found.name, found.val_loss, found.val_accuracy) == (f"-{name}", None, None)
    assert found.value != score(name, data, seed=1).value
    assert found.value == score(name, data).value


def test_the_device_may_be_left_to_the_machine(data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert score("naswot", data, device="auto").value == score("naswot", data).value


def test_size_is_counted(data):
    assert score("size", data).value == -cost_of(ARCH).macs
    found = score("size", data, of="params")
    assert (found.value, found.name) == (-cost_of(ARCH).params, "-params")


def test_images_that_are_not_there_are_missed(data):
    with pytest.raises(InputError, match=r"digits: 560 training images are not 4 batches of 200"):
        score("zico", data, images=200)
