from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from nas.core.arch import calls_of
from nas.core.errors import InputError, MeasureError
from nas.core.ops import Block, Row, Shape
from nas.networks.export import example_inputs, write_onnx
from nas.profiling.backends import FileBackend, load_backend, runtimes
from nas.profiling.bundle import _Bundled
from nas.profiling.cache import Cache
from nas.profiling.device.sessions import example_arrays
from nas.profiling.device.timing import Settings
from nas.profiling.job import Job
from nas.profiling.machine import this_machine
from nas.profiling.probes import Probe
from nas.profiling.process import RuntimeConfig
from nas.profiling.profiler import measure, profile
from nas.tables.table import Table
from search_spaces.efficientformer import MB3D, MB4D
from search_spaces.efficientformerv2 import AttentionMLP, DualPath
from search_spaces.mobileformer import BridgeIn
from tests.profiling import FEW, few
from tests.small import TINY, fake_table

REAL = ["onnxruntime", "openvino", "torch"]
ROOT = Path(__file__).parents[2]
CONVOLUTIONS = Probe((Row(MB4D(2), (Shape(1, 16, 8, 8),)),))
GRAPHS = {
    "convolutions": CONVOLUTIONS,
    "attention with layer norm and GELU": Probe((Row(MB3D(2), (Shape(1, 16, 32),)),)),
    "talking heads and interpolation": Probe((Row(AttentionMLP(2, 2, 2, 8), (Shape(1, 16, 8, 8),)),)),
    "strided attention beside a convolution": Probe((Row(DualPath(32, 2, 8), (Shape(1, 16, 8, 8),)),)),
    "two inputs and two outputs": Probe((Row(BridgeIn(), (Shape(1, 2, 16), Shape(1, 12, 7, 7))),)),
    "nothing": Probe(idle=(Shape(1, 16, 8, 8),)),
}
CONFIGS = [
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("torch_compile", "fp32"),
]
#: largest difference from PyTorch's fp32 outputs over the largest output: what rounding alone cannot reach, what it may
ROUNDING = {"fp32": (0.0, 1e-4), "bf16": (1e-4, 0.05), "int8": (1e-4, 0.15)}


@pytest.fixture
def two_threads():
    """A process in which PyTorch uses two threads, before a backend says otherwise."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def backend_or_skip(name, precision="fp32", variant=None):
    """A backend with one thread; the test is skipped where it cannot run."""
    try:
        backend = load_backend(name)(1, precision, variant)
        backend.require_machine()
    except MeasureError as error:
        pytest.skip(str(error))
    return backend


def difference(session, probe, module):
    """Largest difference from PyTorch's outputs over the largest of them."""
    with torch.no_grad():
        expected = module(*example_inputs(probe.shapes()))
    pairs = zip(session.outputs(), expected if isinstance(expected, tuple) else (expected,), strict=True)
    worst = 0.0
    for array, tensor in pairs:
        assert (array.shape, array.dtype) == (tensor.shape, np.float32)
        worst = max(worst, float(np.abs(array - tensor.numpy()).max() / tensor.abs().max()))
    return worst


@pytest.mark.parametrize("name", runtimes())
def test_a_backend_is_named_like_its_file_and_says_what_it_needs(name):
    kind = load_backend(name)
    assert kind.name == name
    assert "fp32" in kind.precisions
    assert kind.variants
    assert kind.memory in ("process", "torch.cuda", None)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installs = project["dependencies"] if kind.extra is None else project["optional-dependencies"][kind.extra]
    assert any(line.partition(">")[0] == kind.distribution for line in installs)


@pytest.mark.parametrize("name", runtimes())
def test_a_backend_runs_here_or_says_what_is_missing(name):
    kind = load_backend(name)
    try:
        kind.require()
    except MeasureError as error:
        text = str(error)
    else:
        text = ""
    if text:
        assert name in text
        assert "pip install" in text or (kind.untested is not None and kind.untested in text)
        return
    assert kind.version()
    for variant in kind.variants:
        session = kind(1, "fp32", variant).prepare(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes())
        session.run()
        assert session.timed_run() > 0


@pytest.mark.parametrize("name", [name for name in runtimes() if load_backend(name).untested])
def test_missing_hardware_is_named(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("nas.profiling.backends.onnxruntime_cuda._has_driver", lambda: False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    kind = load_backend(name)
    with pytest.raises(MeasureError, match=f"runtime '{name}' needs {kind.untested}"):
        kind()


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU."""
    this_machine.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    yield
    this_machine.cache_clear()


@pytest.mark.parametrize("name", ["torch_cuda", "onnxruntime_cuda", "tensorrt"])
def test_tables_of_a_gpu_name_it_and_their_models_are_not_those_of_another(name, gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(load_backend(name), "version", lambda: "1")
    host, machine = this_machine(), this_machine(name)
    assert machine.slug.endswith("-nvidia-h100-80gb-hbm3")
    assert (machine.cpu, machine.cores) == (f"NVIDIA H100 80GB HBM3 in {host.cpu}", host.cores)
    header = replace(fake_table(TINY).header, device=machine.slug, cpu=machine.cpu)
    assert machine.measured(header)
    assert not host.measured(header)
    path = Cache(RuntimeConfig(name), tmp_path).path(CONVOLUTIONS)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    this_machine.cache_clear()
    assert not this_machine(name).measured(header)
    assert Cache(RuntimeConfig(name), tmp_path).path(CONVOLUTIONS) != path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "fake", "tflite", "torch_cuda"])
def test_what_no_gpu_runs_is_named_by_the_cpu(runtime, monkeypatch):
    this_machine.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert this_machine(runtime) == this_machine()
    this_machine.cache_clear()


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("name", "precision"), CONFIGS)
def test_outputs_are_pytorchs_as_far_as_the_precision_goes(name, precision, graph):
    backend, probe = backend_or_skip(name, precision), GRAPHS[graph]
    module = probe.module(0)
    found = difference(backend.prepare(module, probe.shapes()), probe, module)
    least, most = ROUNDING[precision]
    assert found <= most
    assert found >= least or graph == "nothing"


@pytest.mark.parametrize(("name", "precision"), [each for each in CONFIGS if each[0] != "torch_compile"])
def test_a_whole_network_gives_pytorchs_outputs(name, precision, rng):
    backend, probe = backend_or_skip(name, precision), Probe(arch=TINY.sample(rng))
    module = probe.module(0)
    least, most = ROUNDING[precision]
    assert least <= difference(backend.prepare(module, probe.shapes()), probe, module) <= most


def test_inputs_are_the_same_with_and_without_pytorch():
    shapes = [Shape(1, 3, 4, 4), Shape(1, 7)]
    for tensor, array in zip(example_inputs(shapes, seed=3), example_arrays(shapes, seed=3), strict=True):
        assert np.array_equal(tensor.numpy(), array)
    values = example_arrays([(100_000,)])[0]
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


@pytest.mark.parametrize("name", runtimes())
def test_unknown_settings_are_named_with_the_known_ones(name, monkeypatch):
    kind = load_backend(name)
    monkeypatch.setattr(kind, "require", lambda: None)
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
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(MeasureError, match=r"pip install 'millinas\[onnxruntime\]'"):
        load_backend("onnxruntime")()
    with pytest.raises(MeasureError, match=r"millinas\[onnxruntime\]"):
        few(path, runtime="onnxruntime")
    assert not path.parent.exists()


def test_a_runtime_from_another_distribution_says_its_own_version(monkeypatch):
    import onnxruntime

    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    assert load_backend("onnxruntime").version() == onnxruntime.__version__
    monkeypatch.delattr(onnxruntime, "__version__")
    with pytest.raises(MeasureError, match=r"needs onnxruntime, which is not installed: pip install"):
        load_backend("onnxruntime").version()


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


@pytest.mark.parametrize("runtime", REAL)
def test_a_real_runtime_fills_a_table(local, path, rng, runtime):
    options = {"passes": 1, "rounds": 2, "rows": FEW, "accept_noise": True}  # of whatever else runs beside the tests
    table = profile(TINY, path=path, runtime=runtime, **options)
    assert Table.read(path).hash == table.hash
    assert {entry.row for entry in table.entries} == set(FEW)
    longest = max(table.entries, key=lambda entry: entry.us)
    assert longest.us > 0
    assert isinstance(longest.row.unit, Block)
    assert table.header.runtime_version == load_backend(runtime).version()
    assert table.header.variant in load_backend(runtime).variants
    arch = TINY.sample(rng)
    whole = measure(arch, runtime=runtime, settings=Settings(rounds=2, passes=1))
    assert whole.us > 0
    assert len(calls_of(arch)) > 3
    assert whole.variant in load_backend(runtime).variants


def test_int8_quantizes_every_convolution_per_output_channel(tmp_path):
    backend_or_skip("onnxruntime", "int8").convert(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes(), tmp_path / "model")
    graph = onnx.load(str(tmp_path / "model")).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 2
    for node in convolutions:
        weight = makers[node.input[1]]
        assert weight.op_type == "DequantizeLinear"
        assert tensors[weight.input[0]].data_type == onnx.TensorProto.INT8
        assert list(tensors[weight.input[1]].dims) == list(tensors[weight.input[0]].dims[:1])  # a scale per channel
        assert makers[node.input[0]].op_type == "DequantizeLinear"


def test_int8_leaves_the_log_level_and_the_random_state_alone():
    import logging

    backend, level, state = backend_or_skip("onnxruntime", "int8"), logging.root.level, torch.get_rng_state()
    backend.prepare(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes())
    assert logging.root.level == level
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("precision", "type_name"), [("fp32", "f32"), ("bf16", "bf16"), ("int8", "f32")])
def test_openvino_is_told_precision_threads_and_streams(precision, type_name):
    session = backend_or_skip("openvino", precision).prepare(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes())
    compiled = session.request.get_compiled_model()
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == type_name
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_bf16_is_refused_where_the_cpu_has_none_but_not_in_bundles(monkeypatch, tmp_path):
    kind = type(backend_or_skip("openvino"))

    class Core:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    monkeypatch.setattr("nas.profiling.backends.openvino.core", Core)
    with pytest.raises(MeasureError, match="this CPU has no bf16"):
        kind(precision="bf16").load(tmp_path / "file", ())
    with pytest.raises(MeasureError, match="this CPU has no bf16"):
        Job(TINY, tmp_path / "table.csv", RuntimeConfig("openvino", precision="bf16"))
    _Bundled(TINY, tmp_path / "table.csv", RuntimeConfig("openvino", precision="bf16"))  # for a device that has them


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_profiled_session_times_the_nodes_of_every_block_of_a_network(name, tmp_path, rng):
    backend, arch = backend_or_skip(name), TINY.sample(rng)
    assert backend.profiles_nodes
    probe = Probe(arch=arch)
    backend.convert(probe.module(0), probe.shapes(), tmp_path / "model")
    session = backend.load_profiled(tmp_path / "model", probe.shapes())
    seconds = [session.timed_run() for _ in range(4)]
    # further in, blocks of so small a network are over in less than OpenVINO's microsecond
    paths = [f"stages.{stage}.{number}" for stage in (0, 1) for number in range(len(arch.stages[stage]))]
    runs = session.nodes()
    assert len(runs) == (1 if name == "openvino" else 4)
    for run in runs:
        assert all(us >= 0 for _, us in run)
        assert 0 < sum(us for _, us in run) <= 1e6 * max(seconds)
        text = " ".join(node for node, _ in run)
        assert [path for path in paths if f"/{path}/" not in text] == []


def test_openvino_needs_two_runs_for_a_mean_without_the_first(tmp_path):
    backend = backend_or_skip("openvino")
    backend.convert(CONVOLUTIONS.module(0), CONVOLUTIONS.shapes(), tmp_path / "model")
    session = backend.load_profiled(tmp_path / "model", CONVOLUTIONS.shapes())
    session.run()
    with pytest.raises(MeasureError, match="at least 2 runs, got 1"):
        session.nodes()


def test_a_runtime_that_does_not_time_nodes_says_so(tmp_path):
    class Silent(FileBackend):
        name = "silent"
        distribution = "torch"

        def convert(self, module, shapes, path):
            pass

        def load(self, path, shapes):
            pass

    assert not Silent.profiles_nodes
    with pytest.raises(MeasureError, match="'silent' does not time single nodes"):
        Silent().load_profiled(tmp_path, ())


def test_compiled_modules_of_one_class_do_not_share_a_limit(monkeypatch):
    """Inductor takes seconds a module; Dynamo, which has the limit, works the same before another backend."""
    backend = backend_or_skip("torch_compile")
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, dynamic, options: compiler(f, dynamic=dynamic, backend="eager"))
    limits = functools.partial(
        torch._dynamo.config.patch, recompile_limit=2, accumulated_recompile_limit=2, fail_on_recompile_limit_hit=True
    )
    with limits():
        for channels in range(4, 12):
            probe = Probe((Row(MB4D(2), (Shape(1, channels, 4, 4),)),))
            backend.prepare(probe.module(0), probe.shapes()).run()


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MeasureError, match="'no-such-compiler' is not on the PATH: install g\\+\\+"):
        load_backend("torch_compile")()


def test_half_precision_files_are_half_throughout(tmp_path):
    """What the GPU backends load for fp16, run on the CPU here."""
    runtime, probe = pytest.importorskip("onnxruntime"), GRAPHS["attention with layer norm and GELU"]
    module = probe.module(0)
    write_onnx(module, probe.shapes(), tmp_path / "model.onnx", torch.float16)
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    assert onnx.TensorProto.FLOAT not in {tensor.data_type for tensor in graph.initializer}
    (array,) = example_arrays(probe.shapes())
    (got,) = runtime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"input0": array.astype(np.float16)})
    with torch.no_grad():
        expected = module(torch.from_numpy(array))
    assert got.dtype == np.float16
    assert np.abs(got - expected.numpy()).max() <= 1e-2 * expected.abs().max()
    assert next(module.parameters()).dtype == torch.float32


def test_openvino_sends_no_usage_data():
    backend_or_skip("openvino")
    text = """
import os, sys, torch
from nas.core.ops import Conv, Row, Shape
from nas.profiling.backends import load_backend
from nas.profiling.bundle import _Bundled
from nas.profiling.cache import Cache
from nas.profiling.machine import this_machine
from nas.profiling.job import Job
from nas.profiling.probes import Probe
from nas.profiling.process import RuntimeConfig
os.register_at_fork(before=lambda: os._exit(3))
probe = Probe((Row(Conv(3, 4), (Shape(1, 3, 4, 4),)),))
load_backend("openvino")().prepare(probe.module(0), probe.shapes()).run()
sys.exit("openvino_telemetry.main" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0
