"""What is seen inside networks is what they compute."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import nas
from nas.core.errors import InputError
from nas.networks.building import build
from nas.networks.inside import channel_shares, evenness, inputs_of
from search_spaces import dynamicvit, efficientformer, mobileformer, shuffle


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mixed(arch, seed=1):
    """A network whose weights are far from where training begins, so that attention and scores differ."""
    network = build(arch, seed=seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return network


def test_what_the_tokens_read_gives_what_the_op_gives():
    network = mixed(
        mobileformer.make((16, 24), (1, 1), (3, 3), 12, 4, 32, 64, strides=(2, 2), side=32, classes=10)
    ).eval()
    given = inputs_of(network, images(), mobileformer.MapAttention)
    maps = mobileformer.token_attention(given)
    assert len(maps) == len(given) > 1
    for weights, (leaf, (z, x)) in zip(maps, given, strict=True):
        assert weights.shape == (3, 4, *x.shape[2:])
        assert torch.allclose(weights.sum((2, 3)), torch.ones(3, 4), atol=1e-5)
        body, heads = leaf.body, leaf.op.heads
        query, _ = body.query_gate(z).chunk(2, 2)
        size = x.shape[1] // heads
        keys, identity = x.flatten(2).mT, torch.eye(x[0, 0].numel()).expand(3, -1, -1)
        parts = [slice(head * size, (head + 1) * size) for head in range(heads)]
        read = [  # head by head, by torch's own attention, of an identity
            functional.scaled_dot_product_attention(query[..., part].expand(3, -1, -1), keys[..., part], identity)
            for part in parts
        ]
        by_hand = torch.stack(read).mean(0)
        assert torch.allclose(weights.flatten(2), by_hand, atol=1e-5)


def test_dropping_the_tokens_that_are_not_kept_changes_no_logit():
    """What the masks leave out, overwritten behind the selection's scores, is not read."""
    host = (dynamicvit.SMALL_DEIT[0], dynamicvit.SMALL_DEIT[1])
    network = mixed(dynamicvit.make(host, 32, 4, (1, 3), (70, 50), side=32, classes=10)).eval()
    given = inputs_of(network, images(), dynamicvit.TokenSelect)
    masks = dynamicvit.kept_tokens(given)
    assert [mask.sum(1).tolist() for mask in masks] == [[44] * 3, [22] * 3]  # 70 % of 64, then 35 %, rounded down
    assert bool((masks[0] | ~masks[1]).all())  # what is dropped stays dropped
    (leaf, (x, _)), *_ = given
    expected = network(images())

    def spoil(module, given):
        tokens, scores = given
        dropped = functional.pad(~masks[0], (1, 0))
        return tokens.masked_fill(dropped[..., None], 1e6), scores

    hook = leaf.register_forward_pre_hook(spoil)
    assert torch.equal(network(images()), expected)
    hook.remove()
    assert x.shape[1] == 65


def test_shares_of_channels_are_what_scaling_a_channel_changes_of_the_logit():
    network = mixed(shuffle.make("deit", 32, 2, head_dim=16, side=32, classes=10)).double()
    image, label = images(1).double(), torch.tensor([1])
    shares = channel_shares(network, image, label)
    assert len(shares) == 3  # behind the embedding and two blocks
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    network.eval()
    block, step = network.stages[0][1], 1e-5

    def logit(channel, factor):
        def scale(module, given, out):
            factors = torch.ones(out.shape[2], dtype=out.dtype)
            factors[channel] = factor
            return out * factors

        hook = block.register_forward_hook(scale)
        with torch.no_grad():
            found = float(network(image)[0, label])
        hook.remove()
        return found

    changes = [abs(logit(channel, 1 + step) - logit(channel, 1 - step)) for channel in range(64)]
    assert shares[1].tolist() == pytest.approx([change / sum(changes) for change in changes], rel=1e-3, abs=1e-7)


def test_evenness_counts_channels():
    assert evenness(torch.full((8,), 1 / 8)) == pytest.approx(1)
    assert evenness(torch.tensor([1.0, 0, 0, 0])) == pytest.approx(0.25)
    assert evenness(torch.tensor([0.5, 0.5, 0, 0])) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", [mobileformer.MapAttention, dynamicvit.TokenSelect])
def test_a_network_without_such_ops_is_refused(kind):
    network = build(efficientformer.make((16, 16, 16, 16), (1, 1, 1, 1), 0, side=32, classes=10, stem_convs=1))
    with pytest.raises(InputError, match="has no"):
        inputs_of(network, images(), kind)
    assert issubclass(InputError, nas.NasError)
