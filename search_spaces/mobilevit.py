"""MobileViT v1 (arXiv:2110.02178), v2 (arXiv:2206.02680) and v3 (arXiv:2209.15159): transformers across patches.

A MobileViT block convolves, unfolds its map into small square patches, lets those positions attend to each other that
stand at the same place of their patches, folds back and fuses. v1 attends by softmax over all pairs, v2 by a linear
form of it; v3 changes what is fused, in either. No position is encoded. Everything else is inverted residuals.

Differences from the papers: none of the blocks drops activations in training (0.1 in the recipe of v1), as in timm.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nas.core.arch import Arch, Blocks, steps_of
from nas.core.blocks import Logits, divisible
from nas.core.channels import Layout, Wires, fixed, fresh
from nas.core.errors import InputError, suggest
from nas.core.ops import (
    Block,
    Conv,
    LayerNorm,
    Linear,
    Mean,
    Op,
    Residual,
    Row,
    Shape,
    conv_wires,
    from_stage,
    in_order,
    linear_wires,
    norm_wires,
    one_of,
    trunc_normal,
)
from nas.core.space import Either, Repeat, Space, Stage, fill
from search_spaces import Published
from search_spaces.deit import Attention

ROUNDED = 16  # hidden channels of the MLPs beside separable attention are a multiple of it

# ops


@dataclass(frozen=True)
class Unfold(Op):
    """A map into patches; an op, since runtimes copy for it.

    Shape: (N, C, H, W) -> (N P, T, C) with P = patch**2 and T = H W / P, the T positions at one place of all patches
    behind each other; channels first (N, C, P, T). H and W are multiples of `patch`.
    """

    patch: int
    channels_first: bool = False

    def body(self) -> nn.Module:
        return _Unfold(self)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {})


class _Unfold(nn.Module):
    def __init__(self, op: Unfold) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        patch = self.op.patch
        count, channels, height, width = x.shape
        cut = x.reshape(count, channels, height // patch, patch, width // patch, patch)
        if self.op.channels_first:
            return cut.permute(0, 1, 3, 5, 2, 4).reshape(count, channels, patch**2, -1)
        return cut.permute(0, 3, 5, 2, 4, 1).reshape(count * patch**2, -1, channels)


@dataclass(frozen=True)
class Fold(Op):
    """Patches back into a map of `side`: (N P, T, C), or channels first (N, C, P, T), -> (N, C, side, side)."""

    patch: int
    side: int
    channels_first: bool = False

    def body(self) -> nn.Module:
        return _Fold(self)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {})


class _Fold(nn.Module):
    def __init__(self, op: Fold) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        patch, side = self.op.patch, self.op.side
        along, channels = side // patch, x.shape[1 if self.op.channels_first else 2]
        if self.op.channels_first:
            placed = x.reshape(-1, channels, patch, patch, along, along).permute(0, 1, 4, 2, 5, 3)
        else:
            placed = x.reshape(-1, patch, patch, along, along, channels).permute(0, 5, 3, 1, 4, 2)
        return placed.reshape(-1, channels, side, side)


@dataclass(frozen=True)
class Resize(Op):
    """Bilinear interpolation. (N, C, H, W) -> (N, C, side, side); with `corners` the corner positions stay in place."""

    side: int
    corners: bool = False

    def body(self) -> nn.Module:
        return nn.Upsample((self.side, self.side), mode="bilinear", align_corners=self.corners)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {})


@dataclass(frozen=True)
class WholeNorm(Op):
    """Norm over all channels and positions of an image together, a scale and an offset per channel: one-group norm.

    Shape: (N, dim, H, W) -> same.
    """

    dim: int

    def body(self) -> nn.Module:
        return nn.GroupNorm(1, self.dim)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], norm_wires("", given[0]))


@dataclass(frozen=True)
class SeparableAttention(Op):
    """Attention of linear cost: a softmax of one score a position weighs the keys into one context (v2, sec. 3.2).

    Every value then passes a ReLU and is multiplied by the context. One 1x1 convolution makes score, key and value.
    Shape: (N, dim, P, T) -> same; the softmax runs over T.
    """

    dim: int

    def body(self) -> nn.Module:
        return _SeparableAttention(self.dim)

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return {f"qkv.{name}": {0: (1, self.dim, self.dim)} for name in ("weight", "bias")}

    def wires(self, *given: Layout) -> Wires | None:
        mixed, out = fresh(self.dim), fresh(self.dim)
        held = linear_wires("qkv.", fixed(1) + mixed * 2, given[0])
        return Wires([out], held | linear_wires("proj.", out, mixed))


class _SeparableAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.qkv = nn.Conv2d(dim, 1 + 2 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        score, key, value = self.qkv(x).split([1, self.dim, self.dim], 1)
        context = (key * score.softmax(3)).sum(3, keepdim=True)  # (N, dim, P, 1)
        return cast(Tensor, self.proj(F.relu(value) * context))


@dataclass(frozen=True)
class JoinConv(Op):
    """Two maps, channels one behind the other, then k x k convolution, batch norm and activation.

    Shape: (N, cins[0], H, W), (N, cins[1], H, W) -> (N, cout, H, W).
    """

    cins: tuple[int, ...]
    cout: int
    kernel: int = 1
    act: str = "none"

    def body(self) -> nn.Module:
        return _JoinConv(self._conv().body())

    def fused(self, body: nn.Module) -> nn.Module:
        return _JoinConv(self._conv().fused(cast(_JoinConv, body).conv))

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return {"conv.0.weight": {1: self.cins}}

    def _conv(self) -> Conv:
        return Conv(sum(self.cins), self.cout, self.kernel, act=self.act)

    def wires(self, *given: Layout) -> Wires | None:
        out = fresh(self.cout)
        return Wires([out], conv_wires(out, given[0] + given[1], "conv."))


class _JoinConv(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return cast(Tensor, self.conv(torch.cat((x, y), 1)))


# blocks


@dataclass(frozen=True)
class MobileBlock(Block):
    """Base of this family's blocks: weights start as in the official code."""

    def init(self, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            if isinstance(part, nn.Linear):
                trunc_normal(part)


@dataclass(frozen=True)
class SiluStem(MobileBlock):
    """3x3 convolution of stride 2 with batch norm and SiLU. Image -> map of half the side."""

    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return Conv(x.channels, self.cout, 3, 2, act="silu").module()


@dataclass(frozen=True)
class SiluResidual(MobileBlock):
    """Inverted residual with SiLU: expand, mix each channel by itself, project (v1, fig. 1b). Map -> map.

    The input is added where stride is 1 and the width stays. Hidden channels are a multiple of 8 (`divisible`).
    """

    cout: int = from_stage()
    stride: int = from_stage()
    expand: int = one_of(2, 4)

    def build(self, x: Shape) -> nn.Module:
        hidden = divisible(x.channels * self.expand, 8)
        body = nn.Sequential(
            Conv(x.channels, hidden, act="silu").module(),
            Conv(hidden, hidden, 3, self.stride, groups=hidden, act="silu").module(),
            Conv(hidden, self.cout).module(),
        )
        return Residual(body) if self.stride == 1 and x.channels == self.cout else body


@dataclass(frozen=True)
class Patches(MobileBlock):
    """Base of all MobileViT blocks. Map (N, C, H, H) -> same.

    A side that is no multiple of `patch` is resized to the next one: in v1 and v3 only around the transformer, in v2
    and v3 on it before all else, where the larger map is also what goes out.

    Attributes:
        dim: channels of the transformer.
        layers: how many transformer layers.
        patch: side of a patch.
        ratio: of the transformer's MLPs.
        kernel: side of the local convolution.
    """

    dim: int
    layers: int
    patch: int = 2
    ratio: int = 2
    kernel: int = 3

    def local(self, channels: int, groups: int) -> nn.Module:
        """k x k convolution, then a 1x1 one to the transformer's channels without norm or activation."""
        around = Conv(channels, channels, self.kernel, groups=groups, act="silu")
        return nn.Sequential(around.module(), Conv(channels, self.dim, norm=False).module())


@dataclass(frozen=True)
class Softmaxed(Patches):
    """Base of the blocks with multi-head attention: v1, and v3 on it. `dim` is a multiple of `heads`."""

    heads: int = 4

    def tokens(self, side: int) -> nn.Module:
        """Transformer on the patches of a map, resized for it where need be. (N, dim, side, side) -> same."""
        if self.dim % self.heads:
            raise InputError(f"{self}: dim is no multiple of heads")
        whole = _grown(side, self.patch)
        return nn.Sequential(
            _resized(side, whole),
            Unfold(self.patch).module(),
            nn.Sequential(*(part for _ in range(self.layers) for part in self._layer())),
            LayerNorm(self.dim).module(),
            Fold(self.patch, whole).module(),
            _resized(whole, side),
        )

    def _layer(self) -> tuple[nn.Module, nn.Module]:
        dim, hidden = self.dim, self.ratio * self.dim
        attention = nn.Sequential(LayerNorm(dim).module(), Attention(dim, self.heads).module())
        mlp = (LayerNorm(dim), Linear(dim, hidden, act="silu"), Linear(hidden, dim))
        return Residual(attention), Residual(in_order(*mlp))


@dataclass(frozen=True)
class Separable(Patches):
    """Base of the blocks with separable attention, channels first: v2, and v3 on it.

    Hidden channels of the MLPs are rounded down to a multiple of `ROUNDED`.
    """

    def columns(self, side: int) -> nn.Module:
        """Transformer on the patches of a map (N, dim, side, side) -> same."""
        return nn.Sequential(
            Unfold(self.patch, channels_first=True).module(),
            nn.Sequential(*(part for _ in range(self.layers) for part in self._layer())),
            WholeNorm(self.dim).module(),
            Fold(self.patch, side, channels_first=True).module(),
        )

    def _layer(self) -> tuple[nn.Module, nn.Module]:
        dim, hidden = self.dim, self.ratio * self.dim // ROUNDED * ROUNDED
        attention = nn.Sequential(WholeNorm(dim).module(), SeparableAttention(dim).module())
        first, second = Conv(dim, hidden, act="silu", bias=True, norm=False), Conv(hidden, dim, bias=True, norm=False)
        return Residual(attention), Residual(in_order(WholeNorm(dim), first, second))


@dataclass(frozen=True)
class MobileViTv1(Softmaxed):
    """Local convolution over all channels; a k x k convolution fuses input and result (v1, sec. 3.1)."""

    def build(self, x: Shape) -> nn.Module:
        c = x.channels
        branch = nn.Sequential(self.local(c, 1), self.tokens(x.side), Conv(self.dim, c, act="silu").module())
        return _Beside(branch, JoinConv((c, c), c, self.kernel, "silu"))


@dataclass(frozen=True)
class MobileViTv2(Separable):
    """Depthwise local convolution; neither fusion nor skip, and no activation at the end (v2, sec. 3.2)."""

    def build(self, x: Shape) -> nn.Module:
        c, whole = x.channels, _grown(x.side, self.patch)
        project = Conv(self.dim, c).module()
        return nn.Sequential(_resized(x.side, whole, corners=True), self.local(c, c), self.columns(whole), project)


@dataclass(frozen=True)
class MobileViTv3(Softmaxed):
    """v1 with a depthwise local convolution, a 1x1 one that fuses its result and the transformer's, and a skip.

    v3, sec. 3. The skip is no branch that drops out in training.
    """

    def build(self, x: Shape) -> nn.Module:
        c = x.channels
        branch = nn.Sequential(self.tokens(x.side), Conv(self.dim, c, act="silu").module())
        beside = _Beside(branch, JoinConv((self.dim, c), c, act="silu"))
        return Residual(nn.Sequential(self.local(c, c), beside), share=0)


@dataclass(frozen=True)
class MobileViTv3Separable(Separable):
    """v2 whose last convolution fuses the transformer's result and the local one, and a skip (v3, sec. 3)."""

    def build(self, x: Shape) -> nn.Module:
        c, whole = x.channels, _grown(x.side, self.patch)
        beside = _Beside(self.columns(whole), JoinConv((self.dim, self.dim), c), behind=True)
        skip = Residual(nn.Sequential(self.local(c, c), beside), share=0)
        return nn.Sequential(_resized(x.side, whole, corners=True), skip)


class _Beside(nn.Module):
    """A map joined with what a branch makes of it; the map first, or behind."""

    def __init__(self, branch: nn.Module, join: JoinConv, behind: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.join = join.module()
        self.behind = behind

    def forward(self, x: Tensor) -> Any:
        y = self.branch(x)
        return self.join(y, x) if self.behind else self.join(x, y)


def _grown(side: int, patch: int) -> int:
    """The next multiple of the patch."""
    return -(-side // patch) * patch


def _resized(side: int, wanted: int, corners: bool = False) -> nn.Module:
    return nn.Identity() if side == wanted else Resize(wanted, corners).module()


@dataclass(frozen=True)
class WidenedMean(MobileBlock):
    """1x1 convolution to four times the channels, at most 960, batch norm, SiLU; the mean over positions.

    Map (N, C, H, W) -> vector (N, min(4 C, 960)).
    """

    def build(self, x: Shape) -> nn.Module:
        return nn.Sequential(Conv(x.channels, min(4 * x.channels, 960), act="silu").module(), Mean().module())


@dataclass(frozen=True)
class PlainMean(MobileBlock):
    """Mean over positions. Map (N, C, H, W) -> vector (N, C)."""

    def build(self, x: Shape) -> nn.Module:
        return Mean().module()


# how they go together

VERSIONS: Mapping[str, type[Patches]] = {
    "v1": MobileViTv1,
    "v2": MobileViTv2,
    "v3": MobileViTv3,
    "v3-separable": MobileViTv3Separable,
}


def block_of(version: str) -> type[Patches]:
    """The block of a version.

    Raises:
        InputError: naming the closest known ones.
    """
    if version not in VERSIONS:
        raise InputError(suggest("version", version, VERSIONS))
    return VERSIONS[version]


def head(last: Blocks) -> Blocks:
    """What stands behind the last stage: v2 and v3 on it classify its map as it is, the others widen it first."""
    return (PlainMean() if isinstance(last[-1], Separable) else WidenedMean(), Logits(heads=1))


@dataclass(frozen=True)
class Start(Stage):
    """The stem, and one inverted residual at its resolution.

    Attributes:
        body: the inverted residual.
        width: choice of its channels.
        stem: channels of the stem; 0 for half the width.
    """

    body: Block
    width: Any
    stem: int = 0

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        width = picked["width"]
        return (SiluStem(self.stem or width // 2), fill(self.body, picked, cout=width))

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        return {"width": getattr(blocks[-1], "cout", None)}


@dataclass(frozen=True)
class Patched(Stage):
    """An inverted residual that halves the map, and a MobileViT block.

    Attributes:
        entry: the inverted residual.
        block: the MobileViT block.
        width: choice of channels.
        share: the `dim` of a block without a choice of it, in percent of the width: half of it in all of v2.
    """

    entry: Block
    block: Block
    width: Any
    share: int = 50

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        width = picked["width"]
        dim = picked["dim"] if "dim" in self.choices else width * self.share // 100
        return fill(self.entry, picked, cout=width), fill(self.block, picked, dim=dim)

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        return {"width": getattr(blocks[0], "cout", None)}


DOWN, FLAT = SiluResidual(stride=2), SiluResidual(stride=1)
DOWN_2, FLAT_2 = SiluResidual(stride=2, expand=2), SiluResidual(stride=1, expand=2)
SIDES = one_of(2, 4)


def any_version(widths: tuple[Any, Any], dims: Any, layers: Any, patch: Any = SIDES) -> Either:
    """A stage of v1, v2 or v3; `widths` are the choices of v1 and v2, and that of v3."""
    return Either.of(
        v1=Patched(DOWN, MobileViTv1(dims, layers, patch), widths[0]),
        v2=Patched(DOWN, MobileViTv2(from_stage(), layers, patch), widths[0]),
        v3=Patched(DOWN, MobileViTv3(dims, layers, patch), widths[1]),
    )


def separable(width: Any, layers: Any, patch: Any = SIDES) -> Either:
    """A stage of v2 or of v3 on it, transformers half as wide as the map."""
    return Either.of(
        v2=Patched(DOWN_2, MobileViTv2(from_stage(), layers, patch), width),
        v3=Patched(DOWN_2, MobileViTv3Separable(from_stage(), layers, patch), width),
    )


SPACE = Space(
    name="mobilevit",
    input_shape=(3, 256, 256),
    classes=1000,
    stages=(
        Start(FLAT, one_of(16, 32), stem=16),
        Repeat(DOWN, FLAT, one_of(24, 48, 64), depth=one_of(1, 2, 3)),
        any_version((one_of(48, 64, 96), one_of(64, 96, 128)), one_of(64, 96, 144), one_of(1, 2)),
        any_version((one_of(64, 80, 128), one_of(80, 160, 256)), one_of(80, 120, 192), one_of(2, 4)),
        any_version((one_of(80, 96, 160), one_of(128, 160, 320)), one_of(96, 144, 240), one_of(2, 3), patch=2),
    ),
    head=head,
    monotone=False,
    rise=1,
)


def _times(channels: int) -> Any:
    """`channels` times every width multiplier of v2."""
    return one_of(*(channels * quarters // 4 for quarters in range(2, 9)))


V2 = Space(
    name="mobilevitv2",
    input_shape=(3, 256, 256),
    classes=1000,
    stages=(
        Start(FLAT_2, _times(64)),
        Repeat(DOWN_2, FLAT_2, _times(128), depth=one_of(1, 2)),
        separable(_times(256), one_of(1, 2)),
        separable(_times(384), one_of(2, 4)),
        separable(_times(512), one_of(2, 3), patch=2),
    ),
    head=head,
    monotone=False,
    rise=1,
)

SMALL = Space(
    name="mobilevit-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Start(FLAT, 16, stem=16),
        any_version((32, 32), one_of(32, 48), one_of(1, 2)),
        any_version((one_of(48, 64), one_of(48, 64)), 64, one_of(1, 2), patch=2),
    ),
    head=head,
)

SPACES = (V2, SMALL)


def make(
    widths: Sequence[int],
    dims: Sequence[int],
    layers: Sequence[int] = (2, 4, 3),
    *,
    versions: Sequence[str] = ("v1", "v1", "v1"),
    patches: Sequence[int] = (2, 2, 2),
    ratios: Sequence[int] = (2, 2, 2),
    heads: int = 4,
    expand: int = 4,
    depth: int = 2,
    stem: int = 16,
    side: int = 256,
    classes: int = 1000,
) -> Arch:
    """A MobileViT of any size, on the grid of the shipped spaces or off it.

    Args:
        widths: channels of the first stage, the second, and every one with a MobileViT block behind them.
        dims: channels of the transformers, for every MobileViT block.
        layers: their layers.
        versions: `v1`, `v2`, `v3`, or `v3-separable` for v3 on v2.
        patches: sides of their patches.
        ratios: of their MLPs.
        heads: of multi-head attention, in v1 and v3.
        expand: expansion of the inverted residuals.
        depth: inverted residuals of stride 1 in the second stage.
        stem: channels of the stem.
        side: input side in pixels.
        classes: number of logits.
    """
    down, flat = SiluResidual(stride=2, expand=expand), SiluResidual(stride=1, expand=expand)
    stages: list[Stage] = [Start(flat, widths[0], stem), Repeat(down, flat, widths[1], depth)]
    for width, dim, count, version, patch, ratio in zip(
        widths[2:], dims, layers, versions, patches, ratios, strict=True
    ):
        block = block_of(version)(dim, count, patch, ratio)
        block = replace(block, heads=heads) if isinstance(block, Softmaxed) else block
        stages.append(Patched(down, block, width))
    name = V2.name if all(issubclass(block_of(version), Separable) for version in versions) else SPACE.name
    return Space(name, (3, side, side), classes, tuple(stages), head, monotone=False).arch({})


DIMS = {"xxs": (64, 80, 96), "xs": (96, 120, 144), "s": (144, 192, 240)}
EXPANDS = {"xxs": 2, "xs": 4, "s": 4}
V1_WIDTHS = {"xxs": (16, 24, 48, 64, 80), "xs": (32, 48, 64, 80, 96), "s": (32, 64, 96, 128, 160)}
V3_WIDTHS = {"xxs": (16, 24, 64, 80, 128), "xs": (32, 48, 96, 160, 160), "s": (32, 64, 128, 256, 320)}


def _v1(size: str) -> Arch:
    return make(V1_WIDTHS[size], DIMS[size], expand=EXPANDS[size])


def _v3(size: str, layers: Sequence[int] = (2, 4, 3)) -> Arch:
    return make(V3_WIDTHS[size], DIMS[size], layers, versions=("v3",) * 3, expand=EXPANDS[size])


def _v2(quarters: int, version: str = "v2") -> Arch:
    """The net of `quarters` / 4 times the width."""
    widths = [channels * quarters // 4 for channels in (64, 128, 256, 384, 512)]
    halves = [width // 2 for width in widths]
    return make(widths, halves[2:], versions=(version,) * 3, expand=2, depth=1, stem=halves[0])


MULTIPLIERS = {"0.5": 2, "0.75": 3, "1.0": 4, "1.25": 5, "1.5": 6, "1.75": 7, "2.0": 8}  # in quarters
PRESETS: Mapping[str, Arch] = {
    **{f"mobilevit-{size}": _v1(size) for size in DIMS},
    **{f"mobilevitv2-{name}": _v2(quarters) for name, quarters in MULTIPLIERS.items()},
    **{f"mobilevitv3-{size}": _v3(size) for size in DIMS},
    **{f"mobilevitv3-{size}-l2": _v3(size, (2, 2, 3)) for size in DIMS},
    **{f"mobilevitv3-{name}": _v2(MULTIPLIERS[name], "v3-separable") for name in ("0.5", "0.75", "1.0")},
}

ZOO, V3_README = "github.com/apple/ml-cvnets, model zoo", "github.com/micronDLA/MobileViTv3, README"
PUBLISHED: Mapping[str, Published] = {
    **{
        f"mobilevit-{size}": Published(top1, ZOO, "300 epochs, images of several sizes")
        for size, top1 in {"xxs": 0.690, "xs": 0.747, "s": 0.783}.items()
    },
    **{
        f"mobilevitv2-{name}": Published(top1, ZOO, "300 epochs")
        for name, top1 in {
            **{"0.5": 0.7018, "0.75": 0.7556, "1.0": 0.7809, "1.25": 0.7965},
            **{"1.5": 0.8038, "1.75": 0.8084, "2.0": 0.8117},
        }.items()
    },
    **{
        f"mobilevitv3-{size}": Published(top1, V3_README, "300 epochs")
        for size, top1 in {"s": 0.793, "xs": 0.767, "xxs": 0.7098}.items()
    },
    **{
        f"mobilevitv3-{name}": Published(top1, V3_README)
        for name, top1 in {
            **{"1.0": 0.7864, "0.75": 0.7655, "0.5": 0.7233},
            **{"s-l2": 0.7906, "xs-l2": 0.7610, "xxs-l2": 0.7023},
        }.items()
    },
}

#: None where timm has no implementation
TIMM: Mapping[str, str | None] = {
    **{f"mobilevitv2-{name}": f"mobilevitv2_{25 * quarters:03}" for name, quarters in MULTIPLIERS.items()},
    **{name: None for name in PRESETS if name.startswith("mobilevitv3-")},
}


def from_timm(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """The weights of timm's `mobilevit_*` and `mobilevitv2_*`, under the names of our model of the same architecture.

    Args:
        state: timm's state dict.
        arch: the architecture to load into, such as a preset; of v1 or v2 in every stage.

    Raises:
        InputError: timm has no such block, or one whose MLPs have other hidden channels.
    """
    top = f"stages.{len(arch.stages) - 1}"
    pairs = {"head.fc": f"{top}.1.body.body.heads.0"} | _norm_conv("final_conv", f"{top}.0.body.0.body")
    steps = iter(steps_of(arch))
    for index, stage in enumerate(arch.stages[:-1]):
        first = isinstance(stage[0], SiluStem)  # in timm the stem stands before all stages
        for place, block in enumerate(stage):
            theirs = "stem" if isinstance(block, SiluStem) else f"stages.{index}.{place - first}"
            pairs |= _block_names(next(steps).row, theirs, f"stages.{index}.{place}.body")
    renamed = {}
    for key, value in state.items():
        layer, _, name = key.rpartition(".")
        renamed[f"{pairs[layer]}.{name}"] = value
    return renamed


def _block_names(row: Row, theirs: str, ours: str) -> dict[str, str]:
    """Where timm's layers of a block stand in ours."""
    block, (x,) = row
    if isinstance(block, SiluStem):
        return _norm_conv(theirs, f"{ours}.body")
    if isinstance(block, SiluResidual):
        inner = f"{ours}.body" if block.stride == 1 and x.channels == block.cout else ours
        names = enumerate(("conv1_1x1", "conv2_kxk", "conv3_1x1"))
        return _merged(_norm_conv(f"{theirs}.{name}", f"{inner}.{at}.body") for at, name in names)
    if isinstance(block, MobileViTv1):
        fusion = _norm_conv(f"{theirs}.conv_fusion", f"{ours}.join.body.conv")
        return fusion | _patches_names(block, theirs, f"{ours}.branch", ("0", "1.2", "1.3", "2"), _SOFTMAXED)
    if isinstance(block, MobileViTv2):
        if (hidden := block.ratio * block.dim) % ROUNDED:
            raise InputError(
                f"{block}: timm's has {hidden} hidden channels in its MLPs, ours rounds them down to a multiple of "
                f"{ROUNDED} as the published code does; its weights fit where ratio x dim is such a multiple"
            )
        return _patches_names(block, theirs, ours, ("1", "2.1", "2.2", "3"), _SEPARABLE)
    raise InputError(f"timm has no {type(block).__name__}: its MobileViTs are v1 and v2")


def _patches_names(
    block: Patches, theirs: str, ours: str, places: tuple[str, str, str, str], layer: Mapping[str, tuple[int, str]]
) -> dict[str, str]:
    """Of a MobileViT block; `places` of the local convolutions, the layers, the norm behind them, the projection."""
    local, layers, norm, project = places
    found = {f"{theirs}.conv_1x1": f"{ours}.{local}.1.body.0", f"{theirs}.norm": f"{ours}.{norm}.body"}
    found |= _norm_conv(f"{theirs}.conv_kxk", f"{ours}.{local}.0.body")
    found |= _norm_conv(f"{theirs}.conv_proj", f"{ours}.{project}.body")
    for number, (key, (half, name)) in itertools.product(range(block.layers), layer.items()):
        found[f"{theirs}.transformer.{number}.{key}"] = f"{ours}.{layers}.{2 * number + half}.body.{name}"
    return found


#: where the layers of timm's transformer layers stand in ours: 0 for the attention's residual and 1 for the MLP's
_SOFTMAXED = {
    "norm1": (0, "0.body"),
    "attn.qkv": (0, "1.body.qkv"),
    "attn.proj": (0, "1.body.proj"),
    "norm2": (1, "0.body"),
    "mlp.fc1": (1, "1.body.0"),
    "mlp.fc2": (1, "2.body"),
}
_SEPARABLE = {
    "norm1": (0, "0.body"),
    "attn.qkv_proj": (0, "1.body.qkv"),
    "attn.out_proj": (0, "1.body.proj"),
    "norm2": (1, "0.body"),
    "mlp.fc1": (1, "1.body.0"),
    "mlp.fc2": (1, "2.body.0"),
}


def _norm_conv(theirs: str, ours: str) -> dict[str, str]:
    """A convolution and its batch norm."""
    return {f"{theirs}.conv": f"{ours}.0", f"{theirs}.bn": f"{ours}.1"}


def _merged(parts: Iterable[dict[str, str]]) -> dict[str, str]:
    return {key: value for part in parts for key, value in part.items()}
