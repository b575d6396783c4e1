from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nas.core.errors import InputError
from nas.core.ops import Op
from nas.networks.building import build
from nas.networks.weights import cut, inherit, slices
from search_spaces import efficientformer as ef
from tests.small import randomize

LARGE = ef.make((32, 48, 64, 96), (2, 2, 2, 3), 2, side=32, classes=10, stem_convs=1)


def test_the_whole_network_is_a_slice_of_itself():
    network = randomize(build(LARGE)).eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(functional_call(network, slices(network, LARGE), (x,)), network(x))


def test_a_child_runs_on_slices_and_trains_the_large_weights():
    network = randomize(build(LARGE))
    child = ef.make((16, 32, 48, 64), (1, 2, 1, 2), 1, ratios=(2, 4, 3, 4), side=32, classes=10, stem_convs=1)
    cut = slices(network, child)
    with torch.device("meta"):
        model = build(child)
    assert {key: value.shape for key, value in cut.items()} == {k: v.shape for k, v in model.state_dict().items()}
    outputs = functional_call(model.train(), cut, (torch.randn(4, 3, 32, 32),))
    sum(part.sum() for part in outputs).backward()
    weight = network.stages[1][1].body[1].body[0].body[0].weight  # MB4D of stage 2: 48 -> 192, the child has 32 -> 128
    assert weight.grad[:128, :32].abs().sum() > 0
    assert weight.grad[128:].abs().sum() == weight.grad[:, 32:].abs().sum() == 0


@dataclass(frozen=True)
class FusedQkv(Op):
    """q, k and v of `dim` channels each in one matrix."""

    dim: int

    def body(self) -> nn.Module:
        return nn.Linear(self.dim, 3 * self.dim, bias=False)

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return {"weight": {0: (self.dim,) * 3}}


def test_a_slice_of_a_fused_matrix_keeps_its_parts():
    sizes = [((dim,) * 3, (dim,)) for dim in (4, 2)]
    weight = FusedQkv(4).module().body.weight
    rows = [0, 1, 4, 5, 8, 9]  # the first two of q, of k and of v
    assert torch.equal(cut(weight, *sizes, "weight"), weight[rows][:, :2])


def test_a_larger_child_is_refused():
    network = build(LARGE)
    with pytest.raises(InputError, match=r"stage 1: the larger network has 2 MB4D, one too few"):
        slices(network, ef.make((32, 48, 64, 96), (3, 2, 2, 3), 2, side=32, classes=10, stem_convs=1))
    with pytest.raises(InputError, match=r"do not fit into"):
        slices(network, ef.make((32, 64, 64, 96), (2, 2, 2, 3), 2, side=32, classes=10, stem_convs=1))


def test_a_slice_of_a_kernel_is_its_middle():
    weight = torch.randn(8, 4, 5, 5)
    sizes = [tuple((size,) for size in shape) for shape in (weight.shape, (6, 2, 3, 3))]
    assert torch.equal(cut(weight, *sizes, "weight"), weight[:6, :2, 1:4, 1:4])


def test_a_child_does_not_write_into_the_statistics_of_the_larger_network():
    network = randomize(build(LARGE))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    child = ef.make((16, 32, 48, 64), (1, 2, 1, 2), 1, ratios=(2, 4, 3, 4), side=32, classes=10, stem_convs=1)
    with torch.no_grad():
        functional_call(build(child).train(), slices(network, child), (torch.randn(4, 3, 32, 32),))
    assert [key for key, value in network.state_dict().items() if not torch.equal(value, before[key])] == []


def test_blocks_that_a_larger_network_lacks_stay_as_they_are():
    large = randomize(build(LARGE))
    child = ef.make((32, 64, 64, 64), (3, 2, 2, 2), 1, side=32, classes=5, stem_convs=1)
    network, fresh = build(child), build(child).state_dict()
    kept = inherit(network, large)
    # the third MB4D of stage 1, what is wider than in the larger network or behind that, a classifier of other classes
    wide = ["Embedding of stage 2", "MB4D of stage 2", "MB4D of stage 2", "Embedding of stage 3"]
    assert kept == ("MB4D of stage 1", *wide, "Logits of stage 5")
    changed = {key[:10] for key, value in network.state_dict().items() if not torch.equal(value, fresh[key])}
    inherited = {"stages.0.0", "stages.0.1", "stages.0.2", "stages.2.1", "stages.2.2", "stages.3.0"}
    assert changed == inherited | {"stages.3.1", "stages.3.2", "stages.4.0"}
    assert torch.equal(
        network.stages[0][1].state_dict()["body.0.scale.body.gamma"],
        large.stages[0][1].state_dict()["body.0.scale.body.gamma"],
    )
