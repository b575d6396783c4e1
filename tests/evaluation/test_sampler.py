"""Which images make up each batch, at which resolution, in which process."""

from collections import Counter

import pytest
import torch

from nas.evaluation.sampler import Share, batch_table, in_order, multi_scale, shuffled

SIDES = (160, 192, 256, 288, 320)


def indices_of(plan) -> list[int]:
    return torch.cat([batch.indices for batch in plan]).tolist()


def test_the_batch_table_is_that_of_the_published_code():
    assert batch_table(SIDES, 256, 128) == {160: 327, 192: 227, 256: 128, 288: 101, 320: 81}


def test_the_batch_table_is_that_of_the_paper_where_the_largest_side_is_the_base():
    assert batch_table(SIDES, 320, 128) == {160: 512, 192: 355, 256: 200, 288: 158, 320: 128}


def test_a_batch_is_never_empty():
    assert batch_table((32, 320), 32, 4) == {32: 4, 320: 1}


def test_processes_and_parts_of_a_step_share_the_very_images_of_one_process():
    whole = shuffled(103, 12, seed=5)
    shares = [shuffled(103, 12, 5, Share(rank, world=2, accumulate=3)) for rank in (0, 1)]
    assert [len(plan) for plan in shares] == [24, 24]
    assert {len(batch.indices) for plan in shares for batch in plan} == {2}
    for step, batch in enumerate(whole):
        parts = [part for plan in shares for part in plan[3 * step : 3 * step + 3]]
        assert sorted(indices_of(parts)) == sorted(batch.indices.tolist())


def test_images_in_order_are_all_there_and_the_last_batch_is_smaller():
    assert [batch.indices.tolist() for batch in in_order(5, 2)] == [[0, 1], [2, 3], [4]]


def test_a_multi_scale_epoch_reads_every_image_and_fills_the_last_step_with_the_first():
    table = {32: 16, 48: 7, 64: 4}
    plan = multi_scale(100, table, seed=3)
    read = indices_of(plan)
    assert all(len(batch.indices) == table[batch.side] for batch in plan)
    assert sorted(read[:100]) == list(range(100))
    assert read[100:] == read[: len(read) - 100]
    assert len(read) - 100 < 16


def test_sides_are_drawn_uniformly_and_anew_for_every_epoch():
    table = dict.fromkeys(SIDES, 1)
    plan = multi_scale(10_000, table, seed=0)
    counts = Counter(batch.side for batch in plan)
    assert all(abs(counts[side] - 2000) < 5 * 40 for side in SIDES)  # five standard deviations
    assert [batch.side for batch in multi_scale(100, table, 1)] != [batch.side for batch in multi_scale(100, table, 2)]
    assert indices_of(multi_scale(100, table, 1)) == indices_of(multi_scale(100, table, 1))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_processes_draw_their_own_sides_and_read_together_every_image_once(accumulate):
    table = {32: 16, 48: 7, 64: 4}
    plans = [multi_scale(1000, table, 3, Share(rank, 3, accumulate)) for rank in range(3)]
    assert len({len(plan) for plan in plans}) == 1
    assert len(plans[0]) % accumulate == 0
    assert len({tuple(batch.side for batch in plan) for plan in plans}) == 3
    counts = Counter(index for plan in plans for index in indices_of(plan))
    assert set(counts) == set(range(1000))
    assert sum(counts.values()) - 1000 < 16 * 3 * accumulate
