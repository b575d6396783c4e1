"""Mobile-Former (arXiv:2108.05895): a MobileNet on the map `x` and a transformer on a few learned tokens `z`, bridged.

A Mobile-Former block is four rows of a table: `BridgeIn` (the tokens read the map), `Former` (the tokens look at each
other), `Mobile` or `MobileDown` (the map, its ReLUs steered by the `first` token), `BridgeOut` (the map reads the
tokens). With the bridges of a stage off only its Mobile parts are left, and `first` steers them as it stands.

Differences from the paper follow the published code: the way into the tokens is gated, and the smallest net groups its
1x1 convolutions and shuffles channels. The recipe's dropout in front of the classifier is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.fusion import fuse_linear_bn_eval

from nas.core.arch import Arch, Blocks
from nas.core.blocks import Logits
from nas.core.channels import Layout, Wires, cut, fresh
from nas.core.errors import InputError
from nas.core.ops import (
    Block,
    Conv,
    LayerNorm,
    Leaf,
    Linear,
    Mean,
    Op,
    Residual,
    Shape,
    from_stage,
    in_order,
    linear_wires,
    norm_wires,
    one_of,
)
from nas.core.space import Space, Stage, fill
from search_spaces import Published

# ops


@dataclass(frozen=True)
class MapAttention(Op):
    """Tokens attend to a map, which is key and value as it is, without a projection (eq. 1); then a gate.

    The gate, 0 to 2 for every channel, is read off the tokens; it is in the published code only.

    Shape: tokens (N, M, dim), map (N, channels, H, W) -> (N, M, dim).
    """

    dim: int
    channels: int
    heads: int = 2

    def body(self) -> nn.Module:
        return _MapAttention(self)

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return _halves("query_gate", self.channels)

    def wires(self, *given: Layout) -> Wires | None:
        z, x = given
        cut(x, [self.channels // self.heads] * self.heads)
        out = fresh(self.dim)
        return Wires([out], linear_wires("query_gate.", x * 2, z) | linear_wires("out.", out, x))


class _MapAttention(nn.Module):
    def __init__(self, op: MapAttention) -> None:
        super().__init__()
        self.op = op
        self.query_gate = nn.Linear(op.dim, 2 * op.channels)
        self.out = nn.Linear(op.channels, op.dim)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        query, gate = self.query_gate(z).chunk(2, 2)
        keys = _positions(x, self.op.heads)
        read = _read(query, keys, keys.transpose(2, 3))
        return cast(Tensor, self.out(2 * F.hardsigmoid(gate) * read))

    def weights(self, z: Tensor, x: Tensor) -> Tensor:
        """How much each token reads of each position: (N, heads, M, H * W), sums to 1 over positions."""
        return _weights(self.query_gate(z).chunk(2, 2)[0], _positions(x, self.op.heads))


def token_attention(calls: Iterable[tuple[Leaf, tuple[Tensor, ...]]]) -> list[Tensor]:
    """What the tokens read of the map in each of these `MapAttention`s, the mean over its heads.

    Args:
        calls: ops and what they were given, by `nas.networks.inside.inputs_of`.

    Returns:
        (N, M, H, W) each, which sums to 1 over the map.
    """
    found = []
    for leaf, (z, x) in calls:
        with torch.no_grad():
            weights = cast(_MapAttention, leaf.body).weights(z, x).mean(1)
        found.append(weights.expand(len(x), -1, -1).reshape(len(x), -1, *x.shape[2:]))
    return found


@dataclass(frozen=True)
class TokenAttention(Op):
    """Every position of a map attends to the tokens; it is the query as it is, without a projection (eq. 2).

    Shape: map (N, channels, H, W), tokens (N, M, dim) -> map.
    """

    dim: int
    channels: int
    heads: int = 2

    def body(self) -> nn.Module:
        return _TokenAttention(self)

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return _halves("key_value", self.channels)

    def wires(self, *given: Layout) -> Wires | None:
        x, z = given
        cut(x, [self.channels // self.heads] * self.heads)
        return Wires([x], linear_wires("key_value.", x * 2, z))


class _TokenAttention(nn.Module):
    def __init__(self, op: TokenAttention) -> None:
        super().__init__()
        self.op = op
        self.key_value = nn.Linear(op.dim, 2 * op.channels)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        key, value = (_per_head(part, self.op.heads) for part in self.key_value(z).chunk(2, 2))
        scores = key * key.shape[3] ** -0.5 @ _positions(x, self.op.heads)  # (N, heads, M, H * W)
        mixed: Tensor = value.transpose(2, 3) @ scores.softmax(2)
        return mixed.view(x.shape)


@dataclass(frozen=True)
class QueryAttention(Op):
    """Tokens attend to each other; they are key and value as they are, only queries are projected (sec. 3.2).

    Shape: (N, M, dim) -> same.
    """

    dim: int
    heads: int = 4

    def body(self) -> nn.Module:
        return _QueryAttention(self)

    def wires(self, *given: Layout) -> Wires | None:
        (z,) = given
        cut(z, [self.dim // self.heads] * self.heads)
        out = fresh(self.dim)
        return Wires([out], linear_wires("query.", z, z) | linear_wires("out.", out, z))


class _QueryAttention(nn.Module):
    def __init__(self, op: QueryAttention) -> None:
        super().__init__()
        self.op = op
        self.query = nn.Linear(op.dim, op.dim)
        self.out = nn.Linear(op.dim, op.dim)

    def forward(self, z: Tensor) -> Tensor:
        values = _per_head(z, self.op.heads)
        return cast(Tensor, self.out(_read(self.query(z), values.transpose(2, 3), values)))


def _read(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of tokens. (N, M, C), (N, heads, C / heads, T), (N, heads, T, C / heads) -> (N, M, C)."""
    mixed: Tensor = _weights(query, keys) @ values
    return mixed.transpose(1, 2).flatten(2)


def _weights(query: Tensor, keys: Tensor) -> Tensor:
    """(N, M, C), (N, heads, C / heads, T) -> (N, heads, M, T)."""
    scores: Tensor = _per_head(query, keys.shape[1]) * keys.shape[2] ** -0.5 @ keys
    return scores.softmax(3)


def _per_head(tokens: Tensor, heads: int) -> Tensor:
    """(N, M, C) -> (N, heads, M, C / heads)."""
    return tokens.view(*tokens.shape[:2], heads, -1).transpose(1, 2)


def _positions(x: Tensor, heads: int) -> Tensor:
    """(N, C, H, W) -> (N, heads, C / heads, H * W)."""
    return x.reshape(x.shape[0], heads, x.shape[1] // heads, -1)


def _halves(layer: str, size: int) -> dict[str, dict[int, tuple[int, ...]]]:
    """The parts of a Linear that makes two things of one size at once."""
    return {f"{layer}.{name}": {0: (size, size)} for name in ("weight", "bias")}


@dataclass(frozen=True)
class DynamicReLU(Op):
    """max(a1 x, a2 x): two slopes for every channel, a1 in [0, 2] and a2 in [-1, 1], read off the first token.

    Dynamic ReLU (arXiv:2003.10027) without intercepts; a plain ReLU where the token's layers give 0.

    Shape: map (N, channels, H, W), first token (N, dim) -> map.
    """

    dim: int
    channels: int

    def body(self) -> nn.Module:
        return _DynamicReLU(self)

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return _halves("slopes", self.channels)

    def wires(self, *given: Layout) -> Wires | None:
        x, first = given
        hidden = fresh(self.dim // 4)
        return Wires([x], linear_wires("reduce.", hidden, first) | linear_wires("slopes.", x * 2, hidden))


class _DynamicReLU(nn.Module):
    def __init__(self, op: DynamicReLU) -> None:
        super().__init__()
        self.reduce = nn.Linear(op.dim, op.dim // 4)
        self.slopes = nn.Linear(op.dim // 4, 2 * op.channels)

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        slopes = 2 * F.hardsigmoid(self.slopes(self.reduce(first).relu()))
        a1, a2 = slopes.view(*slopes.shape, 1, 1).chunk(2, 1)
        a2 = a2 - 1
        return torch.addcmul(((a1 - a2) * x).relu(), a2, x)  # the maximum; its own gradient takes four times as long


@dataclass(frozen=True)
class ChannelShuffle(Op):
    """Channel j of group i becomes channel i of group j, so that the next grouped convolution mixes all groups.

    ShuffleNet (arXiv:1707.01083, fig. 1). Map -> same shape.
    """

    groups: int

    def body(self) -> nn.Module:
        return _ChannelShuffle(self.groups)


class _ChannelShuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], self.groups, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)


@dataclass(frozen=True)
class HiddenLayer(Op):
    """Hard swish of the pooled map, joined with the first token; then Linear, batch norm and hard swish.

    Shape: (N, channels), (N, dim) -> (N, cout).
    """

    channels: int
    dim: int
    cout: int

    def body(self) -> nn.Module:
        return _HiddenLayer(nn.Linear(self.channels + self.dim, self.cout), nn.BatchNorm1d(self.cout))

    def fused(self, body: nn.Module) -> nn.Module:
        hidden = cast(_HiddenLayer, body)
        return _HiddenLayer(fuse_linear_bn_eval(hidden.linear, hidden.norm), nn.Identity())

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return {"linear.weight": {1: (self.channels, self.dim)}}

    def wires(self, *given: Layout) -> Wires | None:
        out = fresh(self.cout)
        return Wires([out], linear_wires("linear.", out, given[0] + given[1]) | norm_wires("norm.", out))


class _HiddenLayer(nn.Module):
    def __init__(self, linear: nn.Linear, norm: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.norm: Any = norm

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        joined = torch.cat([F.hardswish(x), first], 1)
        return F.hardswish(self.norm(self.linear(joined)))


# blocks


@dataclass(frozen=True)
class TwoStream(Block):
    """Base of this family's blocks: their weights start as in the published code."""

    def init(self, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=(2 / (part.kernel_size[0] ** 2 * part.out_channels)) ** 0.5)
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.01)
                nn.init.zeros_(part.bias)


@dataclass(frozen=True)
class Tokens(TwoStream):
    """The learned tokens. Nothing -> tokens (1, M, d), the same for every image, and the first of them (1, d)."""

    takes = ()
    gives = ("z", "first")

    tokens: int = from_stage()
    dim: int = from_stage()

    def build(self) -> nn.Module:
        return _Table(self.tokens, self.dim)


class _Table(nn.Module):
    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, tokens, dim))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.table, self.table[:, 0]


@dataclass(frozen=True)
class BridgeIn(TwoStream):
    """Mobile to Former: the tokens read the map that comes into the block (eq. 1). Tokens, map -> tokens."""

    takes = ("z", "x")
    gives = ("z", "first")
    bridge = True

    def build(self, z: Shape, x: Shape) -> nn.Module:
        attention = MapAttention(z.channels, x.channels).module()
        return _WithFirst(Residual(attention), LayerNorm(z.channels).module())


@dataclass(frozen=True)
class Former(TwoStream):
    """One transformer layer on the tokens: attention and an MLP, norms behind the sums (sec. 3.2). Tokens -> tokens."""

    takes = ("z",)
    gives = ("z", "first")

    def build(self, z: Shape) -> nn.Module:
        dim = z.channels
        mlp = nn.Sequential(Linear(dim, 2 * dim, act="gelu").module(), Linear(2 * dim, dim).module())
        return _WithFirst(
            Residual(QueryAttention(dim).module()),
            LayerNorm(dim).module(),
            Residual(mlp, share=0),
            LayerNorm(dim).module(),
        )


class _WithFirst(nn.Module):
    """Layers on the tokens, the first of which may read the map; gives the tokens, and the first of them."""

    def __init__(self, reader: nn.Module, *layers: nn.Module) -> None:
        super().__init__()
        self.reader = reader
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, *x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.layers(self.reader(z, *x))
        return z, z[:, 0]


@dataclass(frozen=True)
class Mobile(TwoStream):
    """Inverted residual with dynamic ReLUs, stride 1 (sec. 3.2). Map (N, C, H, W), first token -> map of `cout`.

    With groups, those of the 1x1 convolutions, channels are shuffled behind each of them.
    """

    takes = ("x", "first")

    expand: int = one_of(3, 4, 6)
    kernel: int = one_of(3, 5)
    cout: int = from_stage()
    groups: int = from_stage()

    def build(self, x: Shape, first: Shape) -> nn.Module:
        hidden = x.channels * self.expand
        shuffle = [ChannelShuffle(self.groups)] if self.groups > 1 else []
        body = _Steered(
            Conv(x.channels, hidden, groups=self.groups),
            *shuffle,
            DynamicReLU(first.channels, hidden),
            Conv(hidden, hidden, self.kernel, groups=hidden),
            DynamicReLU(first.channels, hidden),
            Conv(hidden, self.cout, groups=self.groups),
            *shuffle,
        )
        return Residual(body) if x.channels == self.cout else body


@dataclass(frozen=True)
class MobileDown(TwoStream):
    """Downsampling: two pairs of an expanding depthwise and a 1x1 convolution, the first pair of stride 2 (sec. 3.2).

    An expanding depthwise convolution of expansion e makes channels e k to e k + e - 1 of channel k; with groups they
    are shuffled behind it. Map (N, C, H, W), first token -> map of `cout`, half the side.
    """

    takes = ("x", "first")

    cout: int = from_stage()
    expands: tuple[int, ...] = (6, 4)
    kernel: int = 3
    groups: int = from_stage()

    def build(self, x: Shape, first: Shape) -> nn.Module:
        down = self._pair(x.channels, first.channels, self.expands[0], stride=2)
        return _Steered(down, Residual(self._pair(self.cout, first.channels, self.expands[1], stride=1)))

    def _pair(self, cin: int, dim: int, expand: int, stride: int) -> nn.Module:
        hidden = cin * expand
        shuffle = [ChannelShuffle(cin)] if self.groups > 1 else []
        return _Steered(
            Conv(cin, hidden, self.kernel, stride, groups=cin),
            *shuffle,
            DynamicReLU(dim, hidden),
            Conv(hidden, self.cout, groups=self.groups),
        )


class _Steered(nn.Module):
    """Layers in order on a map; its dynamic ReLUs also get the first token."""

    def __init__(self, *layers: Op | nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer.module() if isinstance(layer, Op) else layer for layer in layers)

    def forward(self, x: Tensor, first: Tensor) -> Tensor:
        for layer in self.layers:
            plain = isinstance(layer, Leaf) and not isinstance(layer.op, DynamicReLU)
            x = layer(x) if plain else layer(x, first)
        return x


@dataclass(frozen=True)
class BridgeOut(TwoStream):
    """Former to Mobile: the map that goes out of the block reads the tokens (eq. 2). Map, tokens -> map."""

    takes = ("x", "z")
    bridge = True

    def build(self, x: Shape, z: Shape) -> nn.Module:
        return Residual(TokenAttention(z.channels, x.channels).module())


@dataclass(frozen=True)
class MobileStem(TwoStream):
    """3x3 convolution of stride 2 with batch norm and ReLU6. Image -> map of half the side."""

    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return Conv(x.channels, self.cout, 3, 2, act="relu6").module()


@dataclass(frozen=True)
class Lite(TwoStream):
    """The lite bottleneck, without tokens: an expanding depthwise convolution, ReLU6, and a 1x1 one. Map -> map."""

    cout: int = from_stage()
    ratio: int = 2
    stride: int = 1
    groups: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        hidden = x.channels * self.ratio
        shuffle = [ChannelShuffle(x.channels)] if self.groups > 1 else []
        layers = (
            Conv(x.channels, hidden, 3, self.stride, groups=x.channels, act="relu6"),
            *shuffle,
            Conv(hidden, self.cout, groups=self.groups),
        )
        body = in_order(*layers)
        return Residual(body, share=0) if self.stride == 1 and x.channels == self.cout else body


@dataclass(frozen=True)
class WidePooled(TwoStream):
    """1x1 convolution to six times the channels, batch norm, ReLU6, mean over positions. Map -> vector (N, 6 C)."""

    groups: int = 1

    def build(self, x: Shape) -> nn.Module:
        wide = Conv(x.channels, 6 * x.channels, groups=self.groups, act="relu6")
        shuffle = [ChannelShuffle(self.groups)] if self.groups > 1 else []
        layers = (*shuffle, wide, Mean())
        return in_order(*layers)


@dataclass(frozen=True)
class Joined(TwoStream):
    """The hidden layer of the classifier, on the pooled map and the first token. Vectors -> vector (N, features)."""

    takes = ("x", "first")

    features: int = from_stage()

    def build(self, x: Shape, first: Shape) -> nn.Module:
        return HiddenLayer(x.channels, first.channels, self.features).module()


# how they go together


@dataclass(frozen=True)
class Bridged(Stage):
    """Mobile-Former blocks: one that changes resolution or width, then equal ones behind it.

    The tokens come in at the first such stage of a net; it has its bridges in any case, unless it is a `FirstBridged`:
    of tokens that have not read a map every dynamic ReLU would be a constant.

    Attributes:
        entry: MobileDown, or a Mobile where the resolution stays.
        body: the Mobile of the blocks behind it.
        width: choice of channels.
        depth: choice of the number of blocks, the entry among them.
        bridges: choice whether the stage has its bridges and Formers, or its Mobile parts alone.
        grouped: the width at which the stage has the groups that the net chose; none at any other width.
    """

    entry: Block
    body: Block
    width: Any
    depth: Any
    bridges: Any
    grouped: int = 0

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        tokens = () if "z" in streams else (fill(Tokens(), picked),)
        mobiles = [self._fill(mobile, picked) for mobile in self._mobiles(picked)]
        if not self._has_bridges(picked, streams):
            return (*tokens, *mobiles)
        return (*tokens, *(block for mobile in mobiles for block in (BridgeIn(), Former(), mobile, BridgeOut())))

    def _has_bridges(self, picked: Mapping[str, Any], streams: frozenset[str]) -> bool:
        return picked["bridges"] or "z" not in streams

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        mobiles = [block for block in blocks if isinstance(block, (Mobile, MobileDown))]
        if not mobiles:
            return {}
        last, same_kind = mobiles[-1], type(self.entry) is type(self.body)
        is_body = type(last) is type(self.body) and (len(mobiles) > 1 or not same_kind)
        shown = {name: getattr(last, name) for name in self.body.open_fields()} if is_body else {}
        bridges = any(isinstance(block, BridgeOut) for block in blocks)
        return shown | {"width": last.cout, "depth": len(mobiles), "bridges": bridges}

    def _mobiles(self, picked: Mapping[str, Any]) -> Blocks:
        return (self.entry, *[self.body] * (picked["depth"] - 1))

    def _fill(self, block: Block, picked: Mapping[str, Any]) -> Block:
        groups = picked["groups"] if picked["width"] == self.grouped else 1
        return fill(block, picked, cout=picked["width"], groups=groups)


@dataclass(frozen=True)
class FirstBridged(Bridged):
    """The first stage: in front of its Mobile-Former blocks the stem and the lite bottleneck.

    Attributes:
        starts: for every width the stem and the lite bottleneck. Where that has stride 2, nothing else downsamples.
    """

    starts: tuple[tuple[int, tuple[MobileStem, Lite]], ...] = ()

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        stem, lite = self._start(picked)
        return (stem, self._fill(lite, picked), *super().lay(picked, streams))

    def _has_bridges(self, picked: Mapping[str, Any], streams: frozenset[str]) -> bool:
        return bool(picked["bridges"])

    def _mobiles(self, picked: Mapping[str, Any]) -> Blocks:
        downsampled = self._start(picked)[1].stride == 2
        return (self.body,) * picked["depth"] if downsampled else super()._mobiles(picked)

    def _start(self, picked: Mapping[str, Any]) -> tuple[MobileStem, Lite]:
        starts, width = dict(self.starts), picked["width"]
        if width not in starts:
            raise InputError(
                f"no stem for a first stage of width {width}; there is one for {', '.join(map(str, starts))}"
            )
        return starts[width]


def head(last: Blocks) -> Blocks:
    """What stands behind the last stage: the tokens read its map once more, then map and first token are joined.

    The hidden layer has ten features for every channel of the last map, but 1024 at least and 1920 at most, as in the
    published nets.
    """
    mobile = next(block for block in reversed(last) if isinstance(block, (Mobile, MobileDown)))
    features = min(max(10 * mobile.cout, 1024), 1920)
    return (BridgeIn(), WidePooled(mobile.groups), Joined(features), Logits(heads=1))


def settle(shared: dict[str, Any]) -> dict[str, Any]:
    """Few tokens are 128 wide and many 192, four are either; only the three of the smallest net go with groups."""
    tokens, dim = shared["tokens"], shared["dim"]
    dim = 128 if tokens < 4 else 192 if tokens > 4 else dim
    return {"tokens": tokens, "dim": dim, "groups": shared["groups"] if tokens == 3 else 1}


STARTS = (
    (12, (MobileStem(8), Lite(12, ratio=3, stride=2))),
    (16, (MobileStem(12), Lite(12))),
    (20, (MobileStem(12), Lite(12))),
    (24, (MobileStem(16), Lite(16))),
    (40, (MobileStem(24), Lite(24))),
)
EARLY = Mobile(one_of(3, 4), kernel=3)
MIDDLE = Mobile(one_of(4, 6), kernel=one_of(3, 5))
LAST = Mobile(6, kernel=one_of(3, 5))
ON_OR_OFF = one_of(True, False)

SPACE = Space(
    name="mobileformer",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        FirstBridged(MobileDown(), EARLY, one_of(12, 16, 20, 24, 40), one_of(1, 2, 3), ON_OR_OFF, 12, STARTS),
        Bridged(MobileDown(), EARLY, one_of(24, 32, 40, 48, 72), one_of(1, 2, 3), ON_OR_OFF, 24),
        Bridged(MobileDown(), EARLY, one_of(48, 64, 80, 96, 128), one_of(1, 2, 3, 4), ON_OR_OFF, 48),
        Bridged(Mobile(6, 3), MIDDLE, one_of(64, 88, 112, 128, 176), one_of(1, 2, 3, 4), ON_OR_OFF, 64),
        Bridged(MobileDown(), LAST, one_of(96, 128, 160, 192, 240), one_of(1, 2, 3, 4), ON_OR_OFF, 96),
    ),
    head=head,
    monotone=False,
    rise=1,
    shared={"tokens": one_of(1, 2, 3, 4, 6, 8), "dim": one_of(128, 192), "groups": one_of(1, 4)},
    settle=settle,
)

SMALL_START = MobileStem(12), Lite(12)

SMALL = Space(
    name="mobileformer-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        FirstBridged(
            MobileDown(),
            Mobile(one_of(2, 4), kernel=3),
            one_of(16, 24),
            one_of(1, 2, 3),
            True,
            starts=((16, SMALL_START), (24, SMALL_START)),
        ),
        Bridged(MobileDown(), Mobile(one_of(2, 4), one_of(3, 5)), one_of(32, 48), one_of(1, 2, 3, 4), ON_OR_OFF),
    ),
    head=head,
    monotone=False,
    rise=1,
    shared={"tokens": one_of(1, 3, 6), "dim": 64, "groups": 1},
)

SPACES = (SMALL,)


def make(
    widths: Sequence[int],
    depths: Sequence[int],
    expands: Sequence[int],
    stem: int,
    tokens: int,
    dim: int,
    features: int,
    *,
    lite: tuple[int, int] = (2, 1),
    strides: Sequence[int] = (2, 2, 2, 1, 2),
    kernel: int = 3,
    groups: int = 1,
    bridges: bool = True,
    side: int = 224,
    classes: int = 1000,
) -> Arch:
    """A Mobile-Former of any size, on the grid of the shipped space or off it.

    Args:
        widths: channels of the stages.
        depths: Mobile-Former blocks of the stages.
        expands: of every stage, how many times its width the blocks of stride 1 are wide inside.
        stem: channels of the stem.
        tokens: number of the tokens, M.
        dim: their width, d.
        features: of the hidden layer of the classifier.
        lite: expansion and stride of the lite bottleneck; of stride 2 it gives the first stage's width and downsamples
            in place of the stage.
        strides: of the stages.
        kernel: side of the depthwise kernels of blocks of stride 1.
        groups: of the 1x1 convolutions.
        bridges: without them the map sees only the first token, as it was learned.
        side: input side in pixels.
        classes: number of logits.
    """
    ratio, lite_stride = lite
    start = MobileStem(stem), Lite(widths[0] if lite_stride == 2 else stem, ratio, lite_stride, groups)
    stages: list[Stage] = []
    for width, depth, expand, stride in zip(widths, depths, expands, strides, strict=True):
        body = Mobile(expand=expand, kernel=kernel, groups=groups)
        entry = MobileDown(groups=groups) if stride == 2 else body
        if not stages:
            stages.append(FirstBridged(entry, body, width, depth, bridges, starts=((width, start),)))
        else:
            stages.append(Bridged(entry, body, width, depth, bridges))
    behind = (BridgeIn(), WidePooled(groups), Joined(features), Logits(heads=1))
    shared = {"tokens": tokens, "dim": dim, "groups": groups}
    one = Space("mobileformer", (3, side, side), classes, tuple(stages), behind, monotone=False, shared=shared)
    return one.arch({})


BIG, SMALLER = (2, 2, 2, 2, 3), (1, 2, 2, 1, 2)  # blocks of the stages
TINY = (12, 24, 48, 64, 96), SMALLER, (3, 3, 4, 6, 6), 8, 3, 128, 1024
PRESETS: Mapping[str, Arch] = {
    "mobileformer-508m": make((40, 72, 128, 176, 240), BIG, (3, 3, 4, 6, 6), 24, 6, 192, 1920),
    "mobileformer-294m": make((24, 48, 96, 128, 192), BIG, (4, 4, 4, 6, 6), 16, 6, 192, 1920),
    "mobileformer-214m": make((20, 40, 80, 112, 160), BIG, (3, 4, 4, 6, 6), 12, 6, 192, 1600),
    "mobileformer-151m": make((16, 32, 64, 88, 128), BIG, (3, 3, 4, 6, 6), 12, 6, 192, 1280),
    "mobileformer-96m": make((16, 32, 64, 88, 128), SMALLER, (3, 3, 4, 6, 6), 12, 4, 128, 1280),
    "mobileformer-52m": make(*TINY, lite=(3, 2)),
    "mobileformer-26m": make(*TINY, lite=(3, 2), groups=4),
}

PUBLISHED: Mapping[str, Published] = {
    f"mobileformer-{size}": Published(top1, "github.com/AAboys/MobileFormer, README", "450 epochs")
    for size, top1 in {
        **{"508m": 0.793, "294m": 0.779, "214m": 0.767, "151m": 0.752},
        **{"96m": 0.728, "52m": 0.687, "26m": 0.640},
    }.items()
}
