"""One network at several resolutions, and dropout that a recipe adds."""

import contextlib
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

import search_spaces
from nas.core.errors import InputError
from nas.evaluation.data import load_data
from nas.evaluation.network import TrainedNetwork, add_dropout, at_side
from nas.evaluation.recipe import Recipe
from nas.evaluation.training import train
from nas.networks.building import build, load_weights
from search_spaces.dynamicvit import SMALL_DEIT, make
from tests.small import lively

MANY_SIDES = "mobilevit-32", "nextvit-32", "mobileformer-32", "swin-32", "shuffle-swin-32", "t2t-32"
ONE_SIDE = "deit-32", "dynamicvit-32", "shuffle-32"  # a position for every token


@pytest.mark.parametrize("name", ONE_SIDE)
def test_a_family_whose_weights_depend_on_the_resolution_is_refused_with_the_reason(name):
    network = build(search_spaces.load(name).sample(random.Random(1)))
    with pytest.raises(InputError, match=r"positions of .* is another at 64 pixels than at 32"):
        at_side(network, 64)


@pytest.mark.parametrize("name", MANY_SIDES)
def test_a_family_is_at_another_resolution_what_it_would_be_if_built_for_it(name):
    network = build(search_spaces.load(name).sample(random.Random(1)))
    twin = at_side(network, 64)
    mine, theirs = (dict(each.named_parameters()) for each in (network, twin))
    own = {key for key in mine if mine[key] is not theirs[key]}
    assert mine.keys() == theirs.keys()
    assert own == ({"stages.1.0.body.2.body.positions"} if name == "t2t-32" else set())
    lively(network)
    other = build(replace(network.arch, input_shape=(3, 64, 64)))
    load_weights(other, network.state_dict() | {key: other.state_dict()[key] for key in own}, "twin")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(twin.eval()(images), other.eval()(images))


def test_a_fixed_sinusoid_of_another_side_goes_on_where_that_of_the_first_ends():
    network = build(search_spaces.load("t2t-32").sample(random.Random(1)))
    small, large = (
        each.get_parameter("stages.1.0.body.2.body.positions")[0] for each in (network, at_side(network, 64))
    )
    assert (len(small), len(large)) == (1 + 8**2, 1 + 16**2)
    assert torch.equal(large[: len(small)], small)
    assert large[200, 0].item() == pytest.approx(math.sin(200), abs=1e-6)
    assert not large.requires_grad


def test_learned_positions_that_a_recipe_freezes_are_no_fixed_ones():
    network = build(search_spaces.load("deit-32").sample(random.Random(1)))
    with pytest.raises(InputError, match="positions"):
        at_side(network.requires_grad_(False), 64)


def test_statistics_of_norms_are_shared_and_drop_path_and_mode_follow():
    network = build(search_spaces.load("mobileformer-32").sample(random.Random(0)), drop_path=0.3)
    trained = TrainedNetwork(network, [64])
    before = {key: value.clone() for key, value in network.named_buffers() if key.endswith("running_mean")}
    trained.train()(torch.randn(4, 3, 64, 64))
    assert any(not torch.equal(value, network.get_buffer(key)) for key, value in before.items())
    twin = trained.twins[0][64]
    rates = [[part.drop_path for part in each.modules() if hasattr(part, "drop_path")] for each in (network, twin)]
    assert rates[0] == rates[1]
    assert max(rates[0]) == pytest.approx(0.3)
    trained.eval()
    assert not any(part.training for part in twin.modules())
    assert len(list(trained.parameters())) == len(list(network.parameters()))


def test_dropout_reaches_the_classifier_in_training_only_and_can_be_taken_away():
    network = build(search_spaces.load("nextvit-32").sample(random.Random(0)))
    seen = []
    network.stages[-1][-1].body.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(8, 3, 32, 32)
    handles = add_dropout(network, classifier=0.5, branches=0.0)
    network.train()(images)
    network.eval()(images)
    for handle in handles:
        handle.remove()
    network.train()(images)
    shares = [float((x == 0).float().mean()) for x in seen]
    assert shares[0] == pytest.approx(0.5, abs=0.1)
    assert shares[1] < 0.1
    assert shares[2] < 0.1


def test_dropout_of_a_training_reaches_every_resolution(monkeypatch):
    network = build(replace(search_spaces.load("nextvit-32").sample(random.Random(0)), input_shape=(1, 32, 32)))
    seen = {}

    def forward(self, x):
        model = self.twins[0].get(x.shape[-1], self.model)
        watch = model.stages[-1][-1].body.register_forward_pre_hook(
            lambda module, inputs: seen.setdefault(x.shape[-1], []).append(float((inputs[0] == 0).float().mean()))
        )
        streams = original(self, x)
        watch.remove()
        return streams

    original = TrainedNetwork.forward
    monkeypatch.setattr(TrainedNetwork, "forward", forward)
    recipe = Recipe(epochs=1, batch_size=8, multi_scale=(32, 64), dropout=0.5, amp="none")
    train(network, load_data("digits", (1, 32, 32), limit=80), recipe)
    assert seen.keys() == {32, 64}
    for shares in seen.values():
        assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("stops", [True, False])
def test_a_training_leaves_neither_dropout_nor_frozen_weights_behind(stops):
    network = build(replace(make(SMALL_DEIT, 32, 2, (1,), (50,), side=32, classes=10), input_shape=(1, 32, 32)))
    recipe = Recipe(epochs=1, batch_size=8, dropout=0.1, branch_dropout=0.1, host_lr=0.1, amp="none")
    frozen = []

    def look(entry):
        frozen.extend(name for name, weight in network.named_parameters() if not weight.requires_grad)
        assert hooks(network) == 1 + 2 * 2
        if stops:
            raise KeyError

    data = load_data("digits", (1, 32, 32), limit=20)
    with pytest.raises(KeyError) if stops else contextlib.nullcontext():
        train(network, data, recipe, on_epoch=look)
    assert len(frozen) == 2  # class token and positions
    assert all(weight.requires_grad for weight in network.parameters())
    assert hooks(network) == 0


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def test_branch_dropout_is_that_of_both_branches_of_every_transformer_layer():
    arch = search_spaces.presets()["mobilevit-xxs"]
    with torch.device("meta"):
        network = build(arch)
    assert len(add_dropout(network, classifier=0.1, branches=0.1)) == 1 + 2 * (2 + 4 + 3)  # layers of the sheet


@pytest.mark.parametrize("name", ["nextvit-32", "mobilevitv2-0.5"])
def test_branch_dropout_that_would_drop_nothing_is_refused(name):
    """The sheet of MobileViT has dropout behind the branches of v1 only; v2's begin with a norm of whole images."""
    presets = search_spaces.presets()
    with torch.device("meta"):
        network = build(presets[name] if name in presets else search_spaces.load(name).sample(random.Random(0)))
    with pytest.raises(InputError, match=f"no residual of {network.arch.family} begins with a layer norm"):
        add_dropout(network, classifier=0.1, branches=0.1)
    assert hooks(network) == 0


def test_dropout_of_a_model_that_is_none_of_ours_is_refused():
    with pytest.raises(InputError, match="Linear does not end in Logits"):
        add_dropout(nn.Linear(1, 1), classifier=0.5, branches=0.0)
