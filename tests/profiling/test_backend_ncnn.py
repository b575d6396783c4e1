from __future__ import annotations

import pytest

from nas.core.errors import MeasureError
from nas.core.ops import Row, Shape
from nas.profiling.backends import load_backend
from nas.profiling.probes import Probe
from search_spaces.mobileformer import BridgeOut, Mobile
from tests.profiling.graphs import CONVOLUTIONS, GRAPHS, Fourier, worst_difference

ncnn = pytest.importorskip("ncnn")
pnnx = pytest.importorskip("pnnx")


#: ncnn keeps the batch axis in the first, and pnnx does not know the second's addcmul
ODD = {
    "a map that reads tokens": Probe((Row(BridgeOut(), (Shape(1, 12, 7, 7), Shape(1, 2, 16))),)),
    "dynamic ReLU": Probe((Row(Mobile(3, 3, cout=12, groups=1), (Shape(1, 12, 7, 7), Shape(1, 16))),)),
}


@pytest.mark.parametrize("name", [*GRAPHS, *ODD])
def test_outputs_are_pytorchs(name):
    assert worst_difference("ncnn", (GRAPHS | ODD)[name]) < 1e-5


def test_fp16_keeps_three_digits():
    assert 1e-5 < worst_difference("ncnn", CONVOLUTIONS, "fp16") < 1e-2


@pytest.mark.parametrize("threads", [1, 3])
def test_ncnn_uses_the_threads_it_is_told(threads):
    session = load_backend("ncnn")(threads).prepare(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes())
    assert session.net.opt.num_threads == threads


def test_an_op_that_ncnn_lacks_is_named():
    with pytest.raises(MeasureError, match=r"ncnn has no layer for torch\.fft\.fft"):
        load_backend("ncnn")().prepare(Fourier(), (Shape(1, 8, 8),))


def test_a_converter_that_fails_is_quoted(tmp_path, monkeypatch):
    script = tmp_path / "pnnx"
    script.write_text("#!/bin/sh\necho begun >&2\necho no such thing >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(pnnx, "EXEC_PATH", str(script))
    with pytest.raises(MeasureError, match="pnnx cannot convert it: ended with 3, saying 'no such thing' last"):
        load_backend("ncnn")().prepare(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes())


def test_a_conversion_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr("nas.profiling.backends.ncnn.TOLERANCES", {"fp32": 1e-12})
    with pytest.raises(MeasureError, match=r"ncnn's outputs differ from PyTorch's by \d"):
        load_backend("ncnn")().prepare(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes())
