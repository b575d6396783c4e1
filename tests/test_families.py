"""The contract of every space and preset; a new family is tested on the day its file appears."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import search_spaces
from nas.arch import Arch, calls_of
from nas.building import Network, build, cost_of, fuse, input_shape_of
from nas.ops import BlockModule
from nas.tracing import calls_of_unit, fuse_in_place, trace
from tests.small import randomize

SPACES = search_spaces.spaces()
PRESETS = search_spaces.presets()
SMALL = {name: space for name, space in SPACES.items() if space.input_shape[1] <= 64}


@pytest.mark.parametrize("name", SPACES)
def test_a_sampled_arch_survives_json(name, rng):
    for _ in range(20):
        arch = SPACES[name].sample(rng)
        assert Arch.from_json(arch.to_json()) == arch


@pytest.mark.parametrize("name", SPACES)
def test_no_arch_needs_a_row_outside_the_listing(name, rng):
    space = SPACES[name]
    rows, op_rows = set(space.rows()), set(space.op_rows())
    for _ in range(100):
        calls = calls_of(space.sample(rng))
        assert rows.issuperset(call.row for call in calls)
        assert op_rows.issuperset(op.row for call in calls for op in call.ops)


@pytest.mark.parametrize("name", SPACES)
def test_the_rows_are_few_enough_to_profile(name):
    space = SPACES[name]
    assert len(space.rows()) <= (60 if space.input_shape[1] <= 64 else 600)


@pytest.mark.parametrize("name", SPACES)
def test_composed_calls_equal_the_trace_of_the_whole_model(name, rng):
    for _ in range(3):
        arch = SPACES[name].sample(rng)
        with torch.device("meta"):
            network = fuse_in_place(Network(arch))
        traced, composed = trace(network, input_shape_of(arch)), calls_of(arch)
        assert [(call.row, call.outputs, call.ops) for call in traced] == [
            (call.row, call.outputs, call.ops) for call in composed
        ]


@pytest.mark.parametrize("name", SPACES)
def test_parameters_composed_of_blocks_are_those_of_the_model(name, rng):
    arch = SPACES[name].sample(rng)
    with torch.device("meta"):
        assert cost_of(arch).params == sum(parameter.numel() for parameter in Network(arch).parameters())


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name, rng):
    arch = SPACES[name].sample(rng)
    network = build(arch).train()
    logits = network(torch.randn(input_shape_of(arch, 4)))
    sum(part.square().sum() for part in (logits if isinstance(logits, tuple) else (logits,))).backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", SMALL)
def test_the_deployed_form_gives_the_same_outputs(name, rng):
    for _ in range(3):
        arch = SPACES[name].sample(rng)
        network = randomize(build(arch)).double().eval()
        x = torch.randn(input_shape_of(arch, 2), dtype=torch.float64)
        with torch.no_grad():
            expected, got = network(x), fuse(network)(x)
        assert got.shape == (2, arch.classes)
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert not any(isinstance(part, nn.BatchNorm2d) for part in fuse(network).modules())


@pytest.mark.parametrize("name", SPACES)
def test_a_row_builds_on_its_own(name):
    for row in SPACES[name].rows()[::9]:
        with torch.device("meta"):
            module = row.unit.module(*row.inputs)
        assert isinstance(module, BlockModule)
        assert calls_of_unit(row).outputs


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_point_of_its_space(name):
    arch = PRESETS[name]
    space = search_spaces.load(arch.family)
    assert space.arch(space.params_of(arch)) == arch


def test_fresh_weights_are_a_function_of_the_seed_and_leave_the_global_state_alone(rng):
    arch = search_spaces.load("efficientformer-32").sample(rng)
    before = torch.random.get_rng_state()
    first, second, other = build(arch, seed=1), build(arch, seed=1), build(arch, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [next(network.parameters()) for network in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
