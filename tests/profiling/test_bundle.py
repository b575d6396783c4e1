from __future__ import annotations

import ast
import contextlib
import errno
import inspect
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import search_spaces
from nas.core.arch import Arch
from nas.core.errors import InputError, MeasureError, NasError, RunError
from nas.core.files import lock_of
from nas.profiling import bundle as bundle_module
from nas.profiling import shared_weights
from nas.profiling.backends import load_backend, runtimes
from nas.profiling.bench import Bench
from nas.profiling.bundle import collect, make
from nas.profiling.device import loaders, machine
from nas.profiling.device.journal import Journal
from nas.profiling.device.timing import Settings
from nas.profiling.job import Job
from nas.profiling.machine import this_machine
from nas.profiling.probes import Probe
from nas.profiling.process import RuntimeConfig
from nas.profiling.profiler import profile
from nas.profiling.remote import Remote
from nas.profiling.shared_weights import SHARED_BYTES, SharedWeights
from nas.tables.table import INTERVAL_NETWORKS, Table
from tests.profiling.pico import NETWORKS, SETTINGS, SOURCE, device, lines_of, run

SPACE = "pico"
OWN = ["litert", "onnxruntime", "openvino"]  # runtimes of the package that bundles are made for


@pytest.fixture
def bundle(pico: Path, tmp_path: Path) -> Path:
    """A fresh copy of the bundle."""
    return Path(shutil.copytree(pico, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def done(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, run with the stand-in for ONNX Runtime; only for copying."""
    folder = tmp_path_factory.mktemp("done")
    copied = Path(shutil.copytree(pico, folder / "bundle"))
    finished = run(copied, device(folder))
    assert finished.returncode == 0, finished.stderr
    return copied


@pytest.fixture
def finished(done: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that was run."""
    return Path(shutil.copytree(done, tmp_path / "bundle"))


def test_a_bundle_measures_with_the_real_runtime_and_collects_into_a_whole_table(bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    ran = run(bundle, device(tmp_path, runtime=False))
    assert ran.returncode == 0, ran.stderr
    assert "100.0 %" in ran.stderr
    table = collect(bundle, output=tmp_path / "table.csv", accept_noise=True)
    assert {entry.row for entry in table.entries} == set(search_spaces.load(SPACE).rows())
    assert len(table.networks) == NETWORKS
    assert all(network.us > 0 for network in table.networks)
    header, machine = table.header, this_machine()
    assert (header.device, header.cpu, header.cores) == (machine.slug, machine.cpu, machine.cores)
    assert (header.runtime, header.precision, header.threads, header.spaces) == ("onnxruntime", "fp32", 1, (SPACE,))
    assert "in a bundle" in header.protocol
    assert Table.read(tmp_path / "table.csv").hash == table.hash


def test_every_graph_has_as_many_samples_as_asked_for_with_the_sentinel_beside_each(finished):
    manifest, lines = json.loads((finished / "manifest.json").read_text()), lines_of(finished)
    taken = Counter((line["pass"], key) for line in lines[1:] for key in line["samples"])
    assert {key for _, key in taken} == set(manifest["graphs"])
    assert min(taken.values()) >= SETTINGS["rounds"]
    assert max(taken.values()) <= 4 * SETTINGS["rounds"]
    for line in lines[1:]:
        for key, (sentinel, *calls) in line["samples"].items():
            assert sentinel > 0
            assert 3 + manifest["graphs"][key]["whole"] <= len(calls) <= manifest["settings"]["most"]
    orders = [list(line["samples"]) for line in lines[1:] if len(line["samples"]) == len(manifest["graphs"])]
    assert len(set(map(tuple, orders))) > 1


def test_slow_networks_and_graphs_of_rows_have_the_calls_that_a_profile_gives_them(bundle, tmp_path):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["sample_us"] = 1  # shorter than any call
    path.write_text(json.dumps(manifest))
    assert run(bundle, device(tmp_path)).returncode == 0
    samples = [item for line in lines_of(bundle)[1:] for item in line["samples"].items()]
    counts = {(key.startswith("network "), len(calls)) for key, (_, *calls) in samples}
    assert counts == {(False, Settings().least), (True, Settings().least_network)}


def test_rows_and_networks_equal_those_of_a_profile_with_the_same_samples(finished, tmp_path):
    table = collect(finished, output=tmp_path / "table.csv", accept_noise=True)
    job = Job(
        search_spaces.load(SPACE),
        tmp_path / "none.csv",
        RuntimeConfig("onnxruntime"),
        "block",
        Settings(**_settings(finished)),
    )
    archs = map(Arch.from_json, json.loads((finished / "manifest.json").read_text())["networks"])
    with Journal(finished / "samples.jsonl") as journal:
        expected = job.result(journal, "default", tuple(archs))
    assert len(expected.entries) == len(table.entries) > 4
    for mine, other in zip(table.entries, expected.entries, strict=True):
        assert mine.row == other.row
        assert (mine.us, mine.spread_us) == pytest.approx((other.us, other.spread_us), abs=1e-3)  # digits of a file
        assert mine.count == other.count
    for mine, other in zip(table.networks, expected.networks, strict=True):
        assert mine.arch == other.arch
        assert mine.us == pytest.approx(other.us, abs=1e-3)


def _settings(folder: Path) -> dict[str, object]:
    settings = json.loads((folder / "manifest.json").read_text())["settings"]
    return {name: settings[name] for name in settings if name != "seed"}


def test_a_run_that_is_killed_goes_on_without_losing_a_round(bundle, tmp_path):
    environment = device(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "run.py"], cwd=bundle, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while len(_journal(bundle).splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    whole = _journal(bundle)[: _journal(bundle).rfind(b"\n") + 1]
    with (bundle / "samples.jsonl").open("ab") as file:
        file.write(b'{"pass": 0, "sam')
    assert run(bundle, environment).returncode == 0
    assert _journal(bundle).startswith(whole)
    assert b'"sam{' not in _journal(bundle)
    assert len(collect(bundle, output=tmp_path / "table.csv", accept_noise=True).networks) == NETWORKS


def _journal(bundle: Path) -> bytes:
    path = bundle / "samples.jsonl"
    return path.read_bytes() if path.exists() else b""


def test_a_run_that_is_complete_measures_nothing(finished, tmp_path):
    before = _journal(finished)
    assert run(finished, device(tmp_path)).returncode == 0
    assert _journal(finished) == before


@pytest.mark.parametrize(("behaviour", "reason"), [("CRASH", "exit code 77"), ("REFUSED", "not supported")])
def test_a_graph_that_cannot_be_run_costs_its_row_alone_and_is_tried_again(bundle, tmp_path, behaviour, reason):
    manifest = json.loads((bundle / "manifest.json").read_text())
    key = next(key for key in manifest["graphs"] if "Logits" in key and not key.startswith("network"))
    name = Path(manifest["graphs"][key]["file"]).name
    ran = run(bundle, device(tmp_path) | {behaviour: name})
    assert ran.returncode == 0
    assert key in ran.stderr
    with pytest.raises(MeasureError, match=f"(?s)1 rows or networks could not .*Logits.*{reason}"):
        collect(bundle, output=tmp_path / "table.csv", accept_noise=True)
    lacking = {type(row.unit).__name__ for row in Table.read(tmp_path / "table.csv").missing(_rows())}
    assert lacking == {"Logits"}
    assert run(bundle, device(tmp_path)).returncode == 0
    table = collect(bundle, output=tmp_path / "table.csv", accept_noise=True)
    assert not table.missing(_rows())
    assert len(table.networks) == NETWORKS


def _rows() -> tuple[object, ...]:
    return search_spaces.load(SPACE).rows()


def test_what_is_not_complete_is_refused_with_what_is_left_unless_asked_for(finished, tmp_path):
    lines = (finished / "samples.jsonl").read_text().splitlines(keepends=True)
    (finished / "samples.jsonl").write_text("".join(line for line in lines if not line.startswith('{"pass": 1')))
    total = len(json.loads((finished / "manifest.json").read_text())["graphs"])
    with pytest.raises(InputError, match=f"{total} of {total} graphs lack samples; go on with python run.py"):
        collect(finished, output=tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()


def test_what_is_there_can_be_taken_alone(finished, tmp_path):
    manifest = json.loads((finished / "manifest.json").read_text())
    lines = lines_of(finished)
    late = next(key for key in manifest["graphs"] if "Logits" in key and not key.startswith("network"))
    for line in lines[1:]:
        line["samples"].pop(late, None)
    (finished / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = collect(finished, output=tmp_path / "table.csv", partial=True, accept_noise=True)
    assert [type(row.unit).__name__ for row in table.missing(_rows())] == ["Logits"]
    assert table.header.spaces == ()


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("manifest.json", {"format": 99}, "has format 99, this version reads 3; make the bundle anew"),
        ("samples.jsonl", {"format": 99}, "expected format 1, got 99"),
        ("samples.jsonl", {"threads": 2}, "the samples have threads 2, the bundle 1"),
    ],
)
def test_what_is_of_another_kind_is_refused(finished, tmp_path, file, changes, message):
    first, *rest = (finished / file).read_text().splitlines() if file == "samples.jsonl" else ["", ""]
    data = json.loads(first or (finished / file).read_text())
    (data["header"] if "threads" in changes else data).update(changes)
    (finished / file).write_text("\n".join([json.dumps(data), *rest]) + "\n")
    with pytest.raises(InputError, match=message):
        collect(finished, output=tmp_path / "table.csv")


def test_a_bundle_that_was_not_run_says_how(bundle):
    with pytest.raises(InputError, match=r"copy the folder to the device and there: python run\.py"):
        collect(bundle)
    with pytest.raises(InputError, match="holds no bundle; make one with nas profile SPACE --bundle"):
        collect(bundle / "graphs")


def test_samples_of_two_devices_are_never_mixed(finished, tmp_path):
    collect(finished, output=tmp_path / "table.csv", accept_noise=True)
    first, *rest = lines_of(finished)
    first["header"].update(device="other-board", cpu="other cpu")
    lines = [first, *rest]
    (finished / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = run(finished, device(tmp_path))
    assert ran.returncode == 1
    assert "with device 'other-board', this device has" in ran.stderr
    with pytest.raises(InputError, match=r"holds measurements with device .*'other-board'"):
        collect(finished, output=tmp_path / "table.csv", accept_noise=True)


def test_a_disturbed_device_is_refused_or_said_in_the_table(finished, tmp_path):
    lines = lines_of(finished)
    for line in lines[1:]:
        for number, sample in enumerate(line["samples"].values()):
            sample[0] = 100.0 if number % 4 == 0 else 200.0
    (finished / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(MeasureError, match=r"too disturbed to be believed: \d\d% of samples in slow spells"):
        collect(finished, output=tmp_path / "table.csv")
    table = collect(finished, output=tmp_path / "table.csv", accept_noise=True)
    assert table.header.noisy
    assert 0.5 < table.header.noise <= 1


def _change(finished: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a line of the samples, counted from 0."""
    lines = lines_of(finished)
    change(lines[number])
    (finished / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _set_call(value: object) -> Callable[[dict[str, Any]], object]:
    return lambda line: next(iter(line["samples"].values())).__setitem__(-1, value)


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, lambda line: line["header"].update(device="../../x"), r"1: device: expected words .*'\.\./\.\./x'"),
        (0, lambda line: line["header"].update(device="x" * 200), "1: device: expected 1 to 120 printable characters"),
        (0, lambda line: line["header"].update(cpu="a\n# units: ms"), "1: cpu: expected 1 to 400 printable"),
        (0, lambda line: line["header"].pop("cpu"), "1: the header lacks cpu"),
        (0, lambda line: line["header"].update(cores=0), "1: cores: expected a whole number"),
        (0, lambda line: line["header"].update(date="yesterday"), "1: Invalid isoformat"),
        (0, lambda line: line["header"].update(threads=2), "1: the samples have threads 2, the bundle 1"),
        (1, _set_call(math.nan), "2: .*: expected microseconds, more than 0, got nan"),
        (1, _set_call(math.inf), "2: .* got inf"),
        (1, _set_call(0.0), r"2: .* got 0\.0"),
        (1, _set_call(10**4000), "2: .* got 1000"),
        (1, _set_call(True), "2: .* got True"),
        (2, lambda line: next(iter(line["samples"].values())).__setitem__(0, 0.0), r"3: .* got 0\.0"),
        (
            2,
            lambda line: line["samples"].update({"2 x nothing": [1.0, 1.0]}),
            "3: the bundle has no graph '2 x nothing'",
        ),
        (2, lambda line: line["samples"].update({next(iter(line["samples"])): [100.0]}), "3: .* 1 to 24 calls, got"),
        (2, lambda line: line.update({"pass": 2}), "3: pass: expected 0 to 1, got 2"),
        (2, lambda line: line.clear(), "3: pass: expected"),
    ],
)
def test_what_a_board_sends_is_checked_before_anything_is_written(
    finished, tmp_path, monkeypatch, number, change, message
):
    monkeypatch.chdir(tmp_path)
    _change(finished, number, change)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=rf"samples\.jsonl:{message}.*copy it from the device again"):
        collect(finished, accept_noise=True)
    assert sorted(tmp_path.rglob("*")) == before


NASTY = (
    *(math.nan, math.inf, -1.0, 0, 0.0, 10**4000, True, None),
    *("", "../../x", "a\nb", "\x1b[2J", "x" * 9, [], {}, [[]], {"a": 1}),
)


def _mutate(value: Any, rng: random.Random) -> Any:
    """The same with one thing changed somewhere: another value, or one that is missing or there twice."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        if (kind := rng.random()) < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if kind < 0.2:
            return {(str(rng.choice(NASTY)) if name == key else name): each for name, each in value.items()}
        return value | {key: _mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.95:
        place, kind = rng.randrange(len(value)), rng.random()
        if kind < 0.2:
            return value[:place] + value[place + (kind < 0.1) :] * (1 + (kind >= 0.1))
        return [*value[:place], _mutate(value[place], rng), *value[place + 1 :]]
    return rng.choice(NASTY)


def test_whatever_a_board_sends_ends_in_a_table_of_sound_numbers_or_an_error_of_ours(finished, tmp_path, monkeypatch):
    rng = random.Random(0)
    monkeypatch.chdir(tmp_path)
    texts = {name: (finished / name).read_bytes() for name in ("samples.jsonl", "failures.json", "manifest.json")}
    refused = 0
    for _ in range(250):
        name = rng.choice(list(texts))
        lines = texts[name].splitlines(keepends=True) if name == "samples.jsonl" else [texts[name]]
        place = min(rng.randrange(2 * len(lines)), len(lines) - 1) if rng.random() < 0.5 else 0
        if rng.random() < 0.2:
            at = rng.randrange(len(lines[place]))
            lines[place] = lines[place][:at] + rng.randbytes(2) + lines[place][at + 1 :]
        else:
            lines[place] = json.dumps(_mutate(json.loads(lines[place]), rng)).encode() + b"\n"
        (finished / name).write_bytes(b"".join(lines))
        with contextlib.suppress(NasError):  # and nothing else
            collect(finished, partial=True, accept_noise=True)
        made = list((tmp_path / "latency_tables").rglob("*.csv"))
        assert set(tmp_path.iterdir()) <= {finished, tmp_path / "latency_tables"}
        refused += not (tmp_path / "latency_tables").exists()
        for path in made:  # where it failed at single rows, too
            table = Table.read(path)
            assert all(0 <= each.us < math.inf for each in (*table.entries, *table.networks))
        shutil.rmtree(tmp_path / "latency_tables", ignore_errors=True)
        (finished / name).write_bytes(texts[name])
    assert 50 < refused < 250


def test_files_that_were_copied_badly_are_found(bundle, tmp_path):
    assert json.loads(run(bundle, device(tmp_path), "--check").stdout) == {"damaged": []}
    (bundle / "graphs" / "0001.onnx").write_bytes(b"")
    shared = next(iter(bundle.glob("graphs/*.bin")))
    data = bytearray(shared.read_bytes())
    data[100] ^= 1
    shared.write_bytes(data)
    found = json.loads(run(bundle, device(tmp_path), "--check").stdout)["damaged"]
    assert found == ["graphs/0001.onnx", f"graphs/{shared.name}"]
    shared.unlink()
    ran = run(bundle, device(tmp_path))
    assert (ran.returncode, shared.name in ran.stderr) == (1, True)


def test_the_same_bundle_is_not_made_again_and_another_not_over_it(pico, monkeypatch):
    def nothing(*args: object) -> None:
        raise AssertionError("something is converted")

    monkeypatch.setattr(Bench, "convert", nothing)
    space = search_spaces.load(SPACE)
    assert make(space, folder=pico, **SETTINGS) == pico
    with pytest.raises(InputError, match="holds a bundle with rounds 3, asked for is 4; name another folder"):
        make(space, folder=pico, **(SETTINGS | {"rounds": 4}))
    with pytest.raises(InputError, match="holds a bundle with threads 1, asked for is 2"):
        make(space, folder=pico, threads=2, **SETTINGS)
    with pytest.raises(InputError, match="holds other files and no bundle"):
        make(space, folder=pico.parent, **SETTINGS)


def test_a_bundle_appears_whole_or_not_at_all(tmp_path, pico, monkeypatch):
    monkeypatch.setenv("NAS_CACHE", str(pico.parent / "cache"))

    def stop(done: float, *others: object) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "CONVERTED", 4)
    with pytest.raises(KeyboardInterrupt):
        make(search_spaces.load(SPACE), folder=tmp_path / "bundle", progress=stop, **SETTINGS)
    assert not (tmp_path / "bundle").exists()
    made = make(search_spaces.load(SPACE), folder=tmp_path / "bundle", **SETTINGS)
    assert (made / "manifest.json").read_bytes() == (pico / "manifest.json").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_has_as_many_networks_as_a_profile():
    defaults = [inspect.signature(function).parameters["networks"].default for function in (make, profile)]
    assert defaults == [INTERVAL_NETWORKS, INTERVAL_NETWORKS]


@pytest.mark.parametrize("name", ["failures.json", "samples.jsonl"])
def test_a_run_that_cannot_write_says_what_to_do(bundle, tmp_path, name):
    (bundle / name).mkdir()
    ran = run(bundle, device(tmp_path))
    assert ran.returncode == 1
    assert f"{name}: cannot be written (Is a directory); make room" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_table_that_another_process_writes_is_left_alone(finished, tmp_path):
    path = tmp_path / "table.csv"
    with lock_of(path), pytest.raises(RunError, match=r"table\.csv is in use by process"):
        collect(finished, output=path, accept_noise=True)
    assert not path.exists()


def test_what_cannot_be_written_is_said_with_what_to_do(finished, pico, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file.*: cannot be written \(Not a directory\); make room"):
        make(search_spaces.load(SPACE), folder=tmp_path / "file" / "bundle", **SETTINGS)
    with pytest.raises(RunError, match=r"file.*: cannot be written \(.*\); make room"):
        collect(finished, output=tmp_path / "file" / "table.csv", accept_noise=True)

    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("NAS_CACHE", str(pico.parent / "cache"))
    monkeypatch.setattr(SharedWeights, "write", full)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
        make(search_spaces.load(SPACE), folder=tmp_path / "new", **SETTINGS)
    assert not (tmp_path / "new").exists()


def test_failures_that_cannot_be_read_are_said(finished, tmp_path):
    for text in ('{"torn', "[1]"):
        (finished / "failures.json").write_text(text)
        with pytest.raises(InputError, match=r"failures\.json: cannot be read .* copy it from the device again"):
            collect(finished, output=tmp_path / "table.csv", accept_noise=True)


def test_what_cannot_be_bundled_is_refused(tmp_path):
    space = search_spaces.load(SPACE)
    with pytest.raises(InputError, match="unknown runtime 'torch'"):
        make(space, folder=tmp_path / "bundle", runtime="torch")
    with pytest.raises(InputError, match="'pico' is not the one that is known by this name"):
        make(replace(space, stages=space.stages[:1]), folder=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_large_weights_are_read_from_shared_files_where_copies_stay_apart(pico):
    onnx = pytest.importorskip("onnx")
    seen = 0
    for path in pico.glob("graphs/*.onnx"):
        slices = []
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                where = {entry.key: entry.value for entry in tensor.external_data}
                start, length = int(where["offset"]), int(where["length"])
                assert length == 4 * np.prod(tensor.dims)
                assert start + length <= (path.parent / where["location"]).stat().st_size
                slices.append((where["location"], start, start + length))
            else:
                values = onnx.numpy_helper.to_array(tensor)
                assert values.nbytes < SHARED_BYTES or values.dtype != np.float32 or values.std() == 0
        slices.sort()
        for (file, _, end), (next_file, start, _) in itertools.pairwise(slices):
            assert file != next_file or end <= start
        seen += len(slices)
    assert seen > 10


def test_shared_weights_are_about_as_large_as_those_that_they_stand_for(pico, tmp_path):
    onnx = pytest.importorskip("onnx")
    from nas.networks.export import write_onnx

    row = next(row for row in search_spaces.load(SPACE).rows() if "1x48x" in str(row) and "MB4D" in str(row))
    probe, shared = Probe((row,) * 2), SharedWeights()
    write_onnx(probe.module(0), probe.shapes(), tmp_path / "plain.onnx")
    (tmp_path / "shared.onnx").write_bytes(shared.without_weights(tmp_path / "plain.onnx"))
    shared.write(tmp_path)
    values = [
        {
            tensor.name: onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load(str(tmp_path / name)).graph.initializer
        }
        for name in ("plain.onnx", "shared.onnx")
    ]
    large = [name for name, array in values[0].items() if array.nbytes >= SHARED_BYTES]
    assert len(large) == 4
    for name, plain in values[0].items():
        other = values[1][name]
        assert (plain.shape, plain.dtype) == (other.shape, other.dtype)
        if name in large:
            assert 0.65 < other.std() / plain.std() < 1.55
        else:
            assert np.array_equal(plain, other)


def test_a_graph_of_more_weights_than_the_limit_reads_some_twice(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    values = np.random.default_rng(0).standard_normal((6, 2000), dtype=np.float32)
    initializers = [onnx.numpy_helper.from_array(row, f"w{number}") for number, row in enumerate(values)]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], initializers)), tmp_path / "plain.onnx")
    monkeypatch.setattr(shared_weights, "LIMIT_BYTES", 4 * 8000)
    shared = SharedWeights()
    (tmp_path / "shared.onnx").write_bytes(shared.without_weights(tmp_path / "plain.onnx"))
    tensors = onnx.load(str(tmp_path / "shared.onnx"), load_external_data=False).graph.initializer
    offsets = [int(entry.value) for tensor in tensors for entry in tensor.external_data if entry.key == "offset"]
    assert offsets == [0, 8000, 16000, 24000, 0, 8000]  # 8000 is a multiple of 64
    assert shared.sizes == {"normal+0.bin": 32000}


def test_all_runtimes_that_read_onnx_load_shared_weights_and_agree(pico):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    manifest = json.loads((pico / "manifest.json").read_text())
    for graph in [manifest["sentinel"], *manifest["graphs"].values()][:6]:
        found = []
        for runtime in ("onnxruntime", "openvino"):
            session = loaders.loader_of(runtime).load(pico / graph["file"], graph["shapes"], 1, "fp32")
            found.append(session.outputs()[0])
        assert np.isfinite(found[0]).all()
        assert np.abs(found[0] - found[1]).max() <= 1e-4 * np.abs(found[0]).max()


def test_openvino_is_kept_from_sending_usage_data(monkeypatch, tmp_path):
    class StoppedError(Exception): ...

    def core() -> None:
        raise StoppedError

    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=core))
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)  # so that what comes now is taken back
    monkeypatch.delitem(sys.modules, "openvino_telemetry")
    with pytest.raises(StoppedError):
        loaders.loader_of("openvino").load(tmp_path, [], 1, "fp32")
    with pytest.raises(ImportError):
        import openvino_telemetry  # noqa: F401


def test_a_bundle_carries_the_code_that_the_profiler_times_with(pico):
    package, carried = Path(shared_weights.__file__).parents[1], pico / "nas"
    names = {path.relative_to(carried).as_posix() for path in carried.rglob("*.py")} - {"__init__.py"}
    assert {f"profiling/device/{name}.py" for name in ("journal", "machine", "schedule", "timing", "worker")} <= names
    assert all((carried / name).read_bytes() == (package / name).read_bytes() for name in names)
    assert [name for name in runtimes() if bundle_module.suffix_of(name)] == OWN
    assert [load_backend(name).distribution for name in OWN] == [loaders.loader_of(name).DISTRIBUTION for name in OWN]


LATER = {"removesuffix", "pairwise", "is_relative_to", "bit_count", "cache", "randbytes", "readlink"}
GENERICS = {"dict", "list", "tuple", "set", "frozenset", "type"}  # that Python 3.8 subscripts in annotations alone


def carried(pico: Path) -> list[ast.Module]:
    """The code of a bundle, which Python 3.8 can parse."""
    paths = [pico / "run.py", *(pico / "nas").rglob("*.py")]
    return [ast.parse(path.read_text(), str(path), feature_version=(3, 8)) for path in paths]


def test_the_code_of_a_bundle_runs_on_python_3_8(pico):
    for tree in carried(pico):
        skipped = {id(node) for each in ast.walk(tree) for node in _annotations(each)}
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            assert not (isinstance(node, ast.Attribute) and node.attr in LATER), ast.unparse(node)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
                assert not node.keywords, ast.unparse(node)
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
                assert node.value.id not in GENERICS, ast.unparse(node)
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):  # of flags, not of dicts or types
                assert re.fullmatch(r"(fcntl|os)\.[A-Z_]+ \| (fcntl|os)\.[A-Z_]+", ast.unparse(node)), ast.unparse(node)


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in annotations: it is text to Python, since every file says so in its first import."""
    for name in ("annotation", "returns"):
        if isinstance(found := getattr(node, name, None), ast.AST):
            yield from ast.walk(found)


def test_the_code_of_a_bundle_needs_numpy_and_a_runtime_alone(pico):
    needed, inside = set(), set()
    for tree in carried(pico):
        unused = {id(node) for each in ast.walk(tree) if _is_for_hosts(each) for node in ast.walk(each)}
        nodes = [node for node in ast.walk(tree) if id(node) not in unused]
        modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        modules += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        inside |= {name for name in modules if name.split(".")[0] == "nas"}
        needed |= {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names)
    optional = {"filelock", "platformdirs"}  # of locks and caches, which a bundle has no use for
    assert needed - optional == {"nas", "numpy", *(loaders.loader_of(name).MODULE for name in OWN)}
    for name in inside - {"nas"}:
        assert (pico / name.replace(".", "/")).is_dir() or (pico / f"{name.replace('.', '/')}.py").is_file(), name


def _is_for_hosts(node: ast.AST) -> bool:
    """Whether it never runs on a board: what is for type checkers, and what looks runtimes up by name."""
    if isinstance(node, ast.FunctionDef):
        return node.name in ("runtimes", "load_backend")
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


MINE = """
from nas.profiling.backends import FileBackend, Session


class Product(Session):
    def __init__(self, size):
        import numpy

        self.matrix = numpy.ones((size, size))

    def run(self):
        self.matrix @ self.matrix


class Mine(FileBackend):
    name, distribution, suffix = "mine", "numpy", ".txt"

    def convert(self, module, shapes, path):
        count = sum(weight.numel() for weight in module.parameters())
        path.write_text(str(8 + count % 57))

    def load(self, path, shapes):
        return Product(int(path.read_text()))


BACKEND = Mine
"""


def test_a_runtime_from_outside_the_package_is_carried_to_boards_in_its_one_file(tmp_path, monkeypatch):
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "pico.py").write_text(SOURCE)
    (folder / "mine.py").write_text(MINE)
    monkeypatch.setenv("NAS_PLUGINS", str(folder))
    monkeypatch.delenv("NAS_SPACES", raising=False)
    search_spaces.family.cache_clear()
    made = make(search_spaces.load(SPACE), folder=tmp_path / "bundle", runtime="mine", **SETTINGS)
    search_spaces.family.cache_clear()
    (folder / "mine.py").rename(tmp_path / "gone.py")  # the board has what the bundle has
    ran = run(made, device(tmp_path, runtime=False) | {"NAS_PLUGINS": ""})
    assert ran.returncode == 0, ran.stderr
    (tmp_path / "gone.py").rename(folder / "mine.py")
    table = collect(made, output=tmp_path / "table.csv", accept_noise=True)
    assert (table.header.runtime, table.header.runtime_version) == ("mine", np.__version__)
    assert {entry.row for entry in table.entries} == set(search_spaces.load(SPACE).rows())
    search_spaces.family.cache_clear()


PI = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08

processor\t: 1
Features\t: fp asimd evtstrm crc32 cpuid
CPU part\t: 0xd03

Hardware\t: BCM2711
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""


@pytest.mark.parametrize(
    ("board", "cpu", "name"),
    [
        (
            "Raspberry Pi 4 Model B",
            "Raspberry Pi 4 Model B (parts 0xd03 0xd08, asimd)",
            "aarch64-raspberry-pi-4-model-b",
        ),
        ("", "BCM2711 (parts 0xd03 0xd08, asimd)", "aarch64-bcm2711"),
    ],
)
def test_boards_are_named_by_the_system_and_told_apart_by_their_cores(monkeypatch, board, cpu, name):
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda path, **how: PI if str(path) == "/proc/cpuinfo" else read(path, **how)
    )
    monkeypatch.setattr(machine, "_board", lambda: board)
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.machine() == (cpu, os.cpu_count(), name)


@pytest.fixture
def nas(monkeypatch, capsys):
    """Run the command line in this process; its output."""
    from nas import commands

    def run_command(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["nas", *map(str, arguments)])
        commands.main()
        return capsys.readouterr().out

    return run_command


def test_the_command_line_makes_and_collects_bundles(nas, pico, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_CACHE", str(pico.parent / "cache"))
    out = nas("profile", SPACE, "--bundle", tmp_path / "new", "--rounds", 3, "--networks", 5)
    assert "python run.py" in out
    made, known = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "new", pico))
    assert made == known
    facts = json.loads(nas("profile", "--collect", finished, "-o", tmp_path / "t.csv", "--accept-noise", "--json"))
    assert (facts["rows"], facts["networks"]) == (len(_rows()), NETWORKS)
    assert Table.read(tmp_path / "t.csv").header.spaces == (SPACE,)


def test_the_command_line_measures_on_a_host(nas, bundle, done, tmp_path, monkeypatch):
    asked = []

    def measure(self: Remote, folder: Path, progress: object) -> None:
        asked.append(self)
        shutil.copyfile(done / "samples.jsonl", folder / "samples.jsonl")

    monkeypatch.setattr(Remote, "measure", measure)
    host = ["--host", "pi@board", "--ssh-port", 2222, "--identity", "key", "--ssh-config", "config", "--python", "py"]
    what = ["--bundle", bundle, "--rounds", 3, "--networks", 5, "-o", tmp_path / "t.csv", "--accept-noise", "--json"]
    assert json.loads(nas("profile", SPACE, *host, *what))["rows"] == len(_rows())
    assert asked == [Remote("pi@board", 2222, Path("key"), "py", config=Path("config"))]
