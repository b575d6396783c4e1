from __future__ import annotations

import functools
import itertools
import json
import random
from dataclasses import replace

import pytest

from nas.core.arch import Arch, calls_of, steps_of
from nas.core.errors import InputError
from nas.core.ops import one_of
from nas.core.space import Either, Repeat, Space
from search_spaces import efficientformer as ef
from search_spaces import hybrid
from search_spaces.hybrid import Split
from search_spaces.mobileformer import Bridged, FirstBridged, Lite, Mobile, MobileDown, MobileStem
from search_spaces.nextvit import Groups
from tests.small import TINY


@functools.cache
def all_archs(space):
    """Every arch, by trying every combination of parameters: slow and obviously right."""
    values = itertools.product(*(choice.values for choice in space.choices.values()))
    return {space.arch(dict(zip(space.choices, item, strict=True))) for item in values}


def mixed(**fields):
    """Two stages of several kinds; tokens of three numbers and two widths, of which one pair is not legal."""
    body = Mobile(expand=2, kernel=3)
    first = Either.of(
        mb4d=Repeat(ef.Stem(convs=1), ef.MB4D(2), one_of(16, 32), 1),
        mobileformer=FirstBridged(body, body, one_of(16, 24), 1, one_of(True, False), starts=STARTS),
    )
    second = Either.of(
        mb4d=Repeat(ef.Embedding(), ef.MB4D(2), one_of(32, 48), one_of(1, 2)),
        mb3d=Split(ef.Embedding(), ef.MB4D(2), one_of(32, 48), one_of(1, 2), ef.MB3D(2), one_of(1, 2)),
        nextvit=Groups(32, 1, 1, one_of("T", "H"), 50, 2, 2),
        mobileformer=Bridged(MobileDown(), body, one_of(32, 48), one_of(1, 2), one_of(True, False)),
    )
    shared = {"tokens": one_of(1, 2, 3), "dim": one_of(16, 32)}
    settings = {"monotone": False, "shared": shared, "settle": wide_when_many}
    return Space("hybrid-32", (3, 16, 16), 5, (first, second), hybrid.head, **settings | fields)


def wide_when_many(shared):
    return shared | {"dim": 32 if shared["tokens"] == 3 else shared["dim"]}


STARTS = tuple((width, (MobileStem(8), Lite(8))) for width in (16, 24))
MIXED = mixed()
SPACES = [
    MIXED,
    mixed(rise=1),
    mixed(rise=0, settle=None),
    TINY,
    replace(TINY, tail=one_of(1, 2)),
    replace(TINY, tail=one_of(0, 1, 2, 3, 4)),
    replace(TINY, tail=0),
    replace(TINY, monotone=False),
]


@pytest.mark.parametrize(
    "space",
    SPACES,
    ids=["mixed", "places rise", "places stay", "tiny", "tail 1-2", "tail 0-4", "no tail", "not monotone"],
)
def test_the_walk_finds_exactly_what_brute_force_finds(space):
    expected = all_archs(space)
    listed = list(space.archs())
    assert len(listed) == len(set(listed)) == space.count() == len(expected)
    assert set(listed) == expected
    assert set(space.rows()) == {call.row for arch in expected for call in calls_of(arch)}
    assert set(space.op_rows()) == {op.row for arch in expected for call in calls_of(arch) for op in call.ops}


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("space", SPACES[:5])
def test_the_extreme_is_that_of_brute_force(space, largest):
    rng = random.Random(4)
    costs = {row: rng.uniform(1, 2) for row in space.all_rows()}
    totals = {arch: sum(costs[call.row] for call in steps_of(arch)) for arch in all_archs(space)}
    total, arch = space.extreme(costs.__getitem__, largest)
    assert total == pytest.approx((max if largest else min)(totals.values()))
    assert totals[arch] == pytest.approx(total)


def test_the_number_of_archs_by_hand():
    # stage 2: 2 ratios x 2 depths; widths of 2 and 3: (16, 16), (16, 32), (32, 32); stage 3: 2 depths; stage 4: 2 x 2
    assert replace(TINY, tail=0).count() == 4 * 3 * 2 * 4


@pytest.mark.parametrize("space", [*SPACES, ef.SPACE, ef.SMALL], ids=lambda space: space.name)
def test_parameters_and_archs_go_both_ways(space, rng):
    for _ in range(50):
        arch = space.sample(rng)
        params = space.params_of(arch)
        assert list(params) == list(space.choices)
        assert space.arch(params) == arch
        assert arch in space
        neighbour = space.mutate(arch, rng)
        assert neighbour != arch
        assert neighbour in space


def test_a_kind_takes_its_nearest_value_of_a_shared_parameter():
    params = {name: choice.values[0] for name, choice in MIXED.choices.items()} | {"stage1.kind": "mobileformer"}
    assert MIXED.choices["stage1.width"].values == (16, 24, 32)
    stages = [MIXED.arch(params | {"stage1.width": width}).stages[0] for width in (16, 24, 32)]
    assert [block.cout for stage in stages for block in stage if isinstance(block, Mobile)] == [16, 24, 24]


def test_shared_values_without_a_stage_that_reads_them_make_no_other_arch():
    params = {name: choice.values[0] for name, choice in MIXED.choices.items()}
    plain = {MIXED.arch(params | {"tokens": tokens, "dim": dim}) for tokens in (1, 2, 3) for dim in (16, 32)}
    assert len(plain) == 1
    read = params | {"stage2.kind": "mobileformer", "stage2.bridges": True}
    archs = {MIXED.arch(read | {"tokens": tokens, "dim": dim}) for tokens in (1, 2, 3) for dim in (16, 32)}
    assert len(archs) == 5  # three tokens are 32 wide in either case


def test_contradicting_choices_are_settled_into_one_arch():
    base = {name: choice.values[0] for name, choice in TINY.choices.items()}
    narrow = TINY.arch(base | {"stage2.width": 32, "stage3.width": 16})
    assert narrow == TINY.arch(base | {"stage2.width": 32, "stage3.width": 32})
    assert TINY.arch(base | {"tail": 2}) == TINY.arch(base | {"tail": 3})  # both stages that may have it are full


def test_the_tail_is_counted_from_the_end_of_the_net():
    params = {name: choice.values[-1] for name, choice in TINY.choices.items()} | {"tail": 3}
    kinds = [[type(block).__name__ for block in stage] for stage in TINY.arch(params).stages]
    assert kinds[2:4] == [["Embedding", "MB4D", "MB3D"], ["Embedding", "MB3D", "MB3D"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage2.widht": 16}, r"unknown parameter 'stage2.widht', did you mean 'stage2.width'"),
        ({"stage2.width": 24}, r"stage2.width: expected one of 16, 32; got 24"),
    ],
)
def test_a_bad_parameter_is_named(change, message):
    params = {name: choice.values[0] for name, choice in TINY.choices.items()}
    with pytest.raises(InputError, match=message):
        TINY.arch(params | change)
    with pytest.raises(InputError, match=r"no value for stage2.width"):
        TINY.arch({name: value for name, value in params.items() if name != "stage2.width"})


def test_an_arch_outside_the_space_is_refused_saying_where():
    arch = ef.make((48, 96, 224, 448), (3, 2, 6, 4), 1, ratios=(4, 4, 3, 4))
    assert arch in ef.SPACE
    for outside in (
        ef.make((40, 96, 224, 448), (3, 2, 6, 4), 1),
        ef.make((48, 96, 224, 448), (3, 2, 6, 4), 1, side=256),
    ):
        with pytest.raises(InputError, match=r"expected one of|is no point of space"):
            ef.SPACE.params_of(outside)
        assert outside not in ef.SPACE


def test_a_matrix_of_row_numbers_spells_the_arch(rng):
    archs = [TINY.sample(rng) for _ in range(20)]
    matrix = TINY.encode(archs)
    rows = TINY.rows()
    for arch, line in zip(archs, matrix, strict=True):
        assert [rows[number] for number in line if number < len(rows)] == [call.row for call in calls_of(arch)]


def test_sampling_is_a_function_of_its_randomness():
    first = [ef.SPACE.sample(random.Random(seed)) for seed in range(5)]
    assert first == [ef.SPACE.sample(random.Random(seed)) for seed in range(5)]
    assert len(set(first)) == 5


GOOD = json.loads(TINY.arch({name: choice.values[0] for name, choice in TINY.choices.items()}).to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("classes"), r"a\.json\.classes: is missing"),
        (lambda data: data.update(clases=1), r"a\.json: unknown key 'clases', did you mean 'classes'"),
        (lambda data: data.update(family="nextvt"), r"unknown space 'nextvt'"),
        (
            lambda data: data.update(input=[3, 32]),
            r"a\.json\.input: expected \[channels, height, width\], 1 to 65536 each, got \[3, 32\]",
        ),
        (lambda data: data.update(classes="ten"), r"a\.json\.classes: expected int, got 'ten'"),
        (lambda data: data["stages"][1][1].update(ratio="x"), r"a\.json\.stages\[1\]\[1\]: MB4D.ratio: expected int"),
        (
            lambda data: data["stages"][1][1].pop("ratio"),
            r"a\.json\.stages\[1\]\[1\]: MB4D: field 'ratio' has no value",
        ),
        (lambda data: data["stages"][1][1].update(block="MB5D"), r"unknown block or op 'MB5D', did you mean 'MB"),
        (lambda data: data["stages"][1][1].update(block="Add", ratio=None), r"stages\[1\]\[1\]"),
    ],
)
def test_a_malformed_arch_is_named_by_path(change, message):
    data = json.loads(json.dumps(GOOD))
    change(data)
    with pytest.raises(InputError, match=message):
        Arch.from_json(json.dumps(data), "a.json")


def test_text_that_is_no_json_is_named_by_line():
    with pytest.raises(InputError, match=r"a\.json: not JSON: .* at line 2 column 1"):
        Arch.from_json("{\n", "a.json")


def test_blocks_that_do_not_fit_together_are_named():
    arch = TINY.arch({name: choice.values[0] for name, choice in TINY.choices.items()})
    broken = replace(arch, stages=(arch.stages[-1], *arch.stages[1:]))
    with pytest.raises(InputError, match="stage 2: Embedding"):
        calls_of(broken)


def test_spaces_that_contradict_themselves_are_refused():
    with pytest.raises(InputError, match="tail: expected every number from 0 or 1"):
        replace(TINY, tail=one_of(0, 2))
    with pytest.raises(InputError, match="depth: every stage needs at least one block"):
        replace(TINY, stages=(*TINY.stages[:3], replace(TINY.stages[3], depth=one_of(0, 1))))
