"""Next-ViT (arXiv:2207.05501): convolution blocks (NCB) with one transformer block (NTB) at the end of every group.

A stage is (NCB x N + NTB x 1) x L, the "next hybrid strategy" (sec. 3.4). An NTB attends on the first m of its channels
and convolves the other c (sec. 3.3); r = m / (m + c) is the shrink ratio. Two things follow the published code: keys
and values of E-MHSA are averages of sr * sr consecutive tokens in raster order, not of sr x sr windows (`pool="map"`
has those), and where m = c the second group of channels starts as a copy of the first, without a projection.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas.core.arch import Arch, Blocks
from nas.core.blocks import Logits, divisible
from nas.core.channels import Layout, Wires, cut, fresh
from nas.core.errors import InputError, suggest
from nas.core.ops import (
    Block,
    Concat,
    Conv,
    Mean,
    Op,
    Residual,
    Shape,
    ToMap,
    activation,
    in_order,
    linear_wires,
    norm_wires,
    one_of,
    trunc_normal,
)
from nas.core.space import Space, Stage, fill, values_of
from search_spaces import Published

HEAD_DIM = 32  # channels of a head of attention, and of a group of convolution


@dataclass(frozen=True)
class PointConv(Op):
    """1x1 convolution with bias, an optional batch norm before it, and activation; the norm folds forward.

    Shape: (N, cin, H, W) -> (N, cout, H, W). Where input or output channels are groups side by side (an NTB's attended
    and convolved ones), their sizes stand in `cin_parts` and `cout_parts`.
    """

    cin: int
    cout: int
    act: str = "none"
    prenorm: bool = False
    cin_parts: tuple[int, ...] = ()
    cout_parts: tuple[int, ...] = ()

    def body(self) -> nn.Module:
        return _PointConv(self)

    def fused(self, body: nn.Module) -> nn.Module:
        point = cast(_PointConv, body)
        if point.norm is not None:
            point.conv, point.norm = fold_before(point.conv, point.norm), None
        return point

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        before, behind = self.cin_parts or (self.cin,), self.cout_parts or (self.cout,)
        norm = {f"norm.{name}": {0: before} for name in ("weight", "bias", "running_mean", "running_var")}
        return {**norm, "conv.weight": {0: behind, 1: before}, "conv.bias": {0: behind}}

    def wires(self, *given: Layout) -> Wires | None:
        out = fresh(self.cout)
        cut(out, self.cout_parts)
        return Wires([out], norm_wires("norm.", given[0]) | linear_wires("conv.", out, given[0]))


class _PointConv(nn.Module):
    def __init__(self, op: PointConv) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(op.cin) if op.prenorm else None
        self.conv = nn.Conv2d(op.cin, op.cout, 1)
        self.act = activation(op.act) if op.act != "none" else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x if self.norm is None else self.norm(x))
        return x if self.act is None else cast(Tensor, self.act(x))


def fold_before(conv: nn.Conv2d, *norms: nn.Module) -> nn.Conv2d:
    """A 1x1 convolution that does the work of batch norms before it too, in eval mode.

    Average pooling commutes with a change of scale and offset per channel, so norms before and behind a pooling fold
    alike.
    """
    scale, offset = torch.ones_like(conv.weight[0, :, 0, 0]), torch.zeros_like(conv.weight[0, :, 0, 0])
    for norm in norms:
        factor, shift = _affine(cast(nn.BatchNorm2d, norm))
        scale, offset = scale * factor, offset * factor + shift
    bias = conv.weight[:, :, 0, 0] @ offset
    return _conv(conv.weight * scale.view(1, -1, 1, 1), bias if conv.bias is None else bias + conv.bias)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The factor and the offset per channel of a batch norm in eval mode."""
    factor = norm.weight * (cast(Tensor, norm.running_var) + norm.eps).rsqrt()
    return factor, norm.bias - factor * cast(Tensor, norm.running_mean)


def _conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A 1x1 convolution of these weights (cout, cin, 1, 1) and (cout)."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, device=weight.device, dtype=weight.dtype)
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
    return conv


@dataclass(frozen=True)
class EfficientAttention(Op):
    """E-MHSA: batch norm, then self-attention whose keys and values are pooled (sec. 3.3), heads of 32 channels.

    Computed on the map, channels first: its linear layers are 1x1 convolutions, which saves both transposes.
    Shape: (N, dim, H, W) -> same; H * W is a multiple of sr * sr.

    Attributes:
        dim: channels, a multiple of 32.
        sr: keys and values are averages of sr * sr tokens; 1 pools nothing and has no second norm.
        pool: `raster` averages consecutive tokens of the row-major order, as the published code does; `map` averages
            sr x sr windows.
    """

    dim: int
    sr: int = 1
    pool: str = "raster"

    def body(self) -> nn.Module:
        return _EfficientAttention(self)

    def fused(self, body: nn.Module) -> nn.Module:
        return _FusedEfficientAttention(self, cast(_EfficientAttention, body))

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return {"kv.weight": {0: (self.dim, self.dim)}, "kv.bias": {0: (self.dim, self.dim)}}

    def wires(self, *given: Layout) -> Wires | None:
        heads, out = fresh(self.dim // HEAD_DIM, HEAD_DIM), fresh(self.dim)
        held = linear_wires("q.", heads, given[0]) | linear_wires("kv.", heads + heads, given[0])
        norms = norm_wires("norm.", given[0]) | norm_wires("pooled_norm.", given[0])
        return Wires([out], held | norms | linear_wires("proj.", out, heads))


class _EfficientAttention(nn.Module):
    def __init__(self, op: EfficientAttention) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(op.dim)
        self.q, self.kv = nn.Conv2d(op.dim, op.dim, 1), nn.Conv2d(op.dim, 2 * op.dim, 1)
        self.pool = _pooling(op)
        self.pooled_norm = nn.BatchNorm2d(op.dim) if op.sr > 1 else nn.Identity()
        self.proj = nn.Conv2d(op.dim, op.dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x)
        key, value = self.kv(self.pooled_norm(self.pool(tokens))).chunk(2, 1)
        mixed = _attend(self.q(tokens), key * HEAD_DIM**-0.5, value)
        return cast(Tensor, self.proj(mixed))


class _FusedEfficientAttention(nn.Module):
    """Norms and the softmax scale inside the weights; one convolution for all that reads the same input."""

    def __init__(self, op: EfficientAttention, body: _EfficientAttention) -> None:
        super().__init__()
        query = fold_before(body.q, body.norm)
        query = _conv(query.weight * HEAD_DIM**-0.5, cast(Tensor, query.bias) * HEAD_DIM**-0.5)
        rest = fold_before(body.kv, body.norm, *([body.pooled_norm] if op.sr > 1 else []))
        self.pooled = op.sr > 1
        self.first = query if self.pooled else side_by_side(query, rest)
        self.second = rest if self.pooled else nn.Identity()
        self.pool, self.proj = body.pool, body.proj

    def forward(self, x: Tensor) -> Tensor:
        if self.pooled:
            query, (key, value) = self.first(x), self.second(self.pool(x)).chunk(2, 1)
        else:
            query, key, value = self.first(x).chunk(3, 1)
        return cast(Tensor, self.proj(_attend(query, key, value)))


class _RasterPool(nn.Module):
    """Averages of consecutive positions in row-major order. (N, C, H, W) -> (N, C, 1, H * W / length)."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool1d(x.flatten(2), self.length).unsqueeze(2)


POOLINGS: dict[str, Callable[[int], nn.Module]] = {"raster": lambda sr: _RasterPool(sr * sr), "map": nn.AvgPool2d}


def _pooling(op: EfficientAttention) -> nn.Module:
    if op.pool not in POOLINGS:
        raise InputError(suggest("pooling", op.pool, POOLINGS))
    return POOLINGS[op.pool](op.sr) if op.sr > 1 else nn.Identity()


def side_by_side(*convs: nn.Conv2d) -> nn.Conv2d:
    """One convolution that gives the outputs of all, one behind the other."""
    return _conv(torch.cat([conv.weight for conv in convs]), torch.cat([cast(Tensor, conv.bias) for conv in convs]))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of every head, keys scaled before. (N, C, H, W) and twice (N, C, h, w) -> (N, C, H, W)."""
    q, k, v = (part.reshape(part.shape[0], -1, HEAD_DIM, part.shape[2] * part.shape[3]) for part in (query, key, value))
    weights = (q.transpose(2, 3) @ k).softmax(-1)  # (N, heads, H * W, h * w)
    return (v @ weights.transpose(2, 3)).reshape(query.shape)


@dataclass(frozen=True)
class HalfPool(Op):
    """2x2 average pooling of stride 2; an odd side rounds up, its last window averages what lies inside the map.

    Shape: (N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2)).
    """

    def body(self) -> nn.Module:
        return nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {})


@dataclass(frozen=True)
class NormMean(Op):
    """Batch norm, then the mean over positions; deployed, a scale and an offset of the mean.

    Shape: (N, dim, H, W) -> (N, dim).
    """

    dim: int

    def body(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(self.dim), Mean().body())

    def fused(self, body: nn.Module) -> nn.Module:
        return _AffineMean(cast(nn.BatchNorm2d, cast(nn.Sequential, body)[0]))

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], norm_wires("0.", given[0]))


class _AffineMean(nn.Module):
    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.factor, self.offset = map(nn.Parameter, _affine(norm))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.factor + self.offset


def mhca(channels: int) -> nn.Module:
    """Multi-head convolutional attention: a 3x3 convolution in groups of 32, then 1x1 (sec. 3.2). Map -> same shape.

    No norm stands before it, and none behind the 1x1.

    Raises:
        InputError: where the channels are no multiple of 32.
    """
    if channels < HEAD_DIM or channels % HEAD_DIM:
        raise InputError(f"expected a multiple of {HEAD_DIM} channels, the size of a head, got {channels}")
    grouped = Conv(channels, channels, 3, groups=channels // HEAD_DIM, act="relu")
    return nn.Sequential(grouped.module(), Conv(channels, channels, norm=False).module())


def norm_mlp(channels: int, hidden: int, parts: tuple[int, ...] = ()) -> nn.Module:
    """Batch norm, 1x1 convolution, ReLU, 1x1 convolution. Map -> same shape; `parts` as in `PointConv`."""
    first = PointConv(channels, hidden, act="relu", prenorm=True, cin_parts=parts)
    return nn.Sequential(first.module(), PointConv(hidden, channels, cout_parts=parts).module())


@dataclass(frozen=True)
class NextBlock(Block):
    """Base of this family's blocks: convolutions start from a truncated normal of deviation 0.02, biases from 0."""

    def init(self, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                trunc_normal(part)


@dataclass(frozen=True)
class NextStem(NextBlock):
    """Four 3x3 convolutions with batch norm and ReLU, the second half as wide (sec. 3.5). Image -> map, side / stride.

    The first has stride 2; with a stride of 4 in all the last has it too.
    """

    stem: int = 64
    stride: int = 4

    def build(self, x: Shape) -> nn.Module:
        if self.stride not in (2, 4):
            raise InputError(f"NextStem.stride: expected 2 or 4, got {self.stride}")
        widths = [x.channels, self.stem, self.stem // 2, self.stem, self.stem]
        strides = [2, 1, 1, self.stride // 2]
        pairs = zip(itertools.pairwise(widths), strides, strict=True)
        return in_order(*(Conv(cin, cout, 3, stride, act="relu") for (cin, cout), stride in pairs))


@dataclass(frozen=True)
class PatchEmbed(NextBlock):
    """To another width or half the side: 2x2 average pooling for stride 2, 1x1 convolution, batch norm; no activation.

    Map or tokens -> map (N, cout, side / stride, side / stride). Neither parameters nor time where nothing changes.
    """

    cout: int
    stride: int = 2

    def build(self, x: Shape) -> nn.Module:
        steps: list[Op] = [] if x.is_map else [ToMap(x.side)]
        steps += [HalfPool()] if self.stride == 2 else []
        steps += [Conv(x.channels, self.cout)] if self.stride == 2 or x.channels != self.cout else []
        return in_order(*steps)


@dataclass(frozen=True)
class NCB(NextBlock):
    """Next convolution block: MHCA, then an MLP, each in a residual (sec. 3.2). Map -> same shape."""

    ratio: int = 3

    def build(self, x: Shape) -> nn.Module:
        mlp = norm_mlp(x.channels, self.ratio * x.channels)
        return nn.Sequential(Residual(mhca(x.channels)), Residual(mlp))


@dataclass(frozen=True)
class NTB(NextBlock):
    """Next transformer block: E-MHSA on m channels, MHCA on c others made from them, and an MLP on all.

    Sec. 3.3. Map (N, m, H, W) -> (N, cout, H, W) with c = cout - m, the attended channels first. Where m = c the second
    group has no 1x1 convolution of its own; where m = cout there is no second group. Attention and MHCA share a drop
    path rate as m and c share the channels (the published code shares it by the unrounded r).

    Attributes:
        cout: m + c, a multiple of 32.
        sr, pool: as in `EfficientAttention`.
        ratio: of the MLP.
    """

    cout: int
    sr: int = 1
    ratio: int = 2
    pool: str = "raster"

    def build(self, x: Shape) -> nn.Module:
        _check_ntb(self, x)
        return _NTB(self, x.channels)


class _NTB(nn.Module):
    def __init__(self, block: NTB, m: int) -> None:
        super().__init__()
        cout, c = block.cout, block.cout - m
        share = round(100 * m / cout)
        self.attention = Residual(EfficientAttention(m, block.sr, block.pool).module(), share=share)
        self.project = Conv(m, c).module() if c not in (0, m) else nn.Identity()
        self.convolve = Residual(mhca(c), share=100 - share) if c else None
        self.concat = Concat().module() if c else None
        self.mlp = Residual(norm_mlp(cout, block.ratio * cout, (m, c) if c else ()))

    def forward(self, x: Tensor) -> Any:
        x = self.attention(x)
        if self.convolve is not None and self.concat is not None:
            x = self.concat(x, self.convolve(self.project(x)))
        return self.mlp(x)


def _check_ntb(block: NTB, x: Shape) -> None:
    if x.channels > block.cout or x.channels % HEAD_DIM or block.cout % HEAD_DIM:
        raise InputError(
            f"NTB cout={block.cout} on {x.channels} channels: expected multiples of {HEAD_DIM}, no fewer out"
        )
    whole = x.side**2 % block.sr**2 == 0 if block.pool == "raster" else x.side % block.sr == 0
    if not whole:
        raise InputError(f"NTB sr={block.sr} pool={block.pool}: does not divide a map of side {x.side}")


@dataclass(frozen=True)
class NextPooled(NextBlock):
    """Batch norm, then the mean over positions. Map or tokens -> vector (N, C)."""

    def build(self, x: Shape) -> nn.Module:
        to_map = [] if x.is_map else [ToMap(x.side).module()]
        return nn.Sequential(*to_map, NormMean(x.channels).module())


HEAD = (NextPooled(), Logits(heads=1))


def ntb_width(width: int) -> int:
    """Channels behind the NTBs of a stage whose NCBs have `width`: four thirds of it, as 192 -> 256 (sec. 3.5)."""
    return divisible(width * 4 / 3, HEAD_DIM)


def attended(cout: int, r: int) -> int:
    """Channels m that an NTB of `cout` channels attends on, for a shrink ratio of `r` percent.

    Either group keeps 32 channels at least, unless r is 100; the published code fails there.
    """
    if not 0 < r <= 100:
        raise InputError(f"r: expected a percentage from 1 to 100, got {r}")
    return cout if r == 100 else min(divisible(cout * r // 100, HEAD_DIM), cout - HEAD_DIM)


STRATEGIES = ("C", "T", "H")


@dataclass(frozen=True)
class Groups(Stage):
    """A stage of groups, each n NCBs with an NTB behind them, and a `PatchEmbed` wherever channels change.

    Every field but `start` and `stride` may be a choice. Choices that say nothing leave no trace: all about NTBs in
    stages without them, n and `ncb_ratio` in stages of NTBs alone, and `pool` where nothing is pooled.

    Attributes:
        width: channels of the NCBs, a multiple of 32; behind NTBs there are four thirds of it (`ntb_width`).
        n: NCBs of a group.
        groups: how many.
        strategy: which blocks of its groups a stage has (sec. 3.4): `H` all, `C` only their NCBs, `T` only their NTBs.
        r: percent of an NTB's channels that attend (`attended`).
        ncb_ratio, ntb_ratio: MLP ratios.
        sr, pool: of the attention, as in `EfficientAttention`.
        stride: of the first `PatchEmbed`, 1 or 2.
        start: a block before all others, such as a stem; None for none. Its open fields are choices of the stage.
    """

    width: int
    n: int
    groups: int
    strategy: str = one_of(*STRATEGIES)
    r: int = one_of(25, 50, 75, 100)
    ncb_ratio: int = one_of(2, 3, 4)
    ntb_ratio: int = one_of(2, 3)
    sr: int = 1
    pool: str = "raster"
    stride: int = 2
    start: Block | None = None

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        width = picked["width"]
        attends = attended(ntb_width(width), picked["r"])
        first = () if self.start is None else (fill(self.start, picked),)
        return (*first, *_embedded(_group(picked) * picked["groups"], width, attends, self.stride))

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        ncbs = [block for block in blocks if isinstance(block, NCB)]
        ntbs = [block for block in blocks if isinstance(block, NTB)]
        found = {"strategy": "C" if not ntbs else "H" if ncbs else "T", "width": self._width_of(blocks, ntbs)}
        found |= {"ncb_ratio": ncbs[0].ratio} if ncbs else {}
        if ntbs:
            found |= {"groups": len(ntbs), "r": self._r_of(blocks, ntbs[0])}
            found |= {"sr": ntbs[0].sr, "pool": ntbs[0].pool, "ntb_ratio": ntbs[0].ratio}
            found |= {"n": len(ncbs) // len(ntbs)} if ncbs else {}
        else:
            pairs = itertools.product(values_of(self.n), values_of(self.groups))
            found |= next(({"n": n, "groups": groups} for n, groups in pairs if n * groups == len(ncbs)), {})
        return {name: value for name, value in found.items() if name in self.choices and value is not None}

    def _width_of(self, blocks: Blocks, ntbs: list[NTB]) -> int | None:
        if ntbs:
            return next((width for width in values_of(self.width) if ntb_width(width) == ntbs[0].cout), None)
        return next((block.cout for block in blocks if isinstance(block, PatchEmbed)), None)

    def _r_of(self, blocks: Blocks, ntb: NTB) -> int | None:
        """The first percentage that gives the NTB the channels of the last `PatchEmbed` before it."""
        before = blocks[: blocks.index(ntb)]
        m = next((block.cout for block in reversed(before) if isinstance(block, PatchEmbed)), None)
        return next((r for r in values_of(self.r) if attended(ntb.cout, r) == m), None)


def _group(picked: Mapping[str, Any]) -> list[NCB | NTB]:
    """The NCBs and the NTB of one group."""
    if picked["strategy"] not in STRATEGIES:
        raise InputError(suggest("strategy", picked["strategy"], STRATEGIES))
    pool = picked["pool"] if picked["sr"] > 1 else "raster"
    ntb = NTB(ntb_width(picked["width"]), picked["sr"], picked["ntb_ratio"], pool)
    ncbs: list[NCB | NTB] = [NCB(picked["ncb_ratio"])] * (picked["n"] if picked["strategy"] != "T" else 0)
    return [*ncbs, ntb] if picked["strategy"] != "C" else ncbs


def _embedded(kinds: Sequence[NCB | NTB], width: int, attends: int, stride: int) -> Blocks:
    """These blocks, with a `PatchEmbed` before the first and before each that others channels reach than it takes."""
    blocks: list[Block] = []
    reaching = 0
    for kind in kinds:
        wanted = width if isinstance(kind, NCB) else attends
        if reaching != wanted:
            blocks.append(PatchEmbed(wanted, 1 if blocks else stride))
        blocks.append(kind)
        reaching = width if isinstance(kind, NCB) else kind.cout
    return tuple(blocks)


POOLS, RS, TWO_OR_THREE = one_of("raster", "map"), one_of(25, 50, 75, 100), one_of(2, 3)

SPACE = Space(
    name="nextvit",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Groups(
            one_of(64, 96, 128),
            one_of(1, 2, 3, 4),
            groups=1,
            sr=8,
            pool=POOLS,
            stride=1,
            start=NextStem(one_of(32, 64)),
        ),
        Groups(one_of(128, 192, 256), one_of(2, 3, 4), one_of(1, 2), sr=one_of(2, 4), pool=POOLS),
        Groups(one_of(256, 384, 512), one_of(2, 4, 6), one_of(1, 2, 4, 6), sr=one_of(1, 2), pool=POOLS),
        Groups(one_of(512, 768, 1024), one_of(1, 2, 3), one_of(1, 2)),
    ),
    head=HEAD,
)

SMALL = Space(
    name="nextvit-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Groups(32, one_of(1, 2), 1, "C", 75, TWO_OR_THREE, 2, stride=1, start=NextStem(16, stride=2)),
        Groups(one_of(64, 96), one_of(1, 2), 1, one_of("C", "H"), RS, TWO_OR_THREE, 2, sr=2, pool=POOLS),
        Groups(128, one_of(1, 2), one_of(1, 2), one_of(*STRATEGIES), RS, TWO_OR_THREE, 2),
    ),
    head=HEAD,
)

SPACES = (SMALL,)


def make(
    widths: Sequence[int],
    n: Sequence[int],
    groups: Sequence[int],
    strategies: Sequence[str],
    *,
    r: int = 75,
    ncb_ratios: Sequence[int] = (3, 3, 3, 3),
    ntb_ratios: Sequence[int] = (2, 2, 2, 2),
    sr: Sequence[int] = (8, 4, 2, 1),
    pool: str = "raster",
    stem: NextStem = NextStem(),
    side: int = 224,
    classes: int = 1000,
) -> Arch:
    """A Next-ViT of any size, on the grid of the shipped space or off it.

    Args:
        widths: channels of the NCBs in every stage, multiples of 32.
        n: NCBs of a group in every stage, the paper's N.
        groups: groups of every stage, the paper's L.
        strategies: `C`, `T` or `H` for every stage, see `Groups`; a text such as `CHHH` does.
        r: percent of an NTB's channels that attend.
        ncb_ratios, ntb_ratios: MLP ratios in every stage.
        sr: pooling of keys and values in every stage, see `EfficientAttention`.
        pool: kind of that pooling, `raster` or `map`.
        stem: the published one, or `NextStem(width, 2)` for small images.
        side: input side in pixels.
        classes: number of logits.

    Raises:
        InputError: where the lists are not of one length, or a value is illegal.
    """
    lists = (widths, n, groups, strategies, ncb_ratios, ntb_ratios, sr)
    if len({*map(len, lists)}) != 1:
        raise InputError(f"make: every list has one value for each stage, got {', '.join(map(str, lists))}")
    stages = [
        Groups(width, ncbs, count, strategy, r, ncb_ratio, ntb_ratio, pooled, pool)
        for width, ncbs, count, strategy, ncb_ratio, ntb_ratio, pooled in zip(*lists, strict=True)
    ]
    stages[0] = replace(stages[0], stride=1, start=stem)
    return Space("nextvit", (3, side, side), classes, tuple(stages), HEAD, monotone=False).arch({})


PRESETS: Mapping[str, Arch] = {
    f"nextvit-{size}": make((96, 192, 384, 768), (3, 3, 4, 2), (1, 1, groups, 1), "CHHH")
    for size, groups in {"s": 2, "b": 4, "l": 6}.items()
}

PUBLISHED: Mapping[str, Published] = {
    f"nextvit-{size}": Published(top1, "github.com/bytedance/Next-ViT, README", "300 epochs")
    for size, top1 in (("s", 0.825), ("b", 0.832), ("l", 0.836))
}

TIMM = {"nextvit-s": "nextvit_small", "nextvit-b": "nextvit_base", "nextvit-l": "nextvit_large"}


CONV = ("conv", "norm")  # what timm calls the parts of a `Conv`, in order


def from_timm(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """The weights of timm's `nextvit_*`, under the names of our model of the same architecture.

    Args:
        state: timm's state dict.
        arch: the architecture to load into, such as a preset.
    """
    head = len(arch.stages) - 1
    pairs = {"norm.": f"stages.{head}.0.body.0.body.0.", "head.fc.": f"stages.{head}.1.body.body.heads.0."}
    for index, stage in enumerate(arch.stages[:-1]):
        pairs |= _stage_names(index, stage)
    renamed: dict[str, Tensor] = {}
    for key in sorted(state):  # k before v, which stand behind each other in ours
        prefix = key.rpartition(".")[0] + "."
        if prefix in pairs:
            name, value = pairs[prefix] + key.removeprefix(prefix), state[key]
            value = value[:, :, None, None] if ".e_mhsa." in key and value.ndim == 2 else value  # Linear to 1x1
            renamed[name] = torch.cat([renamed[name], value]) if name in renamed else value
    return renamed


def _stage_names(index: int, stage: Blocks) -> dict[str, str]:
    """Where timm's layers of a stage stand in ours; a `PatchEmbed` there is part of the block behind it."""
    pairs: dict[str, str] = {}
    number = 0
    for place, block in enumerate(stage):
        theirs, ours = f"stages.{index}.blocks.{number}.", f"stages.{index}.{place}.body."
        theirs = "stem." if isinstance(block, NextStem) else theirs
        pairs |= {f"{theirs}{key}.": f"{ours}{name}." for key, name in _block_names(block).items()}
        number += isinstance(block, NCB | NTB)
    return pairs


def _block_names(block: Block) -> dict[str, str]:
    """Where timm's layers of a block stand in ours."""
    if isinstance(block, NextStem):
        return {f"{step}.{kind}": f"{step}.body.{part}" for step in range(4) for part, kind in enumerate(CONV)}
    if isinstance(block, PatchEmbed):
        step = 1 if block.stride == 2 else 0  # the pooling is before the convolution
        return {f"patch_embed.{kind}": f"{step}.body.{part}" for part, kind in enumerate(CONV)}
    if isinstance(block, NCB):
        return _mhca_names("0.body.") | _mlp_names("norm", "1.body.")
    attention = {"norm": "pooled_norm", "q": "q", "k": "kv", "v": "kv", "proj": "proj"}
    names = {f"e_mhsa.{key}": f"attention.body.body.{name}" for key, name in attention.items()}
    names |= {"norm1": "attention.body.body.norm"}
    names |= {f"projection.{kind}": f"project.body.{part}" for part, kind in enumerate(CONV)}
    return names | _mhca_names("convolve.body.") | _mlp_names("norm2", "mlp.body.")


def _mhca_names(ours: str) -> dict[str, str]:
    layers = {"group_conv3x3": "0.body.0", "norm": "0.body.1", "projection": "1.body.0"}
    return {f"mhca.{key}": ours + name for key, name in layers.items()}


def _mlp_names(norm: str, ours: str) -> dict[str, str]:
    return {norm: f"{ours}0.body.norm", "mlp.fc1": f"{ours}0.body.conv", "mlp.fc2": f"{ours}1.body.conv"}
