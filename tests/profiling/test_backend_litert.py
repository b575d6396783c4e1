from __future__ import annotations

import os

import pytest

from nas.core.errors import MeasureError
from nas.core.ops import Shape
from nas.profiling.backends import load_backend
from tests.profiling.graphs import CONVOLUTIONS, GRAPHS, Fourier, worst_difference

pytest.importorskip("ai_edge_litert")
pytest.importorskip("litert_torch")


@pytest.mark.parametrize("name", GRAPHS)
def test_outputs_are_pytorchs(name):
    assert worst_difference("litert", GRAPHS[name]) < 1e-5


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="counts the threads of this process, as Linux lists them"
)
def test_litert_uses_the_threads_it_is_told(tmp_path):
    path, kind, counts, sessions = tmp_path / "model", load_backend("litert"), [], []
    kind().convert(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes(), path)
    for threads in (1, 3):
        before = len(os.listdir("/proc/self/task"))
        sessions.append(kind(threads).load(path, CONVOLUTIONS.shapes()))
        sessions[-1].run()
        counts.append(1 + len(os.listdir("/proc/self/task")) - before)
    assert counts == [1, 3]


def test_an_op_that_litert_lacks_is_named():
    with pytest.raises(MeasureError, match=r"litert-torch cannot convert it: (.|\n)*fft"):
        load_backend("litert")().prepare(Fourier(), (Shape(1, 8, 8),))
