from __future__ import annotations

import json
import subprocess
import sys

import pytest

from nas.core.arch import calls_of
from nas.core.errors import MeasureError
from nas.networks.building import cost_of, load_arch
from nas.profiling import memory
from nas.profiling.backends import load_backend
from nas.profiling.bench import Bench
from nas.profiling.device.journal import Log
from nas.profiling.device.timing import Settings
from nas.profiling.memory import peak_bytes
from nas.profiling.probes import Probe
from nas.profiling.process import RuntimeConfig
from nas.profiling.profiler import measure_memory
from tests.profiling import LocalConverter
from tests.small import TINY


@pytest.mark.parametrize(("runtime", "preset"), [("onnxruntime", "efficientformer-l1"), ("torch", "mobilevit-s")])
def test_a_network_takes_at_least_its_weights_and_not_many_times_as_much(runtime, preset):
    pytest.importorskip(runtime)
    arch = load_arch(preset)
    weights = {"efficientformer-l1": 12.2e6, "mobilevit-s": 5.55e6}[preset]  # published, with the norms folded
    predicted = 4 * cost_of(arch).params + cost_of(arch).peak_bytes
    assert 4 * weights <= measure_memory(arch, runtime=runtime) <= 4 * predicted


def test_the_process_that_measures_files_does_without_pytorch():
    names = ("memory", "backends.onnxruntime", "backends.openvino")
    text = f"import sys, {', '.join(f'nas.profiling.{name}' for name in names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0


def test_a_network_that_cannot_be_loaded_gives_the_reason(monkeypatch, rng):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("nas.profiling.bench.Converter", LocalConverter)
    monkeypatch.setattr(load_backend("onnxruntime"), "convert", lambda self, module, shapes, path: path.write_text("x"))
    with pytest.raises(
        MeasureError, match=r"'onnxruntime': memory of network .* not measured: .*(Protobuf|protobuf|Load)"
    ):
        peak_bytes(RuntimeConfig("onnxruntime"), TINY.sample(rng))


def test_a_network_counts_alone_whatever_was_weighed_before_it(rng):
    arch = load_arch("efficientformer-l1")
    with Bench(RuntimeConfig("torch"), Settings(), Log(), spaces=("efficientformer",)) as bench:
        weigher = bench.weigher({})
        try:
            first, large, again = (
                weigher.weigh(Probe(arch=a), {}) for a in (arch, load_arch("efficientformer-l3"), arch)
            )
        finally:
            weigher.stop()
    assert large > 1.5 * first
    assert again == pytest.approx(first, rel=0.2)  # where threads allocate what varies by some MB


def test_a_process_that_dies_over_a_network_costs_that_one_alone(monkeypatch):
    one, *others = TINY.archs()
    known = {call.row for call in calls_of(one)}
    other, only = next((arch, call.row) for arch in others for call in calls_of(arch) if call.row not in known)
    monkeypatch.setenv("NAS_FAKE", json.dumps({"crash": str(only)}))
    log = Log()
    with Bench(RuntimeConfig("fake"), Settings(), log, spaces=("efficientformer",)) as bench:
        problems = memory.weigh(bench, [other, one])
    assert problems == (f"memory of network {other.id} not measured: the process ended with exit code 77",)
    assert len(bench.deaths) == 1  # it was tried once more
    assert list(log.peaks) == [f"network {one.id}"]


def test_memory_that_nothing_counts_is_an_error(monkeypatch, rng, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "clear_refs")
    with pytest.raises(MeasureError, match="clear_refs, which is not here"):
        peak_bytes(RuntimeConfig("torch"), TINY.sample(rng))
    monkeypatch.setattr(load_backend("torch"), "memory", None)
    with pytest.raises(MeasureError, match="'torch': nothing counts the memory that torch takes on its device"):
        peak_bytes(RuntimeConfig("torch"), TINY.sample(rng))
