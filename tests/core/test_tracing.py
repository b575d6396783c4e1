from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nas.core import ops
from nas.core.errors import TraceError
from nas.core.ops import Block, Conv, Linear, Residual, Row, Shape
from nas.core.tracing import calls_of_unit, macs_of_op, macs_of_unit, params_of_unit, trace
from search_spaces.efficientformer import MB3D, MB4D, Embedding, Stem

MAP, TOKENS = Shape(1, 16, 8, 8), Shape(1, 4, 32)


@dataclass(frozen=True)
class SplitAndJoin(Block):
    """A map and tokens in, a map and tokens out, as in Mobile-Former (arXiv:2108.05895): tokens read the map."""

    def build(self, x: Shape, z: Shape) -> nn.Module:
        return _TwoStream(x.channels, z.channels)


class _TwoStream(nn.Module):
    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.mobile = Residual(Conv(channels, channels, 3, groups=channels, act="relu").module())
        self.flatten = ops.ToTokens().module()
        self.pool = ops.Mean().module()
        self.bridge = Linear(channels, dim).module()
        self.join = ops.Add().module()

    def forward(self, x, z):
        x = self.mobile(x)
        read = self.bridge(self.pool(self.flatten(x)))
        return x, self.join(z, read[:, None, :].expand_as(z))


def test_a_block_of_two_streams_is_traced_with_both_shapes():
    call = calls_of_unit(Row(SplitAndJoin(), (MAP, TOKENS)))
    assert call.row.inputs == (MAP, TOKENS)
    assert call.outputs == (MAP, TOKENS)
    assert [type(inner.row.unit).__name__ for inner in call.ops] == ["Conv", "Add", "ToTokens", "Mean", "Linear", "Add"]
    assert call.ops[-1].row.inputs == (TOKENS, TOKENS)


def test_two_streams_of_other_shapes_are_other_rows():
    rows = {
        Row(SplitAndJoin(), (MAP, TOKENS)),
        Row(SplitAndJoin(), (MAP, Shape(1, 6, 32))),
        Row(SplitAndJoin(), (MAP, TOKENS)),
    }
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("compute", "named"),
    [
        (lambda x: x + 1, "add"),
        (lambda x: x.relu(), "relu"),
        (lambda x: x.transpose(1, 2).contiguous(), "clone"),
        (lambda x: torch.cat([x, x], 1), "cat"),
    ],
)
def test_compute_outside_an_op_is_an_error_that_names_it(compute, named):
    class Sly(nn.Module):
        def forward(self, x):
            return compute(x)

    @dataclass(frozen=True)
    class SlyBlock(Block):
        def build(self, x: Shape) -> nn.Module:
            return Sly()

    with pytest.raises(TraceError, match=rf"{named}.*in block SlyBlock"):
        calls_of_unit(Row(SlyBlock(), (MAP,)))


def test_views_are_free():
    class Views(nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2)[:, :3].unsqueeze(0).squeeze(0)

    assert trace(Views(), MAP) == ()


def test_macs_of_blocks_equal_the_sheet():
    side, c = 14, 224  # MB4D: 8 C^2 HW; MB3D: N (8 C^2 + 2560 C) + N^2 * 8 * 160
    assert macs_of_unit(Row(MB4D(4), (Shape(1, c, side, side),))) == 8 * c * c * side * side
    n, c = 49, 448
    expected = n * (8 * c * c + 2560 * c) + n * n * 8 * (32 + 128)
    assert macs_of_unit(Row(MB3D(4), (Shape(1, n, c),))) == expected
    assert macs_of_unit(Row(MB3D(4), (Shape(1, c, 7, 7),))) == expected


def test_parameters_of_blocks_equal_the_sheet():
    c = 224
    assert params_of_unit(Row(MB4D(4), (Shape(1, c, 14, 14),))) == 8 * c * c + 17 * c
    c = 448
    assert params_of_unit(Row(MB3D(4), (Shape(1, 49, c),))) == 8 * c * c + 2572 * c + 1928
    assert params_of_unit(Row(Stem(48), (Shape(1, 3, 224, 224),))) == 11_232


@pytest.mark.parametrize(
    ("unit", "shape"),
    [
        (Conv(6, 12, 3, 2, groups=3, bias=True), Shape(1, 6, 9, 9)),
        (Linear(6, 12), Shape(1, 5, 6)),
        (ops.BiasAttention(12, 3, heads=2, key_dim=4, value_dim=8), Shape(1, 9, 12)),
        (Embedding(32), Shape(1, 16, 8, 8)),
    ],
    ids=str,
)
def test_macs_agree_with_torchs_own_counter(unit, shape):
    module = unit.build(shape).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.randn(shape))
    assert 2 * macs_of_unit(Row(unit, (shape,))) == counter.get_total_flops()


def test_scaled_dot_product_attention_is_counted():
    class Attend(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    @dataclass(frozen=True)
    class SdpaOp(ops.Op):
        def body(self) -> nn.Module:
            return Attend()

    shapes = (Shape(1, 2, 5, 4), Shape(1, 2, 7, 4), Shape(1, 2, 7, 6))
    assert macs_of_op(Row(SdpaOp(), shapes)) == 2 * (5 * 4 * 7 + 5 * 7 * 6)


def test_peak_activation_bytes_by_hand():
    # input 16x8x8 stays for the sum; 64 channels inside: the GELU convolution's output and the input live together
    call = calls_of_unit(Row(MB4D(4), (MAP,)))
    values = 16 * 64
    assert call.peak_bytes == 4 * (values + 4 * values + values)
    assert calls_of_unit(Row(ops.Add(), (MAP, MAP))).peak_bytes == 4 * 3 * values


def test_norms_and_foldable_scales_are_gone_from_the_deployed_form():
    names = [type(call.row.unit).__name__ for call in calls_of_unit(Row(MB4D(4), (MAP,))).ops]
    assert names == ["PoolMixer", "Scale", "Add", "Conv", "Conv", "Add"]
    names = [type(call.row.unit).__name__ for call in calls_of_unit(Row(MB3D(4), (MAP,))).ops]
    assert names == ["ToTokens", "LayerNorm", "BiasAttention", "Add", "LayerNorm", "Linear", "Linear", "Add"]
