from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

import search_spaces
from nas.core.errors import MeasureError, RunError
from nas.networks.export import write_onnx
from nas.profiling import cache as module
from nas.profiling.backends import load_backend
from nas.profiling.bench import Bench
from nas.profiling.cache import YOUNG_SECONDS, Cache, seal
from nas.profiling.device.journal import Log
from nas.profiling.device.timing import Settings
from nas.profiling.probes import Probe, formulas
from nas.profiling.process import RuntimeConfig, WorkerDeathError
from nas.tables.table import Table
from tests.profiling import FEW, LOGITS, LocalConverter, few
from tests.small import TINY

ENGINE = RuntimeConfig("onnxruntime", 1, "fp32", "default")
ONE, TWO = Probe(FEW[:1]), Probe(FEW[:1] * 2)


def test_a_file_is_named_by_everything_it_depends_on(cache, monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    known = Cache(ENGINE).path(ONE)
    assert Cache(ENGINE).path(Probe(FEW[:1])) == known
    others = [Cache(ENGINE).path(TWO)]
    others += [Cache(replace(ENGINE, **change)).path(ONE) for change in ({"threads": 2}, {"precision": "int8"})]
    monkeypatch.setattr(module, "_installed", lambda: ["torch-0.1.dist-info"])
    others.append(Cache(ENGINE).path(ONE))
    monkeypatch.undo()
    monkeypatch.setenv("NAS_CACHE", str(cache))
    monkeypatch.setattr(module, "WEIGHTS_SEED", 1)
    others.append(Cache(ENGINE).path(ONE))
    monkeypatch.undo()
    monkeypatch.setenv("NAS_CACHE", str(cache))
    (tmp_path / "family.py").write_text("WIDTH = 1\n")
    monkeypatch.setenv("NAS_SPACES", str(tmp_path))
    others.append(Cache(ENGINE).path(ONE))
    (tmp_path / "family.py").write_text("WIDTH = 2\n")
    others.append(Cache(ENGINE).path(ONE))
    assert len({known, *others}) == 1 + len(others)


def test_the_source_of_every_family_and_of_what_converts_counts(monkeypatch):
    read = []
    plain = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or plain(path))
    module._sources()
    families = {f"{name}.py" for name in search_spaces.families()}
    assert families | {"ops.py", "blocks.py", "export.py", "probes.py", "converter.py", "onnxruntime.py"} <= set(read)


def test_the_oldest_files_go_where_there_are_too_many(cache):
    pytest.importorskip("onnxruntime")
    kept = Cache(ENGINE, limit_bytes=250)
    old = time.time() - 2 * YOUNG_SECONDS
    for number in range(4):
        (kept.folder / f"old{number}").write_bytes(bytes(100))
        os.utime(kept.folder / f"old{number}", (old + number, old + number))
    (kept.folder / "young").write_bytes(bytes(100))
    kept.shrink()
    assert sorted(file.name for file in kept.folder.iterdir()) == ["old3", "young"]
    Cache(ENGINE, limit_bytes=0).shrink()
    assert [file.name for file in kept.folder.iterdir()] == ["young"]  # some process may be about to load it


def test_a_file_that_is_asked_for_is_young_again(cache):
    pytest.importorskip("onnxruntime")
    kept = Cache(ENGINE, limit_bytes=0)
    kept.path(ONE).write_bytes(b"model")
    seal(kept.path(ONE))
    os.utime(kept.path(ONE), (1.0, 1.0))
    assert kept.lacking([ONE, TWO]) == [TWO]
    kept.shrink()
    assert kept.path(ONE).exists()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def another_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, another_byte, lambda path: path.with_name(f"{path.name}.seal").unlink()])
def test_a_damaged_file_is_made_again(local, cache, damage):
    pytest.importorskip("onnxruntime")
    with Bench(ENGINE, Settings(), Log()) as bench:
        path = bench.convert([ONE])[ONE.key]
    whole = path.read_bytes()
    assert onnx.load_model_from_string(whole).graph.node
    damage(path)
    with Bench(ENGINE, Settings(), Log()) as bench:
        assert bench.convert([ONE])[ONE.key] == path
    assert path.read_bytes() == whole
    assert Cache(ENGINE).lacking([ONE]) == []


def test_a_file_that_is_cut_off_while_a_profile_runs_is_made_again(local, cache):
    pytest.importorskip("onnxruntime")
    with Bench(ENGINE, Settings(), Log()) as bench:
        path = bench.convert([ONE])[ONE.key]
        whole = path.read_bytes()
        cut_off(path)
        bench.convert([ONE])
    assert path.read_bytes() == whole


def test_a_file_goes_with_its_seal(cache):
    pytest.importorskip("onnxruntime")
    kept, old = Cache(ENGINE, limit_bytes=0), time.time() - 2 * YOUNG_SECONDS
    for name in ("one", "two"):
        (kept.folder / name).write_bytes(b"model")
        seal(kept.folder / name)
    for name in ("one", "one.seal", "two.seal"):  # the seal is no younger than when it was written
        os.utime(kept.folder / name, (old, old))
    kept.shrink()
    assert sorted(file.name for file in kept.folder.iterdir()) == ["two", "two.seal"]


def test_a_full_disk_is_named(cache, monkeypatch):
    pytest.importorskip("onnxruntime")
    kept = Cache(ENGINE)
    kept.require_room()
    monkeypatch.setattr(module, "LEAST_FREE_BYTES", 2**70)
    with pytest.raises(
        MeasureError, match=r"converted: the disk is full, models cannot be converted; make room or name"
    ):
        kept.require_room()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"converted \(the environment variable NAS_CACHE names another\): cannot be"):
        Cache(ENGINE, tmp_path / "file")


def test_what_one_process_converted_others_and_later_profiles_only_load(local, path, monkeypatch):
    pytest.importorskip("onnxruntime")
    kind, converted = load_backend("onnxruntime"), []

    def convert(self, module, shapes, file):
        converted.append(shapes)
        write_onnx(module, shapes, file)

    monkeypatch.setattr(kind, "convert", convert)
    short = {"runtime": "onnxruntime", "rounds": 1, "passes": 3, "accept_noise": True}
    few(path, **short)
    graphs = {probe for formula in formulas(FEW, TINY.rows(), TINY.input_shape) for probe in formula.probes}
    assert len(converted) == len(graphs) + 1  # and the sentinel
    assert len(few(path.with_name("again.csv"), **short).entries) == len(FEW)
    assert len(converted) == len(graphs) + 1


def test_a_graph_that_cannot_be_converted_fails_alone(local, path, monkeypatch):
    pytest.importorskip("onnxruntime")
    kind = load_backend("onnxruntime")

    def convert(self, module, shapes, file):
        if shapes[0] == (1, 48, 2, 2):
            raise RuntimeError("no such op")
        write_onnx(module, shapes, file)

    monkeypatch.setattr(kind, "convert", convert)
    with pytest.raises(
        MeasureError, match=r"1 of 3 could not be measured[^\n]*\n  Logits .*: RuntimeError: no such op"
    ):
        few(path, runtime="onnxruntime", rounds=1, passes=1, accept_noise=True)
    assert len(Table.read(path).entries) == len(FEW) - 1


def test_a_converter_that_dies_costs_what_it_was_busy_with(local, path, monkeypatch):
    pytest.importorskip("onnxruntime")
    started = []

    class Dying(LocalConverter):
        def __init__(self, *args):
            super().__init__(*args)
            started.append(self)

        def convert(self, probes, files):
            for probe in probes:
                if LOGITS in probe.key:
                    raise WorkerDeathError("the process ended with signal 11", probe.key)
                super().convert([probe], files)
            return {}

    monkeypatch.setattr("nas.profiling.bench.Converter", Dying)
    with pytest.raises(MeasureError, match=rf"1 of 3 could not be[^\n]*\n  {LOGITS}: the process ended with signal 11"):
        few(path, runtime="onnxruntime", rounds=1, passes=1, accept_noise=True)
    assert len(Table.read(path).entries) == len(FEW) - 1
    assert len(started) == 3  # tried once more
