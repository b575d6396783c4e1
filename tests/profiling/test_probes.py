from __future__ import annotations

import itertools
import json
import random

import pytest
import torch

from nas.core.arch import calls_of
from nas.core.ops import Row, Shape
from nas.core.tracing import macs_of_unit, params_of_unit
from nas.profiling.backends.fake import CALL_US, row_us
from nas.profiling.probes import Probe, chains, formulas
from nas.profiling.selection import spread, typical_bytes
from search_spaces.mobileformer import BridgeIn, BridgeOut, Mobile
from tests.profiling import true_us
from tests.small import TINY


def made_up(probe: Probe) -> float:
    """What a graph takes when only its call and its rows take time."""
    return CALL_US + sum(map(row_us, probe.rows))


@pytest.mark.parametrize("network_bytes", [float("inf"), typical_bytes(TINY), 2000.0])
@pytest.mark.parametrize("level", ["block", "op"])
def test_formulas_give_back_the_rows_of_graphs_whose_times_add_up(level, network_bytes):
    rows = TINY.rows() if level == "block" else TINY.op_rows()
    found = formulas(rows, rows, TINY.input_shape, network_bytes)
    assert [formula.row for formula in found] == list(rows)
    for formula in found:
        value = formula.value({probe.key: made_up(probe) for probe in formula.probes})
        assert value == pytest.approx(true_us(formula.row)), formula.row


def test_the_rows_of_a_network_sum_to_its_time_with_its_call(rng):
    arch = TINY.sample(rng)
    rows = [call.row for call in calls_of(arch)]
    assert sum(map(true_us, rows)) == pytest.approx(CALL_US + sum(map(row_us, rows)))


def test_a_chain_has_no_more_weights_than_a_network():
    limit = 40_000.0
    for formula in formulas(filter(chains, TINY.rows()), TINY.rows(), TINY.input_shape, limit):
        longest = max(formula.probes, key=lambda probe: len(probe.rows))
        assert longest.weight_bytes <= limit or len(longest.rows) == 2
        assert longest.weight_bytes == 4 * len(longest.rows) * params_of_unit(formula.row)


def test_every_probe_runs_on_inputs_of_its_shapes_and_survives_json():
    probes = {probe for formula in formulas(TINY.rows(), TINY.rows(), TINY.input_shape) for probe in formula.probes}
    probes.add(Probe(arch=TINY.sample(random.Random(1))))
    assert len({probe.key for probe in probes}) == len(probes)
    for probe in probes:
        again = Probe.from_data(json.loads(json.dumps(probe.to_data())))
        assert again == probe
        assert again.key == probe.key
    for probe in sorted(probes, key=lambda probe: probe.key)[::9]:
        module = probe.module(seed=0)
        with torch.no_grad():
            assert module(*map(torch.ones, probe.shapes())) is not None
        assert not module.training


def test_networks_to_measure_span_the_space_in_even_steps(rng):
    chosen = spread(TINY, 8, rng, macs_of_unit)
    macs = [sum(macs_of_unit(call.row) for call in calls_of(arch)) for arch in chosen]
    low, high = TINY.extreme(macs_of_unit)[0], TINY.extreme(macs_of_unit, largest=True)[0]
    assert (macs[0], macs[-1]) == (low, high)
    steps = [after / before for before, after in itertools.pairwise(macs)]
    even = (high / low) ** (1 / 7)
    assert max(steps) < even**1.5
    assert min(steps) > even**0.5
    assert set(chosen).isdisjoint(spread(TINY, 8, rng, macs_of_unit, exclude=chosen))


def test_a_bridge_is_timed_behind_a_block_of_its_map_and_one_that_reads_behind_one_that_writes():
    z, x, first = Shape(1, 3, 64), Shape(1, 16, 8, 8), Shape(1, 64)
    mobile = Row(Mobile(cout=16, expand=3, kernel=3, groups=1), (x, first))
    reads, writes = Row(BridgeIn(), (z, x)), Row(BridgeOut(), (x, z))
    for_reads, for_writes = formulas([reads, writes], [mobile, reads, writes], (3, 16, 16))
    cycles = {probe.rows[: len(probe.rows) // max(probe.rows.count(mobile), 1)] for probe in for_reads.probes}
    assert cycles == {(mobile, writes, reads), (mobile, writes)}
    assert {probe.rows[:2] for probe in for_writes.probes if writes in probe.rows} == {(mobile, writes)}
    times = {mobile: 7.0, reads: 3.0, writes: 2.0}
    totals = {
        probe.key: 5 + sum(times[row] for row in probe.rows) for f in (for_reads, for_writes) for probe in f.probes
    }
    assert [formula.value(totals) for formula in (for_reads, for_writes)] == pytest.approx([3.0, 2.0])
