from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nas.core.errors import InputError
from nas.core.ops import Op
from nas.networks.building import build
from nas.networks.weights import cut, pieces, slices
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
