"""What holds for every metric, and the model size against exported files."""

from __future__ import annotations

import random

import numpy as np
import onnx
import pytest

import nas
import search_spaces
from nas import metrics
from nas.core.arch import calls_of, steps_of
from nas.core.errors import BudgetError
from nas.core.tracing import params_of_unit
from nas.networks.export import export_onnx
from nas.search.budgets import Budget
from nas.search.lattice import ArchLattice, sums
from tests.search.fakes import fake_table, tiny_space

SPACE = tiny_space()


@pytest.fixture(scope="module")
def table():
    return fake_table(SPACE)


@pytest.fixture(scope="module")
def archs():
    rng = random.Random(1)
    return [SPACE.sample(rng) for _ in range(40)]


def known(table):
    return [name for name in metrics.names() if name != "memory_mb" or table.knows_memory]


def test_a_metric_is_named_as_its_file():
    assert all(metrics.load_metric(name).name == name for name in metrics.names())
    assert {"latency_ms", "memory_mb", "params", "macs", "size_mb"} <= set(metrics.names())
    with pytest.raises(BudgetError, match="did you mean 'params'"):
        metrics.load_metric("param")


@pytest.mark.parametrize("name", metrics.names())
def test_a_budget_on_any_metric_is_read(name):
    assert Budget.parse(f"{name}<=3").metric == name


def test_many_networks_cost_what_each_does(table, archs):
    for name in known(table):
        metric = metrics.load_metric(name)
        many = metric.of_archs(SPACE, archs, SPACE.encode(archs), table)
        np.testing.assert_allclose(many, [metric.predict(arch, table) for arch in archs], rtol=1e-9)


def test_none_costs_less_than_the_smallest(table, archs):
    for name in known(table):
        metric = metrics.load_metric(name)
        least, arch = metric.smallest(SPACE, table)
        assert min(metric.predict(each, table) for each in archs) >= least * (1 - 1e-9)
        if metric.per_row(SPACE, table) is not None:
            assert metric.predict(arch, table) == pytest.approx(least)


@pytest.mark.parametrize("preset", ["efficientformer-l1", "mobileformer-26m", "mobilevit-xxs"])
def test_the_model_size_is_that_of_the_weights_in_the_exported_file(preset, tmp_path):
    arch = nas.load_arch(preset)
    export_onnx(nas.build(arch), [(1, *arch.input_shape)], tmp_path / "model.onnx")
    weights = sum(
        onnx.numpy_helper.to_array(item).nbytes for item in onnx.load(str(tmp_path / "model.onnx")).graph.initializer
    )
    assert metrics.load_metric("size_mb").predict(arch, None) == pytest.approx(weights / 1e6, rel=0.01)


def test_sums_over_a_space_count_the_parameters_of_blocks_without_ops():
    space = search_spaces.load("mobileformer-32")
    table = fake_table(space)
    everything = list(space.archs())
    counts = [nas.cost_of(arch).params for arch in everything]
    timed = [sum(params_of_unit(call.row) for call in calls_of(arch)) for arch in everything]
    assert max(count - part for count, part in zip(counts, timed, strict=True)) > 0, "tokens have parameters"
    params = metrics.load_metric("params")
    assert params.of_archs(space, everything, space.encode(everything), table).tolist() == counts
    assert params.smallest(space, table)[0] == min(counts)
    lattice = ArchLattice(space)
    paths = np.array([lattice.path_of_arch(arch) for arch in everything[:100]])
    assert sums(lattice.costs(params_of_unit), paths).tolist() == counts[:100]
    latency = table.price_matrix(space, space.encode(everything[:5]))
    np.testing.assert_allclose(latency, [table.price(calls_of(arch)).total_us for arch in everything[:5]])
    assert {call.row for arch in everything for call in calls_of(arch)} == set(space.rows())
    assert {call.row for arch in everything for call in steps_of(arch)} == set(space.all_rows())
