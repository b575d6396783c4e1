from __future__ import annotations

import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nas.core import ops
from nas.core.errors import InputError
from nas.core.ops import (
    Add,
    BiasAttention,
    Block,
    Classifier,
    Conv,
    Linear,
    Residual,
    Row,
    Shape,
    make_unit,
    one_of,
    parse_unit,
)
from nas.core.tracing import fuse_in_place
from tests.small import randomize

OPS = [
    (Conv(8, 16, 3, 2, act="relu", bias=True), Shape(2, 8, 7, 7)),
    (Conv(8, 8, 3, groups=8, act="gelu"), Shape(2, 8, 7, 7)),
    (Conv(8, 4, norm=False, bias=True), Shape(2, 8, 7, 7)),
    (Linear(8, 6, act="gelu"), Shape(2, 5, 8)),
    (ops.LayerNorm(8), Shape(2, 5, 8)),
    (ops.Scale(8), Shape(2, 8, 3, 3)),
    (ops.Scale(8), Shape(2, 5, 8)),
    (ops.PoolMixer(), Shape(2, 8, 5, 5)),
    (ops.ToTokens(), Shape(2, 8, 5, 5)),
    (ops.ToMap(3), Shape(2, 9, 8)),
    (ops.Mean(), Shape(2, 9, 8)),
    (ops.Mean(), Shape(2, 8, 3, 3)),
    (BiasAttention(16, 3, heads=2, key_dim=4, value_dim=8), Shape(2, 9, 16)),
    (Classifier(8, 5), Shape(2, 8)),
    (Classifier(8, 5, heads=2), Shape(2, 8)),
]


@pytest.mark.parametrize(("op", "shape"), OPS, ids=str)
def test_the_deployed_form_of_an_op_gives_the_same_outputs(op, shape):
    leaf = randomize(op.module()).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected = leaf(x)
        fuse_in_place(leaf)
        torch.testing.assert_close(leaf(x), expected, rtol=1e-10, atol=1e-10)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in leaf.modules())


@pytest.mark.parametrize(("op", "shape"), OPS, ids=str)
def test_an_op_survives_its_text(op, shape):
    name, _, fields = str(op).partition(" ")
    assert parse_unit(name, fields) == op
    assert pickle.loads(pickle.dumps(op)) == op
    assert hash(pickle.loads(pickle.dumps(op))) == hash(op)


@pytest.mark.parametrize("branch", ["conv", "linear", "attention"])
def test_a_layer_scale_folds_into_the_op_before_it(branch):
    body, shape = {
        "conv": (nn.Sequential(Conv(8, 16, act="gelu").module(), Conv(16, 8, bias=True).module()), (2, 8, 4, 4)),
        "linear": (nn.Sequential(Linear(8, 16, act="gelu").module(), Linear(16, 8).module()), (2, 9, 8)),
        "attention": (BiasAttention(8, 3, heads=2, key_dim=4, value_dim=4).module(), (2, 9, 8)),
    }[branch]
    residual = randomize(Residual(body, 8)).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        expected = residual(x)
        fuse_in_place(residual)
        assert residual.scale is None
        torch.testing.assert_close(residual(x), expected, rtol=1e-10, atol=1e-10)


def test_a_layer_scale_that_cannot_fold_stays():
    residual = fuse_in_place(Residual(ops.PoolMixer().module(), 8))
    assert isinstance(residual.scale, ops.Leaf)


def test_two_heads_are_apart_in_training_and_averaged_in_eval():
    heads = Classifier(4, 3, heads=2).module()
    x = torch.randn(2, 4)
    first, second = heads.train()(x)
    torch.testing.assert_close(heads.eval()(x), (first + second) / 2)


def test_drop_path_leaves_whole_branches_out_and_keeps_the_mean():
    residual = Residual(nn.Identity())
    residual.drop_path = 0.25
    torch.manual_seed(0)
    branch = residual.train()(torch.ones(4000, 2, 3)) - 1  # 0 where the branch was left out, 1 / 0.75 elsewhere
    assert {round(value, 4) for value in branch.unique().tolist()} == {0.0, 1.3333}
    assert abs(branch.mean().item() - 1) < 0.05
    assert (branch.amax((1, 2)) == branch.amin((1, 2))).all()


def test_attention_follows_its_formula():
    op = BiasAttention(6, 2, heads=2, key_dim=3, value_dim=5)
    leaf = randomize(op.module()).double().eval()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    body = leaf.body
    outputs = []
    qkv = (x[0] @ body.qkv.weight.T + body.qkv.bias).reshape(4, 2, 11)
    for head in range(2):
        q, k, v = qkv[:, head, :3], qkv[:, head, 3:6], qkv[:, head, 6:]
        scores = q @ k.T / 3**0.5
        for i in range(4):
            for j in range(4):
                scores[i, j] += body.bias[head, abs(i // 2 - j // 2) * 2 + abs(i % 2 - j % 2)]
        outputs.append(torch.softmax(scores, 1) @ v)
    expected = torch.cat(outputs, 1) @ body.proj.weight.T + body.proj.bias
    torch.testing.assert_close(leaf(x)[0], expected)


def test_fields_that_make_unstable_keys_are_refused():
    @dataclass(frozen=True)
    class FloatBlock(Block):
        ratio: object = 0.5

    with pytest.raises(InputError, match=r"FloatBlock.ratio: expected int, bool, str or tuples of them, got 0.5"):
        FloatBlock()


def test_a_class_name_taken_by_another_module_is_refused():
    with pytest.raises(InputError, match=r"the name is taken by nas\.core\.ops"):
        type("Conv", (Block,), {"__module__": "elsewhere"})


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("Konv", "", "unknown block or op 'Konv', did you mean 'Conv'"),
        ("Conv", "cin=3 kout=4", "cannot read field 'kout=4'"),
        ("Conv", "cin=x", "Conv.cin: expected int, got 'x'"),
    ],
)
def test_a_bad_text_is_named(name, fields, message):
    with pytest.raises(InputError, match=message):
        parse_unit(name, fields)


def test_an_open_choice_is_no_block_yet():
    @dataclass(frozen=True)
    class OpenBlock(Block):
        expand: int = one_of(2, 4)
        cout: int = ops.from_stage()

    assert OpenBlock().open_fields() == {"expand": ops.Choice((2, 4))}
    assert OpenBlock().resolved({"expand": 4, "cout": 8}) == OpenBlock(4, 8)
    with pytest.raises(InputError, match=r"OpenBlock: field 'cout' has no value"):
        make_unit("OpenBlock", {"expand": 2})
    with pytest.raises(InputError, match=r"OpenBlock.expand: expected int, got '2'"):
        make_unit("OpenBlock", {"expand": "2", "cout": 8})


def test_a_tuple_field_survives_its_text():
    @dataclass(frozen=True)
    class TupleBlock(Block):
        sizes: tuple[int, ...] = ()
        flag: bool = False

    for block in (TupleBlock((1, 2)), TupleBlock((7,), True), TupleBlock()):
        name, _, fields = str(block).partition(" ")
        assert parse_unit(name, fields) == block


def test_a_row_is_named_by_class_fields_and_shapes():
    row = Row(Add(), (Shape(1, 4, 2, 2), Shape(1, 4, 2, 2)))
    assert str(row) == "Add @ 1x4x2x2, 1x4x2x2"
    assert Shape.parse("1x49x448") == Shape(1, 49, 448)
    assert Shape(1, 49, 448).side == 7
    with pytest.raises(InputError, match="not square"):
        _ = Shape(1, 50, 448).side
