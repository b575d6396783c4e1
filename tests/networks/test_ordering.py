"""Orders by importance: outputs stay, and what matters leads."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

import search_spaces
from nas.core.channels import Part, cut, fix, fixed, found, fresh, join, move_together, times, width
from nas.networks.building import build, input_shape_of
from nas.networks.ordering import axes_of, magnitude, norm_scale, order_of, permuted, taylor
from nas.networks.weights import slices
from search_spaces import efficientformer as ef
from search_spaces import mobileformer, nextvit
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


NAMES = {  # what has to be free in a network of every family, by a tensor and one of its axes
    "efficientformer-32": ["stages.0.0.body.0.body.0.weight:0", "stages.0.1.body.1.body.0.body.0.weight:0"],
    "efficientformerv2-32": ["stages.0.0.body.0.body.0.weight:0", "stages.0.1.body.body.0.body.0.weight:0"],
    "nextvit-32": ["stages.0.0.body.0.body.0.weight:0"],
    "deit-32": ["stages.0.0.body.0.body.conv.weight:0", "stages.0.2.body.1.body.1.body.0.weight:0"],
    "swin-32": ["stages.0.0.body.0.body.conv.weight:0", "stages.0.1.body.0.body.1.body.qkv.weight:0"],
}


@pytest.mark.parametrize("name", NAMES)
def test_streams_hidden_units_and_heads_are_axes(name, rng):
    found_axes = {axis.name for axis in axes_of(SMALL[name].sample(rng))}
    assert found_axes.issuperset(NAMES[name])


def test_the_stream_of_a_stage_is_one_axis_across_its_blocks():
    (stream,) = [axis for axis in axes_of(LARGE) if axis.name == "stages.1.0.body.body.0.weight:0"]
    held = {place.name for place in stream.places}
    for block in (1, 2):
        assert f"stages.1.{block}.body.0.scale.body.gamma" in held
        assert f"stages.1.{block}.body.1.body.0.body.0.weight" in held
        assert f"stages.1.{block}.body.1.body.1.body.1.running_var" in held
    assert "stages.2.0.body.body.0.weight" in held  # what reads it
    assert stream.size == 48


def test_heads_move_whole_and_groups_of_a_convolution_too():
    attention = "stages.3.2.body.1.body.1.body."
    places = {place.name: place for axis in axes_of(LARGE) for place in axis.places if axis.size == 8}
    assert places[f"{attention}qkv.weight"].inner == 2 * 32 + 128
    assert places[f"{attention}proj.weight"].inner == 128
    assert places[f"{attention}bias"].inner == 1
    arch = nextvit.make((32, 64), (1, 1), (1, 1), "CC", ncb_ratios=(2, 2), ntb_ratios=(2, 2), sr=(1, 1), side=32)
    assert {axis.unit for axis in axes_of(arch) if axis.size == 64 and "proj" not in axis.name} >= {32}


def test_tokens_move_but_the_first():
    arch = next(iter(mobileformer.PRESETS.values()))
    (tokens,) = [axis for axis in axes_of(arch) if axis.name.endswith("table:1")]
    assert (tokens.size, tokens.front, len(tokens.places)) == (6, 1, 1)


@pytest.mark.parametrize("rule", [magnitude, norm_scale, "taylor"])
def test_hidden_units_that_do_nothing_end_up_behind_and_a_child_without_them_gives_the_same(rule):
    network = lively(build(LARGE)).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.startswith("stages.1.") and name.endswith("body.1.body.0.body.0.weight"):  # half of 4 * 48
                dead = torch.randperm(value.shape[0], generator=generator)[: value.shape[0] // 2]
                prefix = name.removesuffix("0.weight")
                for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean"):
                    network.state_dict()[prefix + key][dead] = 0
                network.state_dict()[prefix.replace("1.body.0.body.", "1.body.1.body.") + "0.weight"][:, dead] = 0
    x, labels = image(LARGE, 4), torch.arange(4)
    scores = taylor(network, x, labels) if rule == "taylor" else rule(network)
    ordered = permuted(network, order_of(network, scores))
    child = ef.make((32, 48, 64, 96), (2, 2, 2, 3), 2, ratios=(4, 2, 4, 4), side=32, classes=10, stem_convs=1)
    with torch.no_grad():
        expected = network(x)
        got = functional_call(build(child).double().eval(), slices(ordered, child), (x,))
        assert_close(got, expected, 1e-9)
        plain = functional_call(build(child).double().eval(), slices(network, child), (x,))
        assert (plain - expected).abs().max() > 1e-3 * expected.abs().max()


def test_taylor_is_weight_times_gradient_by_hand():
    network = lively(build(LARGE)).double()
    x, labels = image(LARGE, 3), torch.tensor([1, 0, 2])
    scores = taylor(network, x, labels)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    weight = network.get_parameter("stages.1.1.body.1.body.0.body.0.weight")
    network.eval()

    def loss(step):
        with torch.no_grad():
            weight[3, 5] += step
            value = torch.nn.functional.cross_entropy(network(x), labels).item()
            weight[3, 5] -= step
        return value

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    expected = (slope * weight[3, 5].item()) ** 2
    assert scores["stages.1.1.body.1.body.0.body.0.weight"][3, 5].item() == pytest.approx(expected, rel=1e-4)


def test_equal_importance_changes_nothing():
    network = build(LARGE)
    zeros = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    other = permuted(network, order_of(network, zeros))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


# layouts


def test_a_sum_makes_one_group_of_two_and_parts_where_either_is_parted():
    one, other = fresh(12), fresh(4) + fresh(8)
    join(one, other)
    assert found(one) == found(other)
    assert [group.size for group, _ in found(one)] == [4, 8]


def test_heads_and_channels_make_channels_move_as_heads():
    channels, heads = fresh(12), fresh(3, 4)
    join(channels, heads)
    assert found(channels) == found(heads) == heads
    assert width(times(channels, 2)) == 24


def test_what_cannot_agree_stays():
    one, other = fresh(3, 4), fresh(4, 3)
    join(one, other)
    assert all(group.fixed for group, _ in found(one) + found(other))
    heads = fresh(3, 4)
    cut(heads, [6, 6])
    assert heads[0].group.fixed
    channels = fresh(10)
    move_together(channels, 4)
    assert channels[0].group.fixed


def test_what_is_fixed_stays_so_in_a_sum_and_in_parts():
    one, other = fresh(6), fixed(6)
    join(one, other)
    cut(one, [2, 4])
    assert all(group.fixed for group, _ in found(one))
    late = fresh(6)
    cut(late, [2, 4])
    fix(late)
    assert [group.fixed for group, _ in found(late)] == [True, True]


def test_runs_that_move_together_add_up():
    channels = fresh(24)
    move_together(channels, 4)
    move_together(channels, 6)
    assert channels == (Part(channels[0].group),)
    assert channels[0].group.unit == 12
    runs, heads = fresh(24), fresh(6, 4)
    move_together(runs, 8)
    join(runs, heads)
    assert (found(runs)[0].group.size, found(runs)[0].group.unit, found(runs)[0].inner) == (6, 2, 4)
