"""Orders by importance: outputs stay, and what matters leads."""

from __future__ import annotations

import pytest
import torch

import search_spaces
from nas.networks.building import build, input_shape_of
from nas.networks.ordering import axes_of, permuted
from search_spaces import efficientformer as ef
from tests.small import assert_close, lively

SMALL = {name: space for name, space in search_spaces.spaces().items() if space.input_shape[1] <= 64}
LARGE = ef.make((32, 48, 64, 96), (2, 2, 2, 3), 2, side=32, classes=10, stem_convs=1)


def image(arch, count=2):
    shape = input_shape_of(arch, count)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def shuffled(arch, seed=0):
    """A random order of every axis."""
    generator, order = torch.Generator().manual_seed(seed), {}
    for axis in axes_of(arch):
        runs = torch.randperm(axis.size // axis.unit - axis.front, generator=generator) + axis.front
        runs = torch.cat([torch.arange(axis.front), runs])
        order[axis.name] = (runs[:, None] * axis.unit + torch.arange(axis.unit)).flatten()
    return order


@pytest.mark.parametrize("name", SMALL)
def test_any_order_of_all_axes_leaves_the_outputs(name, rng):
    for seed in range(3):
        arch = SMALL[name].sample(rng)
        network = lively(build(arch)).double().eval()
        other = permuted(network, shuffled(arch, seed))
        x = image(arch)
        with torch.no_grad():
            assert_close(other(x), network(x), 1e-9)
        moved = sum(not torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
        assert moved > 0
