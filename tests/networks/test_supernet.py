"""One set of weights for a space: whatever network runs on it is the ordinary network with those weights."""

from __future__ import annotations

import random

import pytest
import torch
from torch.func import functional_call

import search_spaces
from nas.core.errors import InputError
from nas.networks.building import build
from nas.networks.supernet import Supernet
from search_spaces import efficientformer as ef
from tests.small import TINY, lively

SMALL = sorted(name for name in search_spaces.spaces() if name.endswith("-32"))


def logits(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.mark.parametrize("name", SMALL)
def test_a_child_gives_what_the_ordinary_network_with_its_weights_gives(name, rng):
    space = search_spaces.load(name)
    supernet = lively(Supernet.fresh(space)).double()
    images = torch.randn(3, *space.input_shape, dtype=torch.float64)
    for arch in (space.sample(rng) for _ in range(3)):
        ordinary = build(arch, seed=1).double()
        slices = supernet.slices(arch)
        assert slices.keys() == dict(ordinary.named_parameters()).keys()
        ordinary.load_state_dict({key: value.detach() for key, value in slices.items()}, strict=False)
        child = supernet.network(arch).double()
        for network in (child, ordinary):
            network.train()
        torch.manual_seed(0)  # DynamicViT and T2T draw in training
        got = logits(functional_call(child, slices, (images,)))
        torch.manual_seed(0)
        expected = logits(ordinary(images))
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        sum(part.square().sum() for part in got).backward()
        sum(part.square().sum() for part in expected).backward()
        learned = {key: weight.grad for key, weight in ordinary.named_parameters() if weight.grad is not None}
        total = sum(weight.grad.abs().sum() for weight in supernet.parameters() if weight.grad is not None)
        torch.testing.assert_close(total, sum(grad.abs().sum() for grad in learned.values()))
        supernet.zero_grad()


def of_kind(kind):
    space = search_spaces.load("hybrid-32")
    params = {name: choice.values[-1] for name, choice in space.choices.items()}
    return space.arch(params | {f"stage{number}.kind": kind for number in (1, 2, 3)})


def test_kinds_of_a_hybrid_space_have_weights_of_their_own():
    supernet = Supernet.fresh(search_spaces.load("hybrid-32"))
    arch = of_kind("mb4d")
    outputs = functional_call(supernet.network(arch).train(), supernet.slices(arch), (torch.randn(4, 3, 32, 32),))
    sum(part.sum() for part in logits(outputs)).backward()
    learned = {name.split("/")[1].split("-")[0] for name, weight in supernet.weights.items() if weight.grad is not None}
    assert learned == {"Stem", "Embedding", "MB4D", "Pooled", "Logits"}


def test_every_network_of_a_space_fits_and_begins_as_a_part_of_a_fresh_one():
    supernet = Supernet.fresh(TINY)
    for arch in TINY.archs():
        assert set(supernet.slices(arch)) == dict(build(arch).named_parameters()).keys()
    scales = [weight for name, weight in supernet.weights.items() if name.endswith("gamma")]
    assert scales
    assert all(torch.equal(scale, torch.full_like(scale, 1e-5)) for scale in scales)
    largest = TINY.arch({name: choice.values[-1] for name, choice in TINY.choices.items()} | {"tail": 0})
    fresh = build(largest).state_dict()
    for name, weight in supernet.slices(largest).items():  # of its blocks each is the largest of its place
        if weight.numel() > 1000:
            assert weight.std().item() == pytest.approx(fresh[name].std().item(), rel=0.2)


def test_equal_seeds_begin_with_equal_weights():
    first, again, other = (Supernet.fresh(TINY, seed) for seed in (0, 0, 1))
    assert all(torch.equal(weight, again.weights[name]) for name, weight in first.weights.items())
    assert not all(torch.equal(weight, other.weights[name]) for name, weight in first.weights.items())


def test_a_network_beyond_the_space_is_refused():
    supernet = Supernet.fresh(TINY)
    deep = ef.make((16, 16, 16, 32), (3, 2, 2, 2), 0, ratios=(2, 2, 2, 2), side=32, classes=10, stem_convs=1)
    with pytest.raises(InputError, match=r"supernet of efficientformer-32: stage 1: no weights for 2 MB4D"):
        supernet.slices(deep)
    wide = ef.make((16, 64, 64, 64), (1, 2, 2, 2), 0, ratios=(2, 2, 2, 2), side=32, classes=10, stem_convs=1)
    with pytest.raises(InputError, match=r"stage 2: Embedding cout=64: .* do not fit into"):
        supernet.slices(wide)


def test_what_a_child_writes_into_its_norms_reaches_no_weight_and_no_other_child():
    supernet = Supernet.fresh(TINY)
    before = {name: weight.detach().clone() for name, weight in supernet.weights.items()}
    arch = TINY.sample(random.Random(0))
    with torch.no_grad():
        functional_call(supernet.network(arch).train(), supernet.slices(arch), (torch.randn(4, 3, 32, 32),))
    assert all(torch.equal(weight, before[name]) for name, weight in supernet.weights.items())
    assert not any("running" in name for name in supernet.weights)
