from __future__ import annotations

import random

import pytest
import torch

import search_spaces
from nas.core.arch import calls_of
from nas.core.errors import MeasureError
from nas.profiling.insitu import Inside, attribute, cover, module_path, node_cost_us, owners, row_times
from nas.profiling.probes import Probe

SPACE = search_spaces.load("efficientformer-32")


def test_the_networks_hold_every_row_and_are_few():
    chosen = cover(SPACE, SPACE.rows())
    held = {call.row for arch in chosen for call in calls_of(arch)}
    assert held == set(SPACE.rows())
    assert len(chosen) < len(SPACE.rows()) / 2
    assert cover(SPACE, SPACE.rows()) == chosen


def test_only_the_rows_asked_for_are_covered():
    wanted = SPACE.rows()[:3]
    chosen = cover(SPACE, wanted)
    assert len(chosen) <= 3
    assert set(wanted) <= {call.row for arch in chosen for call in calls_of(arch)}


def test_the_owners_are_the_blocks_of_the_module_in_order(rng):
    arch = SPACE.sample(rng)
    named = dict(Probe(arch=arch).module(0).named_modules())
    assert [row for _, row in owners(arch)] == [call.row for call in calls_of(arch)]
    for path, row in owners(arch):
        assert named[path].block == row.unit


def test_a_name_gives_its_module_path():
    assert module_path("/stages.0.1/body/body.0/body/Conv") == "stages.0.1.body.0.body"
    assert module_path("/stages.1.0/scale/Mul_output_0_nchwc") == "stages.1.0.scale"
    assert module_path("ReorderInput_token_3") == ""


def test_the_names_of_an_exported_network_say_their_modules(tmp_path):
    onnx = pytest.importorskip("onnx")
    from nas.networks.export import write_onnx

    probe = Probe(arch=SPACE.sample(random.Random(1)))
    module = probe.module(0)
    write_onnx(module, probe.shapes(), tmp_path / "net.onnx")
    paths = {path for path, _ in module.named_modules()}
    found = [module_path(node.name) for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert {path for path in found if path} <= paths
    assert sum(map(bool, found)) > 0.8 * len(found)


def test_nodes_without_a_name_belong_to_the_block_before():
    paths = ["stages.0.0", "stages.0.1", "head.0"]
    run = [
        ("/stages.0.0/body/Conv", 5.0),
        ("ReorderOutput", 1.0),
        ("/stages.0.1/body/Add", 3.0),
        ("/stages.0.0/late/Mul", 2.0),
        ("output0", 4.0),
    ]
    slow = [(name, 2 * us) for name, us in run]
    assert attribute([run], paths) == Inside((8.0, 3.0, 4.0), (3, 1, 1))
    assert attribute([run, slow, run], paths).us == (8.0, 3.0, 4.0)


def test_nodes_that_mostly_say_no_block_are_refused():
    with pytest.raises(MeasureError, match=r"91% of the time .*'fused_7'.*--method chains"):
        attribute([[("fused_7", 10.0), ("/stages.0.0/Conv", 1.0)]], ["stages.0.0"])
    disturbed = [[("/stages.0.0/Conv", 9.0), ("ReorderInput", us)] for us in (1.0, 1.0, 500.0)]
    assert attribute(disturbed, ["stages.0.0"]).us == (10.0,)
    with pytest.raises(MeasureError, match="no node times"):
        attribute([], ["stages.0.0"])


def test_rows_come_back_from_made_up_node_times(rng):
    true = {row: float(3 + number) for number, row in enumerate(SPACE.rows())}
    nodes, cost = 4, 0.5
    insides = {
        arch: [Inside(tuple(true[row] + cost * nodes for _, row in owners(arch)), (nodes,) * len(owners(arch)))] * 2
        for arch in cover(SPACE, SPACE.rows())
    }
    plain = {arch: sum(true[row] for _, row in owners(arch)) for arch in list(insides)[:5]}
    assert node_cost_us(insides, plain) == pytest.approx(cost)
    found = row_times(insides, cost)
    assert {row: us for row, (us, _, _) in found.items()} == pytest.approx(true)


def test_the_spread_of_a_row_is_that_of_processes_not_of_networks(rng):
    archs = cover(SPACE, SPACE.rows())
    first = [Inside(tuple(100.0 + 10 * number for _ in owners(arch)), (1,) * len(owners(arch))) for number, arch in
             enumerate(archs)]  # fmt: skip
    second = [Inside(tuple(us + 7 for us in inside.us), inside.nodes) for inside in first]
    found = row_times(dict(zip(archs, map(list, zip(first, second, strict=True)), strict=True)), 0.0)
    assert {round(spread, 6) for _, spread, _ in found.values()} == {7.0}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_runtimes_node_times_reach_every_block(tmp_path, runtime):
    pytest.importorskip(runtime)
    from nas.profiling.backends import load_backend

    torch.set_num_threads(1)
    arch = SPACE.sample(random.Random(2))
    probe, backend = Probe(arch=arch), load_backend(runtime)()
    backend.convert(probe.module(0), probe.shapes(), tmp_path / "net")  # type: ignore[attr-defined]
    session = backend.load_profiled(tmp_path / "net", probe.shapes())  # type: ignore[attr-defined]
    for _ in range(4):
        session.run()
    runs = session.nodes()
    assert all(us >= 0 for run in runs for _, us in run)
    equal = [[(name, 1.0) for name, _ in run] for run in runs]  # how long they took depends on what else runs here
    inside = attribute(equal, [path for path, _ in owners(arch)])
    assert sum(map(bool, inside.nodes)) >= len(inside.nodes) - 2  # a runtime may fuse the ends into their neighbours
    assert inside.us == pytest.approx(inside.nodes)
