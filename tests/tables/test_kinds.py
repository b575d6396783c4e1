from __future__ import annotations

import dataclasses
import random

import pytest

import search_spaces
from nas.tables.kinds import family_of, kinds, only
from search_spaces import efficientformer as ef
from search_spaces import hybrid, nextvit


def test_a_space_without_kinds_names_its_family(rng):
    assert kinds(ef.SMALL) == ()
    assert family_of(ef.SMALL.sample(rng)) == "efficientformer-32"


@pytest.mark.parametrize("kind", kinds(hybrid.SMALL))
def test_the_part_of_one_kind_lies_in_the_space_and_is_named(kind, rng):
    part = only(hybrid.SMALL, kind)
    for _ in range(10):
        arch = part.sample(rng)
        assert arch in hybrid.SMALL
        assert family_of(arch) == f"hybrid-32:{kind}"


def test_a_mixed_network_and_one_of_another_size_are_named_as_well():
    params = hybrid.SMALL.params_of(only(hybrid.SMALL, "nextvit").sample(random.Random(0)))
    mixed = hybrid.SMALL.arch(params | {"stage2.kind": "inverted"})
    assert family_of(mixed) == "hybrid-32"
    other = dataclasses.replace(hybrid.SMALL, classes=100).arch(params)
    assert family_of(other) == "hybrid-32:nextvit"


def test_published_networks_keep_their_kind():
    assert family_of(hybrid.from_family(search_spaces.presets()["nextvit-s"])) == "hybrid:nextvit"
    assert family_of(hybrid.from_family(search_spaces.presets()["efficientformer-l1"])) == "hybrid"  # MB4D, one MB3D
    assert family_of(nextvit.SPACE.sample(random.Random(0))) == "nextvit"
