"""Probes of blocks with two tensors beside the map, made for these tests: a vector z, and its first part."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nas.core.ops import Add, Block, Conv, Linear, Mean, Op, Row, Shape
from nas.core.tracing import calls_of_unit, trace
from nas.networks.export import example_inputs, write_onnx
from nas.profiling.backends.fake import CALL_US, row_us
from nas.profiling.probes import Probe, chains, formulas, wire

WIDTH, PART = 6, 4


@dataclass(frozen=True)
class StreamsGate(Op):
    """A map times the sigmoid of a vector, one value per channel."""

    def body(self) -> nn.Module:
        return _Gate()


class _Gate(nn.Module):
    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        return x * first.sigmoid()[:, :, None, None]


class _Parts(nn.Module):
    def __init__(self, **ops: Op) -> None:
        super().__init__()
        for name, op in ops.items():
            self.add_module(name, op.module())


@dataclass(frozen=True)
class StreamsTable(Block):
    """A learned z: no op at all."""

    takes = ()
    gives = ("z",)

    def build(self) -> nn.Module:
        return _Learned()


class _Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.zeros(1, WIDTH))

    def forward(self) -> Tensor:
        return self.z


@dataclass(frozen=True)
class StreamsIn(Block):
    """The mean of a map into z."""

    takes = ("x", "z")
    gives = ("z",)

    def build(self, x: Shape, z: Shape) -> nn.Module:
        return _In(mean=Mean(), linear=Linear(x.channels, WIDTH), add=Add())


class _In(_Parts):
    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.add(z, self.linear(self.mean(x)))


@dataclass(frozen=True)
class StreamsFormer(Block):
    """z, and its first part."""

    takes = ("z",)
    gives = ("z", "first")

    def build(self, z: Shape) -> nn.Module:
        return _Former(linear=Linear(WIDTH, WIDTH, act="relu"))


class _Former(_Parts):
    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = self.linear(z)
        return z, z.narrow(1, 0, PART)


@dataclass(frozen=True)
class StreamsMobile(Block):
    """A convolution of a map whose channels are weighed by the first part of z; stride 2 halves its side."""

    stride: int = 1
    takes = ("x", "first")

    def build(self, x: Shape, first: Shape) -> nn.Module:
        return _Mobile(conv=Conv(PART, PART, 3, self.stride, act="relu"), gate=StreamsGate())


class _Mobile(_Parts):
    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        return self.gate(self.conv(x), first)


@dataclass(frozen=True)
class StreamsStem(Block):
    """Image to map."""

    def build(self, x: Shape) -> nn.Module:
        return Conv(3, PART, 3).module()


IMAGE, BIG, SMALL = Shape(1, 3, 8, 8), Shape(1, PART, 8, 8), Shape(1, PART, 4, 4)
Z, FIRST = Shape(1, WIDTH), Shape(1, PART)
STEM, FORMER = Row(StreamsStem(), (IMAGE,)), Row(StreamsFormer(), (Z,))
INTO, MOBILE = Row(StreamsIn(), (BIG, Z)), Row(StreamsMobile(), (BIG, FIRST))
DOWN, MOBILE_LATER = Row(StreamsMobile(2), (BIG, FIRST)), Row(StreamsMobile(), (SMALL, FIRST))
INTO_LATER = Row(StreamsIn(), (SMALL, Z))
ROWS = (STEM, INTO, FORMER, MOBILE, DOWN, INTO_LATER, MOBILE_LATER)


def output_shapes(*rows: Row) -> list[Shape]:
    """Of the graph of these rows."""
    probe = Probe(rows)
    with torch.no_grad():
        outputs = probe.module(0)(*map(torch.ones, probe.shapes()))
    return [Shape(*y.shape) for y in (outputs if isinstance(outputs, tuple) else (outputs,))]


def test_a_row_is_chained_on_what_it_takes_and_gives():
    assert {row for row in ROWS if chains(row)} == {INTO, FORMER, MOBILE, INTO_LATER, MOBILE_LATER}
    assert wire([INTO] * 3).reads == ((0, 1), (0, 2), (0, 3))  # the same map, and the z of the row before
    assert wire([INTO] * 3).input_shapes == (BIG, Z)
    assert wire([MOBILE] * 3).input_shapes == (BIG, FIRST)
    assert output_shapes(*[MOBILE] * 3) == [BIG]


def test_what_no_row_reads_is_an_output_so_that_nothing_is_left_out():
    assert wire([FORMER] * 3).input_shapes == (Z,)
    assert output_shapes(*[FORMER] * 3) == [FIRST, FIRST, Z, FIRST]
    assert output_shapes(FORMER, MOBILE) == [Z, BIG]
    assert output_shapes(INTO, MOBILE) == [Z, BIG]


def test_rows_of_a_sequence_share_streams_by_name_as_in_a_network():
    wiring = wire([STEM, INTO, FORMER, MOBILE])
    image, big, z = 0, 1, 2  # the stem makes the first map; z comes from nowhere
    into, former, first = 3, 4, 5
    assert wiring.input_shapes == (IMAGE, Z)
    assert wiring.reads == ((image,), (big, z), (into,), (big, first))
    assert wiring.outputs == (former, 6)
    assert wire([INTO, MOBILE]).input_shapes == (BIG, Z, FIRST)  # both read one map


def test_a_stream_of_another_shape_is_an_input_of_its_own():
    assert wire([DOWN, INTO_LATER]).input_shapes == (BIG, FIRST, Z)
    assert wire([DOWN, INTO]).input_shapes == (BIG, FIRST, BIG, Z)
    assert output_shapes(DOWN, INTO) == [SMALL, Z]


def test_an_op_reads_one_tensor_of_the_op_before_and_others_from_nowhere():
    add = Row(Add(), (BIG, BIG))
    assert wire([add] * 3).input_shapes == (BIG,) * 4
    assert output_shapes(add, add, add) == [BIG]


def test_formulas_give_back_the_rows_of_graphs_whose_times_add_up():
    for formula in formulas(ROWS, ROWS, (3, 8, 8)):
        times = {probe.key: CALL_US + sum(map(row_us, probe.rows)) for probe in formula.probes}
        call = CALL_US if formula.row == STEM else 0.0
        assert formula.value(times) == pytest.approx(row_us(formula.row) + call), formula.row


def test_a_row_stands_behind_one_that_shares_its_largest_tensor():
    (formula,) = formulas([DOWN], ROWS, (3, 8, 8))
    (graph, weight), *_ = formula.terms
    assert weight == 1
    assert graph.rows == (MOBILE, DOWN, MOBILE_LATER)  # not behind the former, which only shares a vector


def test_every_probe_runs_whole_has_a_key_of_its_own_and_survives_json():
    probes = {probe for formula in formulas(ROWS, ROWS, (3, 8, 8)) for probe in formula.probes}
    assert len({probe.key for probe in probes}) == len(probes)
    for probe in probes:
        assert Probe.from_data(json.loads(json.dumps(probe.to_data()))) == probe
        calls = trace(probe.module(0).to("meta"), *probe.shapes())
        assert tuple(call.row for call in calls) == probe.rows


def test_a_runtime_computes_every_row_of_a_chain(tmp_path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    probe, path = Probe((INTO, FORMER, FORMER, MOBILE)), tmp_path / "chain.onnx"
    module, inputs = probe.module(0), example_inputs(probe.shapes())
    write_onnx(module, probe.shapes(), path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {f"input{number}": x.numpy() for number, x in enumerate(inputs)}
    with torch.no_grad():
        expected = module(*inputs)
    assert len(expected) == len(session.get_outputs()) == 3
    for found, y in zip(session.run(None, feeds), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(found), y)


def test_a_block_without_ops_has_no_row():
    assert calls_of_unit(Row(StreamsTable(), ())).ops == ()
