"""Scores without training, against hand calculations on tiny networks."""

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import search_spaces
from nas.core.ops import Block, Conv, Linear, Residual, Shape, from_stage
from nas.evaluation import proxies
from nas.networks.building import build


def randn(*sizes, seed=0):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


# naswot


def agreements(codes):
    """log|det| of how many entries each two codes share, counted one by one."""
    n = len(codes)
    matrix = [[sum(a == b for a, b in zip(codes[i], codes[j], strict=True)) for j in range(n)] for i in range(n)]
    return math.log(abs(np.linalg.det(np.array(matrix, dtype=float))))


def test_naswot_counts_the_activations_that_two_images_share():
    torch.manual_seed(0)
    conv, norm, linear, last = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(48, 5), nn.Linear(5, 2)
    images = randn(6, 1, 6, 6)
    first = conv(images)
    first = (first - first.mean((0, 2, 3), keepdim=True)) / first.var((0, 2, 3), keepdim=True, correction=0).sqrt()
    second = linear(F.gelu(first).flatten(1))
    codes = [(torch.cat([f.flatten(), s]) > 0).tolist() for f, s in zip(first, second, strict=True)]
    model = nn.Sequential(conv, norm, nn.GELU(), nn.Flatten(), linear, nn.ReLU(inplace=True), last)
    assert proxies.naswot(model, images) == pytest.approx(agreements(codes), rel=1e-9)


class Written(nn.Module):
    """One activation, however it is written."""

    def __init__(self, act):
        super().__init__()
        self.before, self.act, self.behind = nn.Linear(4, 12), act, nn.Linear(12, 2)

    def forward(self, x):
        return self.behind(self.act(self.before(x.flatten(1))))


@pytest.mark.parametrize("act", [F.relu, torch.relu, torch.Tensor.relu, nn.ReLU6(), F.silu, nn.Hardswish(), F.gelu])
def test_naswot_sees_an_activation_however_it_is_written(act):
    def score(kind):
        torch.manual_seed(0)
        return proxies.naswot(Written(kind), randn(5, 1, 2, 2))

    assert math.isfinite(score(act))
    assert score(act) == score(nn.ReLU())


def test_naswot_of_equal_images_is_no_number():
    image = randn(1, 1, 2, 2)
    assert proxies.naswot(Written(nn.ReLU()), torch.cat([image, image, randn(1, 1, 2, 2, seed=1)])) < -20


# synflow


def test_synflow_of_linear_layers_is_their_product():
    first, second = nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)
    product = np.abs(second.weight.detach().numpy()) @ np.abs(first.weight.detach().numpy())
    expected = math.log(2 * product.sum())  # each of the two layers passes all of it
    for layers in ([first, second], [first, nn.LayerNorm(3), second], [first, nn.BatchNorm1d(3), second]):
        assert proxies.synflow(nn.Sequential(nn.Flatten(), *layers), (1, 2, 2)) == pytest.approx(expected, rel=1e-6)


def test_synflow_sees_branches_behind_a_layer_scale():
    linear = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(nn.Flatten(), Residual(linear, scale=4))
    expected = math.log(linear.weight.abs().sum().item())
    assert proxies.synflow(model, (1, 2, 2)) == pytest.approx(expected, rel=1e-6)


class Attending(nn.Module):
    """One head of attention over positions."""

    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return (self.query(tokens) @ tokens.transpose(1, 2)).softmax(2) @ self.value(tokens)


def test_synflow_passes_activations_and_attention_as_a_linear_network_does():
    attending, linear = Attending(), nn.Linear(3, 3, bias=False)
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU6(inplace=True), nn.Hardswish(), attending)
    with torch.no_grad():
        model[0].weight.copy_(100 * linear.weight[:, :, None, None])  # far beyond what a ReLU6 lets pass
    product = np.abs(attending.value.weight.detach().numpy()) @ np.abs(100 * linear.weight.detach().numpy())
    expected = math.log(2 * 4 * product.sum())  # two layers, four positions
    assert proxies.synflow(model, (3, 2, 2)) == pytest.approx(expected, rel=1e-6)


class Gated(nn.Module):
    """Values times a context of one position, as MobileViT v2's attention has it."""

    def __init__(self):
        super().__init__()
        self.value, self.context = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(3, 2, 1, bias=False)

    def forward(self, x):
        return F.relu(self.value(x)) * self.context(x).sum((2, 3), keepdim=True)


def test_synflow_of_products_does_not_grow_with_each_of_them():
    gated = Gated()
    expected = math.log(4 * gated.value.weight.abs().sum().item())  # four positions
    assert proxies.synflow(gated, (3, 2, 2)) == pytest.approx(expected, rel=1e-6)


# zico


def test_zico_is_mean_over_deviation_of_gradients():
    rng = np.random.default_rng(0)
    first, second = nn.Linear(6, 3), nn.Linear(3, 2)
    w1, b1, w2, b2 = (value.detach().double().numpy() for value in (*first.parameters(), *second.parameters()))
    batches = [(rng.standard_normal((5, 6)), rng.integers(0, 2, 5)) for _ in range(3)]
    gradients = []
    for x, labels in batches:
        before = x @ w1.T + b1
        hidden = np.maximum(before, 0)
        odds = np.exp(hidden @ w2.T + b2)
        error = (odds / odds.sum(1, keepdims=True) - np.eye(2)[labels]) / len(x)
        gradients.append(((error @ w2 * (before > 0)).T @ x, error.T @ hidden))
    expected = 0.0
    for layer in range(2):
        g = np.stack([each[layer] for each in gradients])
        varies = g.std(0) > 0
        expected += math.log((np.abs(g).mean(0)[varies] / g.std(0)[varies]).sum())
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second)
    given = [(torch.tensor(x).float().reshape(5, 1, 2, 3), torch.tensor(labels)) for x, labels in batches]
    assert proxies.zico(model, given) == pytest.approx(expected, rel=1e-4)


# AZ-NAS


@dataclass(frozen=True)
class ProxyLinear(Block):
    """Tokens (N, T, C) -> tokens (N, T, cout)."""

    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return Linear(x.channels, self.cout).module()


@dataclass(frozen=True)
class ProxyConv(Block):
    """Map -> map."""

    cout: int = from_stage()
    stride: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return Conv(x.channels, self.cout, 3, self.stride).module()


def test_expressivity_is_the_entropy_of_principal_components():
    torch.manual_seed(0)
    model = nn.Sequential(ProxyLinear(4).module(Shape(1, 7, 3)), ProxyLinear(5).module(Shape(1, 7, 4)))
    tokens = randn(2, 7, 3)
    expected, features = 0.0, tokens
    for block in model:
        features = block(features)
        singular = np.linalg.svd(features.detach().numpy().reshape(14, -1) - features.detach().numpy().mean((0, 1)))[1]
        share = singular**2 / (singular**2).sum()
        expected -= (share[share > 1e-9] * np.log(share[share > 1e-9])).sum()
    assert proxies.expressivity(model, tokens) == pytest.approx(expected, rel=1e-4)


def test_trainability_is_best_where_the_jacobian_keeps_lengths():
    """With one channel going out, a sign times itself is 1, so the estimate is exact: the length of the weights."""
    first, second = ProxyLinear(1).module(Shape(1, 7, 2)), ProxyLinear(1).module(Shape(1, 7, 1))
    with torch.no_grad():
        first.body.body.weight.copy_(torch.tensor([[3.0, 4.0]]))
        second.body.body.weight.copy_(torch.tensor([[-0.5]]))
    expected = np.mean([2 - 5 - 1 / 5, 2 - 0.5 - 2])
    assert proxies.trainability(nn.Sequential(first, second), randn(2, 7, 2)) == pytest.approx(expected, rel=1e-5)


def test_trainability_leaves_out_blocks_that_change_the_positions():
    down, keep = ProxyConv(1, 2).module(Shape(1, 1, 6, 6)), ProxyConv(1, 1).module(Shape(1, 1, 3, 3))
    for block in (down, keep):
        with torch.no_grad():
            block.body.body[0].weight.zero_()[:, :, 1, 1] = 3.0 if block is keep else 100.0
    images = randn(2, 1, 6, 6)
    # a batch norm divides by the deviation, so the second block passes the same whatever its weight; its gradient is
    # the sent one without its mean and its part along what came out
    found = proxies.trainability(nn.Sequential(down, keep), images)
    with torch.no_grad():
        keep.body.body[0].weight.mul_(7.0)
    assert proxies.trainability(nn.Sequential(down, keep), images) == pytest.approx(found, rel=1e-4)
    assert -0.5 < found <= 0


@pytest.mark.parametrize("space", [name for name in search_spaces.spaces() if name.endswith("-32")])
def test_every_score_is_a_number_for_networks_of_a_space(space):
    rng, archs = random.Random(0), []
    while len(archs) < 2:
        archs.append(search_spaces.load(space).sample(rng))
    for arch in archs:
        images, labels = randn(8, *arch.input_shape), torch.arange(8) % arch.classes
        found = [
            proxies.naswot(build(arch), images),
            proxies.synflow(build(arch), arch.input_shape),
            proxies.zico(build(arch), [(images[:4], labels[:4]), (images[4:], labels[4:])]),
            proxies.expressivity(build(arch), images),
            proxies.trainability(build(arch), images),
        ]
        assert np.isfinite(found).all(), (arch, found)
