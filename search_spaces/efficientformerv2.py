"""EfficientFormerV2 (arXiv:2212.08059): convolutional feed-forward blocks, the last of stages 3 and 4 with attention.

Attention is mixed with a depthwise convolution of its values and across heads, works at half the resolution in stage 3,
and beside a strided convolution it lowers the resolution before stage 4 (sec. 3). Every block has an expansion of its
own. Structure and counts follow the published code, as timm has it: the residual of a block is layer-scaled, every
convolution keeps its bias although a batch norm follows, and the stem has GELU where V1 has ReLU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from nas.core.arch import Arch, Blocks
from nas.core.blocks import Logits
from nas.core.channels import Layout, Wires, fresh, times
from nas.core.errors import InputError
from nas.core.ops import (
    Add,
    Block,
    Conv,
    Op,
    Residual,
    Shape,
    conv_wires,
    from_stage,
    in_order,
    one_of,
    resized,
    scale_rows,
)
from nas.core.space import Repeat, Space, fill
from search_spaces import Published
from search_spaces.efficientformer import Embedding, Stem
from search_spaces.nextvit import NextPooled, side_by_side

VALUES = 4  # channels of a head's value for each of its key


@dataclass(frozen=True)
class TalkingAttention(Op):
    """Self-attention on a map with talking heads, and a depthwise convolution of the values beside it; GELU behind.

    Sec. 3.2: 1x1 convolutions with batch norm make query, key and value; a bias is learned per head and distance |dy|,
    |dx|; two matrices mix the heads, before the softmax and behind it (arXiv:2003.02436).
    Shape: (N, dim, side, side) -> (N, 4 * heads * key_dim, to, to), by bilinear interpolation where `to` is not `side`.
    """

    dim: int
    side: int
    to: int
    heads: int = 8
    key_dim: int = 32

    def body(self) -> nn.Module:
        return _TalkingAttention(self)

    def fused(self, body: nn.Module) -> nn.Module:
        return _FusedTalkingAttention(self, cast(_TalkingAttention, body))

    def tables(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"bias": functools.partial(resized, side=self.side)}

    def wires(self, *given: Layout) -> Wires | None:
        heads, held = _wires(self, given[0])
        mixed = {f"{part}.{name}": {0: heads} for part in ("before", "behind") for name in ("weight", "bias")}
        for part in ("before", "behind"):
            mixed[f"{part}.weight"][1] = heads
        return Wires([times(heads, VALUES * self.key_dim)], held | mixed)


class _TalkingAttention(nn.Module):
    index: Tensor

    def __init__(self, op: TalkingAttention) -> None:
        super().__init__()
        self.scale = op.key_dim**-0.5
        self.q, self.k, self.v = (conv.body() for conv in _projections(op))
        self.local = _depthwise(VALUES * op.heads * op.key_dim).body()
        self.before, self.behind = (nn.Conv2d(op.heads, op.heads, 1) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(op.heads, op.side**2))
        self.register_buffer("index", _distances(op.side), persistent=False)
        self.act = _resized_gelu(op)

    def forward(self, x: Tensor) -> Tensor:
        value = self.v(x)
        scores = _scores(self.q(x) * self.scale, self.k(x), len(self.bias))
        weights = self.behind(self.before(scores + self.bias[:, self.index]).softmax(3))
        return cast(Tensor, self.act(_mixed(weights, value, self.local(value))))


class _FusedTalkingAttention(nn.Module):
    """One convolution for query, key and value; norms and the softmax scale inside the weights; the bias mixed once."""

    bias: Tensor

    def __init__(self, op: TalkingAttention, body: _TalkingAttention) -> None:
        super().__init__()
        query, key, value = _folded(op, body)
        self.qkv, self.sizes = side_by_side(query, key, value), [conv.out_channels for conv in (query, key, value)]
        self.local = _depthwise(self.sizes[2]).fused(body.local)
        mix, offset = body.before.weight, cast(Tensor, body.before.bias)
        learned = torch.tensordot(mix[:, :, 0, 0], body.bias[:, body.index], 1) + offset.view(-1, 1, 1)
        self.register_buffer("bias", learned.detach())
        self.before = nn.Conv2d(op.heads, op.heads, 1, bias=False, device=mix.device, dtype=mix.dtype)
        self.before.weight = mix
        self.behind, self.act = body.behind, body.act

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).split(self.sizes, 1)
        scores = self.before(_scores(query, key, len(self.bias))) + self.bias
        return cast(Tensor, self.act(_mixed(self.behind(scores.softmax(3)), value, self.local(value))))


@dataclass(frozen=True)
class DownAttention(Op):
    """Attention whose queries are every second position in both directions, of what is around them; GELU behind.

    Sec. 3.3: a query is its position plus a depthwise 3x3 convolution of stride 2; keys and values are those of the
    whole map, and a strided depthwise convolution of the values goes beside. No heads talk.
    Shape: (N, dim, side, side) -> (N, 4 * heads * key_dim, ceil(side / 2), ceil(side / 2)).
    """

    dim: int
    side: int
    heads: int = 8
    key_dim: int = 16

    def body(self) -> nn.Module:
        return _DownAttention(self)

    def fused(self, body: nn.Module) -> nn.Module:
        return _FusedDownAttention(self, cast(_DownAttention, body))

    def tables(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"bias": functools.partial(resized, side=self.side)}

    def wires(self, *given: Layout) -> Wires | None:
        heads, held = _wires(self, given[0])
        around = {f"around.{name}": {0: given[0]} for name in ("weight", "bias")}
        return Wires([times(heads, VALUES * self.key_dim)], held | around)


class _DownAttention(nn.Module):
    index: Tensor

    def __init__(self, op: DownAttention) -> None:
        super().__init__()
        self.scale = op.key_dim**-0.5
        self.around = nn.Conv2d(op.dim, op.dim, 3, 2, 1, groups=op.dim)
        self.q, self.k, self.v = (conv.body() for conv in _projections(op))
        self.local = _depthwise(VALUES * op.heads * op.key_dim, 2).body()
        self.bias = nn.Parameter(torch.zeros(op.heads, op.side**2))
        self.register_buffer("index", _distances(op.side, 2), persistent=False)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        value = self.v(x)
        query = self.q(self.around(x) + x[:, :, ::2, ::2])
        weights = (_scores(query * self.scale, self.k(x), len(self.bias)) + self.bias[:, self.index]).softmax(3)
        return cast(Tensor, self.act(_mixed(weights, value, self.local(value))))


class _FusedDownAttention(nn.Module):
    """A query's own position is one more in the middle of its convolution; else as in `_FusedTalkingAttention`."""

    bias: Tensor

    def __init__(self, op: DownAttention, body: _DownAttention) -> None:
        super().__init__()
        self.q, key, value = _folded(op, body)
        self.kv, self.sizes = side_by_side(key, value), [conv.out_channels for conv in (key, value)]
        self.local = _depthwise(self.sizes[1], 2).fused(body.local)
        self.around, self.act = body.around, body.act
        self.around.weight[:, :, 1, 1] += 1
        self.register_buffer("bias", body.bias[:, body.index].detach())

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.kv(x).split(self.sizes, 1)
        weights = (_scores(self.q(self.around(x)), key, len(self.bias)) + self.bias).softmax(3)
        return cast(Tensor, self.act(_mixed(weights, value, self.local(value))))


def _projections(op: TalkingAttention | DownAttention) -> tuple[Conv, Conv, Conv]:
    """The 1x1 convolutions of query, key and value."""
    keys = op.heads * op.key_dim
    query = key = Conv(op.dim, keys, bias=True)
    return query, key, Conv(op.dim, VALUES * keys, bias=True)


def _depthwise(channels: int, stride: int = 1) -> Conv:
    return Conv(channels, channels, 3, stride, groups=channels, bias=True)


def _folded(op: TalkingAttention | DownAttention, body: Any) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    """The convolutions of query, key and value with their norms, and the query's with the softmax scale."""
    pairs = zip(_projections(op), (body.q, body.k, body.v), strict=True)
    query, key, value = (cast(nn.Conv2d, conv.fused(part)) for conv, part in pairs)
    scale_rows(query, torch.full_like(query.weight[:, 0, 0, 0], body.scale))
    return query, key, value


def _wires(op: TalkingAttention | DownAttention, x: Layout) -> tuple[Layout, dict[str, dict[int, Layout]]]:
    """The heads, and what holds them that both kinds of attention have."""
    heads = fresh(op.heads)
    keys, values = times(heads, op.key_dim), times(heads, VALUES * op.key_dim)
    held = conv_wires(keys, x, "q.") | conv_wires(keys, x, "k.") | conv_wires(values, x, "v.")
    return heads, held | conv_wires(values, place="local.") | {"bias": {0: heads}}


def _distances(side: int, stride: int = 1) -> Tensor:
    """|dy| * side + |dx| from every `stride`-th position to every position, (ceil(side / stride)**2, side**2)."""
    steps = torch.arange(side)
    distance = (steps[::stride, None] - steps[None, :]).abs()
    return (distance[:, None, :, None] * side + distance[None, :, None, :]).reshape(-1, side**2)


def _resized_gelu(op: TalkingAttention) -> nn.Module:
    resize = [nn.Upsample((op.to, op.to), mode="bilinear")] if op.to != op.side else []
    return nn.Sequential(*resize, nn.GELU())


def _scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """(N, heads * d, h, w) and (N, heads * d, H, W) -> (N, heads, h * w, H * W)."""
    return _by_head(query, heads).transpose(2, 3) @ _by_head(key, heads)


def _mixed(weights: Tensor, value: Tensor, local: Tensor) -> Tensor:
    """Values under these weights (N, heads, h * w, H * W), as a map, plus `local` (N, C, h, w)."""
    return (_by_head(value, weights.shape[1]) @ weights.transpose(2, 3)).reshape(local.shape) + local


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(N, heads * d, H, W) -> (N, heads, d, H * W)."""
    return x.reshape(x.shape[0], heads, x.shape[1] // heads, x.shape[2] * x.shape[3])


@dataclass(frozen=True)
class GeluStem(Stem):
    """V1's stem with GELU. Image -> map, side / 2**convs."""

    act: ClassVar[str] = "gelu"


@dataclass(frozen=True)
class ConvMLP(Block):
    """1x1, depthwise 3x3 and 1x1 convolution in a layer-scaled residual (sec. 3.1). Map -> same shape."""

    ratio: int = one_of(2, 3, 4)

    def build(self, x: Shape) -> nn.Module:
        return conv_mlp(x.channels, x.channels * self.ratio)


def conv_mlp(channels: int, hidden: int) -> Residual:
    """Expand, convolve each channel by itself, project; batch norms, GELU. Map -> same shape."""
    convs = (
        Conv(channels, hidden, act="gelu", bias=True),
        Conv(hidden, hidden, 3, groups=hidden, act="gelu", bias=True),
        Conv(hidden, channels, bias=True),
    )
    return Residual(in_order(*convs), channels)


@dataclass(frozen=True)
class AttentionMLP(Block):
    """Attention of a map in a layer-scaled residual, then a `ConvMLP` (sec. 3.2). Map -> same shape.

    Attributes:
        ratio: of the MLP.
        stride: 2 has a strided depthwise convolution before the attention, and interpolation behind it.
        heads, key_dim: as in `TalkingAttention`.
    """

    ratio: int = one_of(2, 3, 4)
    stride: int = 1
    heads: int = 8
    key_dim: int = 32

    def build(self, x: Shape) -> nn.Module:
        dim, side = x.channels, x.side
        strided: tuple[Op, ...] = ()
        if self.stride > 1:
            strided = (Conv(dim, dim, 3, self.stride, groups=dim, bias=True),)
        attention = TalkingAttention(dim, -(-side // self.stride), side, self.heads, self.key_dim)
        project = Conv(VALUES * self.heads * self.key_dim, dim, bias=True)
        return nn.Sequential(Residual(in_order(*strided, attention, project), dim), conv_mlp(dim, dim * self.ratio))


@dataclass(frozen=True)
class DualPath(Block):
    """Attention beside a 3x3 convolution, both to half the side (sec. 3.3). Map -> map (N, cout, H / 2, W / 2)."""

    cout: int = from_stage()
    heads: int = 8
    key_dim: int = 16

    def build(self, x: Shape) -> nn.Module:
        attention = DownAttention(x.channels, x.side, self.heads, self.key_dim)
        project = Conv(VALUES * self.heads * self.key_dim, self.cout, bias=True)
        return _DualPath(in_order(attention, project), Conv(x.channels, self.cout, 3, 2, bias=True))


class _DualPath(nn.Module):
    def __init__(self, attention: nn.Module, conv: Conv) -> None:
        super().__init__()
        self.attention, self.conv, self.add = attention, conv.module(), Add().module()

    def forward(self, x: Tensor) -> Any:
        return self.add(self.attention(x), self.conv(x))


HEAD = (NextPooled(), Logits())


@dataclass(frozen=True)
class Waisted(Repeat):
    """A `Repeat` whose blocks in the middle have another expansion, and whose last blocks have attention.

    All published nets expand less in the middle of a stage. A step of `start` or `end` changes one block. Where the two
    leave no middle, every block has `ratio`; where all have it, `start` and `end` say nothing.

    Attributes:
        attends: the block of the last places.
        attention: choice of how many those are; all of the stage's blocks where it has fewer.
        ratio: expansion of the first `start` and the last `end` blocks.
        waist: that of the others.
    """

    attends: Block = AttentionMLP(from_stage())
    attention: Any = 0
    ratio: Any = 4
    waist: Any = 4
    start: Any = 1
    end: Any = 1

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        depth = picked["depth"]
        local = depth - min(picked["attention"], depth)
        middle = range(picked["start"], depth - picked["end"])
        ratios = (picked["waist" if place in middle else "ratio"] for place in range(depth))
        blocks = (
            fill(self.body if place < local else self.attends, picked, ratio=ratio)
            for place, ratio in enumerate(ratios)
        )
        return (fill(self.entry, picked, cout=picked["width"]), *blocks)

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        ratios = [getattr(block, "ratio", 0) for block in blocks[1:]]
        found: dict[str, Any] = {"width": getattr(blocks[0], "cout", None), "depth": len(ratios), "ratio": ratios[0]}
        attention = sum(type(block) is type(self.attends) for block in blocks)
        found |= {"attention": attention} if attention < len(ratios) else {}
        others = [place for place, ratio in enumerate(ratios) if ratio != ratios[0]]
        if not others:
            return found
        return found | {"waist": ratios[others[0]], "start": others[0], "end": len(ratios) - 1 - others[-1]}


MLP, EARLY = ConvMLP(from_stage()), one_of(1, 2, 3, 4, 5)
EXPANDS: dict[str, Any] = {"ratio": one_of(3, 4), "waist": one_of(2, 3, 4)}
DOWN = AttentionMLP(from_stage(), stride=2)

SPACE = Space(
    name="efficientformerv2",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Repeat(GeluStem(), ConvMLP(), one_of(24, 32, 40, 48), EARLY),
        Repeat(Embedding(), ConvMLP(), one_of(48, 64, 80, 96), EARLY),
        Waisted(
            Embedding(),
            MLP,
            one_of(96, 120, 144, 168, 192),
            one_of(2, 4, 6, 9, 12, 15),
            attends=DOWN,
            attention=one_of(0, 2, 4, 6),
            start=one_of(1, 2, 4),
            end=one_of(2, 3, 4),
            **EXPANDS,
        ),
        Waisted(
            DualPath(),
            MLP,
            one_of(176, 224, 288, 336, 384),
            one_of(2, 4, 6, 8, 10),
            attention=one_of(0, 2, 4, 6),
            start=one_of(1, 2, 3),
            end=one_of(1, 2, 3),
            **EXPANDS,
        ),
    ),
    head=HEAD,
)

SMALL_MLP, THIN = ConvMLP(one_of(2, 4)), one_of(1, 2, 3)
SMALL_EXPANDS: dict[str, Any] = {"ratio": 4, "waist": one_of(2, 4), "attention": one_of(0, 1, 2)}

SMALL = Space(
    name="efficientformerv2-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Repeat(GeluStem(convs=1), SMALL_MLP, one_of(16, 32), THIN),
        Repeat(Embedding(), SMALL_MLP, one_of(32, 48), THIN),
        Waisted(
            Embedding(),
            MLP,
            one_of(48, 64),
            one_of(1, 2, 3, 4),
            attends=replace(DOWN, heads=4, key_dim=16),
            **SMALL_EXPANDS,
        ),
        Waisted(
            DualPath(heads=4, key_dim=8),
            MLP,
            one_of(96, 128),
            one_of(1, 2, 3),
            attends=AttentionMLP(from_stage(), heads=4, key_dim=16),
            **SMALL_EXPANDS,
        ),
    ),
    head=HEAD,
)

SPACES = (SMALL,)


def make(
    widths: Sequence[int],
    depths: Sequence[int],
    attention: int,
    *,
    ratios: Sequence[int | Sequence[int]] = (4, 4, 4, 4),
    side: int = 224,
    classes: int = 1000,
    stem_convs: int = 2,
) -> Arch:
    """An EfficientFormerV2 of any size, on the grid of the shipped space or off it.

    Args:
        widths: channels of the four stages.
        depths: blocks of the four stages.
        attention: how many of the last blocks of stage 3 and of stage 4 have attention.
        ratios: of the MLPs in each stage, one number or one for each block.
        side: input side in pixels.
        classes: number of logits.
        stem_convs: 2 for the published stem, 1 for the small form.

    Raises:
        InputError: where a stage has not as many ratios as blocks.
    """
    entries = (GeluStem(widths[0], stem_convs), Embedding(widths[1]), Embedding(widths[2]), DualPath(widths[3]))
    stages: list[Blocks] = []
    for index, (entry, depth, given) in enumerate(zip(entries, depths, ratios, strict=True)):
        each = [given] * depth if isinstance(given, int) else list(given)
        if len(each) != depth:
            raise InputError(f"make: stage {index + 1} has {depth} blocks, got {len(each)} ratios: {given}")
        plain = depth - attention if index >= 2 else depth
        kinds = (ConvMLP(r) if n < plain else AttentionMLP(r, 2 if index == 2 else 1) for n, r in enumerate(each))
        stages.append((entry, *kinds))
    head = (NextPooled(), Logits(classes))
    return Arch(SPACE.name, (3, side, side), classes, (*stages, head))


def _waisted(depth: int, start: int, end: int) -> list[int]:
    return [4] * start + [3] * (depth - start - end) + [4] * end


PRESETS: Mapping[str, Arch] = {
    "efficientformerv2-s0": make(
        (32, 48, 96, 176), (2, 2, 6, 4), 2, ratios=(4, 4, _waisted(6, 1, 2), _waisted(4, 1, 1))
    ),
    "efficientformerv2-s1": make(
        (32, 48, 120, 224), (3, 3, 9, 6), 2, ratios=(4, 4, _waisted(9, 2, 3), _waisted(6, 2, 2))
    ),
    "efficientformerv2-s2": make(
        (32, 64, 144, 288), (4, 4, 12, 8), 4, ratios=(4, 4, _waisted(12, 2, 4), _waisted(8, 2, 2))
    ),
    "efficientformerv2-l": make(
        (40, 80, 192, 384), (5, 5, 15, 10), 6, ratios=(4, 4, _waisted(15, 4, 4), _waisted(10, 3, 3))
    ),
}


PUBLISHED: Mapping[str, Published] = {
    f"efficientformerv2-{size}": Published(top1, "arXiv:2212.08059, results table", "300 epochs, distilled")
    for size, top1 in (("s0", 0.757), ("s1", 0.790), ("s2", 0.816), ("l", 0.833))
}


def from_timm(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """The weights of timm's `efficientformerv2_*`, under the names of our model of the same architecture.

    Args:
        state: timm's state dict, with both heads.
        arch: the architecture to load into, such as a preset.
    """
    names = dict(_names(arch))
    prefixes = ((key, key.rpartition(".")[0] + ".") for key in state)
    return {
        names.get(key) or names[prefix] + key.removeprefix(prefix): state[key]
        for key, prefix in prefixes
        if key in names or prefix in names
    }


def _names(arch: Arch) -> Iterator[tuple[str, str]]:
    """Where timm's layers stand in ours: whole names, or those before `weight` and `bias`."""
    for index, stage in enumerate(arch.stages[:-1]):
        for number, block in enumerate(stage):
            theirs, ours = f"stages.{index}.blocks.{number - 1}.", f"stages.{index}.{number}.body."
            theirs = theirs if number else f"stages.{index}.downsample." if index else "stem."
            yield from ((theirs + key, ours + name) for key, name in _block_names(block))
    head = len(arch.stages) - 1
    yield "norm.", f"stages.{head}.0.body.0.body.0."
    yield "head.", f"stages.{head}.1.body.body.heads.0."
    yield "head_dist.", f"stages.{head}.1.body.body.heads.1."


def _block_names(block: Block) -> Iterator[tuple[str, str]]:
    """Where timm's layers of a block stand in ours."""
    if isinstance(block, GeluStem):
        for step in range(block.convs):
            yield from _conv_names(f"conv{step + 1}", f"{step}.body")
    elif isinstance(block, Embedding):
        yield from _conv_names("conv", "body")
    elif isinstance(block, DualPath):
        yield from _conv_names("conv", "conv.body")
        yield from _attention_names("attn.", "attention.0.body.", {"q.proj": "q"}, "attention.1.body")
        yield "attn.q.local.", "attention.0.body.around."
    else:
        mlp = "1." if isinstance(block, AttentionMLP) else ""
        for step, name in enumerate(("fc1", "mid", "fc2")):
            yield from _conv_names(f"mlp.{name}", f"{mlp}body.{step}.body")
        yield "ls2.", f"{mlp}scale.body."
    if isinstance(block, AttentionMLP):
        at = int(block.stride > 1)
        yield from _conv_names("token_mixer.stride_conv", "0.body.0.body") if at else ()
        yield from _attention_names("token_mixer.", f"0.body.{at}.body.", {"q": "q"}, f"0.body.{at + 1}.body")
        for name, place in {"talking_head1": "before", "talking_head2": "behind"}.items():
            yield f"token_mixer.{name}.", f"0.body.{at}.body.{place}."
        yield "ls1.", "0.scale.body."


def _attention_names(theirs: str, ours: str, query: Mapping[str, str], project: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}attention_biases", f"{ours}bias"
    for key, name in {**query, "k": "k", "v": "v", "v_local": "local"}.items():
        yield from _conv_names(theirs + key, ours + name)
    yield from _conv_names(f"{theirs}proj", project)


def _conv_names(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.conv.", f"{ours}.0."
    yield f"{theirs}.bn.", f"{ours}.1."
