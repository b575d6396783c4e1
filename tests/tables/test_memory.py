from __future__ import annotations

import random

import numpy as np
import pytest

from nas.core.errors import TableError
from nas.networks.building import cost_of
from nas.tables.memory import fit_memory
from nas.tables.table import NetworkEntry, Table
from tests.small import TINY, fake_table

ARCHS = tuple({TINY.sample(random.Random(seed)): None for seed in range(40)})[:12]


def truth(arch) -> int:
    """A runtime that holds weights twice, activations three times, and 100 kB."""
    cost = cost_of(arch)
    return 2 * 4 * cost.params + 3 * cost.peak_bytes + 100_000


def table_with_memory(known: int) -> Table:
    table = fake_table(TINY)
    networks = [NetworkEntry(arch, 100.0, 0.1, 3, truth(arch) if n < known else None) for n, arch in enumerate(ARCHS)]
    return Table(table.header, table.entries, networks)


def test_the_parts_of_memory_are_found(rng):
    fit = fit_memory(ARCHS, list(map(truth, ARCHS)))
    assert fit.weights == pytest.approx(2, rel=1e-6)
    assert fit.mape_percent == pytest.approx(0, abs=1e-6)
    arch = TINY.sample(rng)
    assert fit.peak_bytes(arch) == pytest.approx(truth(arch))


def test_no_part_is_negative_and_the_error_is_that_of_held_out_networks():
    generator = np.random.default_rng(0)
    measured = [round(truth(arch) * generator.uniform(0.9, 1.1)) for arch in ARCHS]
    fit = fit_memory(ARCHS, measured)
    assert min(fit.weights, fit.activations, fit.base_bytes) >= 0
    errors = []
    for number in range(len(ARCHS)):
        rest = [n for n in range(len(ARCHS)) if n != number]
        other = fit_memory([ARCHS[n] for n in rest], [measured[n] for n in rest])
        errors.append(abs(other.peak_bytes(ARCHS[number]) / measured[number] - 1))
    assert fit.mape_percent == pytest.approx(100 * np.mean(errors))
    assert 1 < fit.mape_percent < 20


def test_a_table_predicts_memory_from_five_networks_on(rng):
    arch = TINY.sample(rng)
    table = table_with_memory(5)
    assert table.memory(arch) > 0
    with pytest.raises(TableError, match=r"has 4 networks with measured memory, a prediction needs 5; .*nas profile"):
        table_with_memory(4).memory(arch)


def test_no_arch_takes_less_than_the_least(rng):
    fit = table_with_memory(12).memory_fit
    params = [cost_of(arch).params for arch in TINY.archs()]
    assert all(fit.least_bytes(min(params)) <= fit.peak_bytes(arch) for arch in TINY.archs())
