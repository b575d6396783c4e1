from __future__ import annotations

import pytest

from nas.core.errors import MeasureError
from nas.core.ops import Shape
from nas.profiling.backends import load_backend
from tests.profiling.graphs import CONVOLUTIONS, GRAPHS, Fourier, worst_difference

pytest.importorskip("executorch")


@pytest.mark.parametrize("name", GRAPHS)
def test_outputs_are_pytorchs(name):
    assert worst_difference("executorch", GRAPHS[name]) < 1e-5


def test_executorch_uses_the_threads_it_is_told(tmp_path):
    path, kind = tmp_path / "model", load_backend("executorch")
    kind().convert(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes(), path)
    for threads in (3, 1):
        kind(threads).load(path, CONVOLUTIONS.shapes()).run()
        from executorch.extension.pybindings import portable_lib

        assert portable_lib._threadpool_get_thread_count() == threads


def test_an_op_that_executorch_lacks_is_named():
    with pytest.raises(MeasureError, match=r"ExecuTorch cannot convert it: (.|\n)*fft"):
        load_backend("executorch")().prepare(Fourier(), (Shape(1, 8, 8),))
