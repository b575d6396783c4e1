from __future__ import annotations

import subprocess
import sys

import pytest

from nas.core.errors import MeasureError
from nas.networks.building import cost_of, load_arch
from nas.profiling import memory
from nas.profiling.backends import load_backend
from nas.profiling.memory import peak_bytes
from nas.profiling.process import Engine
from tests.profiling import LocalConverter
from tests.small import TINY


@pytest.mark.parametrize(("runtime", "preset"), [("onnxruntime", "efficientformer-l1"), ("torch", "mobilevit-s")])
def test_a_network_takes_at_least_its_weights_and_not_many_times_as_much(runtime, preset):
    pytest.importorskip(runtime)
    arch = load_arch(preset)
    weights = {"efficientformer-l1": 12.2e6, "mobilevit-s": 5.55e6}[preset]  # published, with the norms folded
    assert 4 * weights <= peak_bytes(Engine(runtime), arch) <= 4 * (4 * cost_of(arch).params + cost_of(arch).peak_bytes)


def test_the_process_that_measures_files_does_without_pytorch():
    names = ("memory", "backends.onnxruntime", "backends.openvino")
    text = f"import sys, {', '.join(f'nas.profiling.{name}' for name in names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0


def test_a_network_that_cannot_be_loaded_gives_the_reason(monkeypatch, rng):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("nas.profiling.bench.Converter", LocalConverter)
    monkeypatch.setattr(load_backend("onnxruntime"), "convert", lambda self, module, shapes, path: path.write_text("x"))
    with pytest.raises(MeasureError, match=r"'onnxruntime': the process .* ended with 1: .*(Protobuf|protobuf|Load)"):
        peak_bytes(Engine("onnxruntime"), TINY.sample(rng))


def test_memory_that_nothing_counts_is_an_error(monkeypatch, rng, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "clear_refs")
    with pytest.raises(MeasureError, match="clear_refs, which is not here"):
        peak_bytes(Engine("torch"), TINY.sample(rng))
    monkeypatch.setattr(load_backend("torch"), "memory", None)
    with pytest.raises(MeasureError, match="'torch': nothing counts the memory"):
        peak_bytes(Engine("torch"), TINY.sample(rng))
