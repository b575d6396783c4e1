from __future__ import annotations

import random

import numpy as np
import pytest

from nas.core.errors import MeasureError
from nas.core.tracing import calls_of_unit, macs_of_unit, params_of_unit
from nas.profiling.backends.fake import row_us
from nas.profiling.prediction import LEAST_ROWS, features, kinds_of, predict
from nas.tables.table import Entry
from tests.small import TINY

ROWS = TINY.rows()


def split(count: int, noise: float = 0.0) -> tuple[list[Entry], list]:
    rng = random.Random(0)
    rows = rng.sample(ROWS, len(ROWS))
    known = [Entry(row, row_us(row) * rng.lognormvariate(0, noise), 0.1, 5) for row in rows[:count]]
    return known, rows[count:]


def test_features_sum_over_ops_and_over_their_kinds():
    row = ROWS[0]
    kinds = kinds_of(ROWS)
    first, *rest = features(row, kinds)
    assert first == 1
    table = np.reshape(rest, (1 + len(kinds), 4))
    np.testing.assert_allclose(table[0], table[1:].sum(0))
    ops = calls_of_unit(row).ops
    assert table[0, 0] == len(ops)
    assert table[0, 1] == macs_of_unit(row) == sum(macs_of_unit(op.row) for op in ops)
    assert table[0, 2] == params_of_unit(row)
    shapes = [shape for op in ops for shape in (*op.row.inputs, *op.outputs)]
    assert table[0, 3] == 4 * sum(int(np.prod(shape)) for shape in shapes)


def test_rows_whose_times_follow_from_their_ops_are_predicted_closely():
    known, others = split(len(ROWS) * 2 // 3)
    found = predict(known, others)
    assert [entry.row for entry in found.entries] == others
    assert {entry.source for entry in found.entries} == {"predicted"}
    assert {entry.count for entry in found.entries} == {0}
    assert found.behind == len(known)
    errors = [entry.us / row_us(entry.row) - 1 for entry in found.entries]
    assert np.mean(np.abs(errors)) < 0.15


def test_the_standard_error_is_about_what_other_rows_are_off_by():
    known, others = split(len(ROWS) * 2 // 3, noise=0.2)
    found = predict(known, others)
    assert {round(entry.spread_us / entry.us, 9) for entry in found.entries} == {round(found.error, 9)}
    assert 0.1 < found.error < 0.5
    assert found.mape_percent / 100 < found.error  # a mean is below a root of mean squares


def test_from_a_handful_of_rows_nothing_is_predicted():
    known, others = split(LEAST_ROWS - 1)
    with pytest.raises(MeasureError, match=r"11 rows are measured; to predict \d+ others from them takes at least 12"):
        predict(known, others)


def test_a_row_lost_in_noise_does_not_decide():
    known, others = split(len(ROWS) * 2 // 3)
    zero = Entry(known[0].row, 0.0, 0.1, 5)
    found = predict([zero, *known[1:]], others)
    assert np.isfinite(found.mape_percent)
    assert all(entry.us > 0 for entry in found.entries)
