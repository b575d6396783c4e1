from __future__ import annotations

import importlib.util

import pytest
import torch

from nas.arch import calls_of
from nas.errors import InputError, MeasureError
from nas.export import write_onnx
from nas.latency import Table
from nas.ops import Block
from nas.profiling.backends import load_backend, runtimes
from nas.profiling.probes import Probe, formulas
from nas.profiling.profiler import measure, profile
from nas.profiling.protocol import Settings
from nas.profiling.worker import SENTINEL_SHAPE
from tests.profiling import FEW, few
from tests.small import TINY

REAL = ["onnxruntime", "torch"]


@pytest.fixture
def two_threads():
    """A process in which PyTorch uses two threads, before a backend says otherwise."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", runtimes())
def test_a_backend_is_named_like_its_file_and_runs_every_variant(name):
    kind = load_backend(name)
    assert kind.name == name
    assert kind.version()
    probe = Probe(FEW[:1])
    for variant in kind.variants:
        session = kind(1, "fp32", variant).prepare(probe.module(0), probe.shapes())
        session.run()
        assert 0 < session.timed_run() < 60  # seconds


@pytest.mark.parametrize("name", runtimes())
def test_unknown_settings_are_named_with_the_known_ones(name):
    kind = load_backend(name)
    with pytest.raises(InputError, match=rf"{name}: unknown precision 'fp31', did you mean 'fp32'"):
        kind(precision="fp31")
    with pytest.raises(InputError, match=rf"{name}: unknown variant 'x'.* Known: {', '.join(sorted(kind.variants))}"):
        kind(variant="x")
    with pytest.raises(InputError, match="threads: expected at least 1, got 0"):
        kind(threads=0)


def test_an_unknown_runtime_is_named_with_the_closest():
    with pytest.raises(InputError, match="unknown runtime 'onnxrutime', did you mean 'onnxruntime'"):
        load_backend("onnxrutime")


def test_a_missing_runtime_names_the_extra_that_installs_it(local, path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MeasureError, match=r"pip install 'millinas\[onnxruntime\]'"):
        load_backend("onnxruntime")()
    with pytest.raises(MeasureError, match=r"millinas\[onnxruntime\]"):
        few(path, runtime="onnxruntime")
    assert not path.parent.exists()


def test_onnx_runtime_uses_the_threads_it_is_told():
    probe = Probe(FEW[:1])
    session = load_backend("onnxruntime")(threads=1).prepare(probe.module(0), probe.shapes())
    options = session.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert session.session.get_providers() == ["CPUExecutionProvider"]


def test_pytorch_uses_the_threads_it_is_told(two_threads):
    probe = Probe(FEW[:1])
    load_backend("torch")(threads=1).prepare(probe.module(0), probe.shapes())
    assert torch.get_num_threads() == 1


def test_channels_last_reaches_weights_and_inputs():
    probe = Probe(tuple(row for row in FEW if row.inputs[0].is_map)[:1])
    session = load_backend("torch")(variant="channels_last").prepare(probe.module(0), probe.shapes())
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in session.inputs)
    with torch.no_grad():
        assert session.module(*session.inputs).is_contiguous(memory_format=torch.channels_last)


def test_what_one_process_converted_another_only_loads(local, path, monkeypatch):
    kind, converted = load_backend("onnxruntime"), []

    def convert(self, module, shapes, file):
        if shapes != (SENTINEL_SHAPE,):
            converted.append(shapes)
        write_onnx(module, shapes, file)

    monkeypatch.setattr(kind, "convert", convert)
    few(path, runtime="onnxruntime", rounds=1, passes=3)
    graphs = {probe for formula in formulas(FEW, TINY.rows(), TINY.input_shape) for probe in formula.probes}
    assert len(converted) == len(graphs)


def test_files_beyond_the_limit_are_not_kept(local, path, monkeypatch, tmp_path):
    def load(self, file, shapes):
        assert [other.name for other in file.parent.iterdir()] == [file.name]
        return original(self, file, shapes)

    kind = load_backend("onnxruntime")
    original = kind.load
    monkeypatch.setattr(kind, "load", load)
    monkeypatch.setattr("nas.profiling.worker.FILES_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(few(path, runtime="onnxruntime", rounds=1).entries) == len(FEW)
    assert not list(tmp_path.glob("nas-*"))  # and everything is cleaned up


@pytest.mark.parametrize("runtime", REAL)
def test_a_real_runtime_fills_a_table(local, path, rng, runtime):
    table = profile(TINY, path=path, runtime=runtime, passes=1, rounds=2, rows=FEW)
    assert Table.read(path).hash == table.hash
    assert {entry.row for entry in table.entries} == set(FEW)
    longest = max(table.entries, key=lambda entry: entry.us)
    assert longest.us > 0
    assert isinstance(longest.row.unit, Block)
    assert table.header.runtime_version == load_backend(runtime).version()
    assert ("; variant " in table.header.protocol) == (len(load_backend(runtime).variants) > 1)
    arch = TINY.sample(rng)
    whole = measure(arch, runtime=runtime, settings=Settings(rounds=2, passes=1))
    assert whole.us > 0
    assert len(calls_of(arch)) > 3
    assert whole.variant in load_backend(runtime).variants
