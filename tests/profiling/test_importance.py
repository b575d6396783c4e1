from __future__ import annotations

from collections import Counter

from nas.core.arch import calls_of
from nas.profiling.importance import MOST_HALVINGS, halvings, in_order, usage
from tests.small import TINY


def test_usage_is_the_share_of_archs_that_need_a_row():
    archs = list(TINY.archs())
    counts = Counter(row for arch in archs for row in {call.row for call in calls_of(arch)})
    used = usage(TINY, samples=2000)
    assert set(used) <= set(counts)
    everywhere = {row for row, count in counts.items() if count == len(archs)}
    assert everywhere
    assert {row for row, share in used.items() if share == 1} == everywhere
    assert all(0 < share <= 1 for share in used.values())


def test_usage_counts_ops_at_op_level():
    used = usage(TINY, "op", samples=50)
    assert set(used) <= set(TINY.op_rows())
    assert max(used.values()) == 1


def test_halvings_of_a_share():
    shares = [1.0, 0.51, 0.5, 0.26, 0.25, 0.1, 1e-9, 0.0]
    assert [halvings(share) for share in shares] == [0, 0, 1, 1, 2, 3, MOST_HALVINGS, MOST_HALVINGS]


def test_rows_that_more_archs_use_come_first_and_equals_in_the_order_of_networks():
    rows, used = TINY.rows(), usage(TINY, samples=500)
    ordered = in_order(rows, used)
    assert sorted(ordered, key=str) == sorted(rows, key=str)
    steps = [halvings(used.get(row, 0.0)) for row in ordered]
    assert steps == sorted(steps)
    always = [row.inputs[0] for row, step in zip(ordered, steps, strict=True) if step == 0]
    sides = [shape[2] for shape in always if shape.is_map]
    assert sides == sorted(sides, reverse=True)
    assert always[0] == (1, 3, 32, 32)
