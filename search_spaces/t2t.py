"""T2T-ViT (arXiv:2101.11986): overlapping neighbourhoods become tokens in steps, then a deep and narrow plain ViT.

Each step ("soft split", sec. 3.1) takes the k x k neighbourhood of every position as one token; between the steps stand
one-head token stages, either of softmax attention or performers, whose attention is linear in the number of tokens
(arXiv:2009.14794). What follows the published code: the shortcut of a token stage is its value, scores are divided by
the root of the width that comes in, and a performer's linear layer has a bias and gives k | q | v. Positions (a fixed
sinusoid) and the performer's random features are parameters without gradient and count as such.

The published weights do not fit the blocks behind the token stages: their functions that load them divide scores by the
root of all channels (`qk_scale = 384 ** -0.5` for T2T-ViT-14), where the code's default, the paper and we take the
channels of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nas.core.arch import Arch
from nas.core.blocks import Logits
from nas.core.channels import Layout, Wires, fresh, times
from nas.core.errors import InputError, suggest
from nas.core.ops import Add, Block, LayerNorm, Linear, Op, Shape, from_stage, in_order, linear_wires, one_of
from nas.core.space import Repeat, Space
from search_spaces import Published
from search_spaces.deit import ClassToken, ViTBlock

#: what the error says where weights would be loaded
ON_WEIGHTS = (
    "the published weights were trained with scores divided by the root of all channels (qk_scale = dim ** -0.5), not "
    "of a head's, as these blocks do: the first dim rows of each qkv have to be multiplied by heads ** -0.5"
)
DROPOUT = 0.1  # of performers, whatever the rate elsewhere
TINY = 1e-8  # added to the sum of a performer's weights


@dataclass(frozen=True)
class SoftSplit(Op):
    """The k x k neighbourhood of every stride-th position as one token, padded with zeros.

    Map (N, C, side, side), or tokens (N, side * side, C), -> (N, (side / stride)**2, C * kernel**2); a token is ordered
    by channel, row and column.
    """

    side: int
    kernel: int
    stride: int

    def body(self) -> nn.Module:
        if self.kernel < self.stride:
            raise InputError(f"{self}: neighbourhoods of {self.kernel} do not cover a map in steps of {self.stride}")
        return _SoftSplit(self)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires([times(given[0], self.kernel**2)], {})


class _SoftSplit(nn.Module):
    def __init__(self, op: SoftSplit) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.op.kernel, self.op.stride
        if x.ndim == 3:
            x = x.transpose(1, 2).view(x.shape[0], -1, self.op.side, self.op.side)
        patches = F.unfold(x, kernel, padding=(kernel - stride + 1) // 2, stride=stride)
        return patches.transpose(1, 2).contiguous()


@dataclass(frozen=True)
class PerformerAttention(Op):
    """Value plus attention of one head by positive random features (arXiv:2009.14794, eq. 5): linear in tokens.

    Features are exp(w z - |z|**2 / 2) for dim / 2 fixed rows w. Nothing is subtracted before exp, so half precision
    would overflow; under autocast this op stays in the precision of its weights.

    Shape: (N, T, cin) -> (N, T, dim).
    """

    cin: int
    dim: int

    def body(self) -> nn.Module:
        return _PerformerAttention(self)

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return {f"kqv.{name}": {0: (self.dim,) * 3} for name in ("weight", "bias")}


class _PerformerAttention(nn.Module):
    def __init__(self, op: PerformerAttention) -> None:
        super().__init__()
        count = op.dim // 2
        self.kqv = nn.Linear(op.cin, 3 * op.dim)
        self.proj = nn.Linear(op.dim, op.dim)
        self.dropout = nn.Dropout(DROPOUT)
        self.rows = nn.Parameter(torch.empty(count, op.dim), requires_grad=False)
        nn.init.orthogonal_(self.rows, gain=count**0.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
            return self._run(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._run(x.to(self.rows.dtype))

    def _run(self, x: Tensor) -> Tensor:
        key, query, value = self.kqv(x).chunk(3, 2)
        keys, queries = self._features(key), self._features(query)  # (N, T, dim / 2)
        mixed = queries @ (keys.transpose(1, 2) @ value)
        total = queries @ keys.sum(1).unsqueeze(2)  # (N, T, 1)
        return cast(Tensor, value + self.dropout(self.proj(mixed / (total + TINY))))

    def _features(self, z: Tensor) -> Tensor:
        exponent = z @ self.rows.T - z.square().sum(2, keepdim=True) / 2
        return cast(Tensor, exponent.exp() * self.rows.shape[0] ** -0.5)


@dataclass(frozen=True)
class SoftmaxAttention(Op):
    """Value plus softmax attention of one head, scores divided by the root of `cin`. (N, T, cin) -> (N, T, dim)."""

    cin: int
    dim: int

    def body(self) -> nn.Module:
        return _SoftmaxAttention(self)

    def fused(self, body: nn.Module) -> nn.Module:
        return _FusedSoftmaxAttention(self, cast(_SoftmaxAttention, body))

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return {"qkv.weight": {0: (self.dim,) * 3}}

    def wires(self, *given: Layout) -> Wires | None:
        keys, values = fresh(self.dim), fresh(self.dim)
        held = linear_wires("qkv.", keys + keys + values, given[0]) | linear_wires("proj.", values, values)
        return Wires([values], held)


class _SoftmaxAttention(nn.Module):
    def __init__(self, op: SoftmaxAttention) -> None:
        super().__init__()
        self.scale = op.cin**-0.5
        self.qkv = nn.Linear(op.cin, 3 * op.dim, bias=False)
        self.proj = nn.Linear(op.dim, op.dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unsqueeze(1).chunk(3, 3)  # (N, 1, T, dim)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return cast(Tensor, (value + self.proj(mixed)).squeeze(1))


class _FusedSoftmaxAttention(nn.Module):
    """The softmax scale inside the query weights; plain products, which exporters and runtimes know."""

    def __init__(self, op: SoftmaxAttention, body: _SoftmaxAttention) -> None:
        super().__init__()
        self.qkv, self.proj = body.qkv, body.proj
        self.qkv.weight[: op.dim] *= body.scale

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, 2)
        weights = (query @ key.transpose(1, 2)).softmax(2)
        return cast(Tensor, value + self.proj(weights @ value))


TOKEN_STAGES: Mapping[str, type[PerformerAttention | SoftmaxAttention]] = {
    "performer": PerformerAttention,
    "transformer": SoftmaxAttention,
}


@dataclass(frozen=True)
class ClassAndSinusoid(Op):
    """A learned class token in front, then a fixed sinusoid of its position added to every token.

    Positions count from 0 for the class token over the map row by row (arXiv:1706.03762, sec. 3.5).

    Shape: (N, tokens, dim) -> (N, 1 + tokens, dim).
    """

    dim: int
    tokens: int

    def body(self) -> nn.Module:
        return _ClassAndSinusoid(self)

    def tables(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"positions": lambda other: _sinusoid(1 + self.tokens, self.dim).unsqueeze(0).to(other)}


class _ClassAndSinusoid(nn.Module):
    def __init__(self, op: ClassAndSinusoid) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, op.dim))
        self.positions = nn.Parameter(_sinusoid(1 + op.tokens, op.dim).unsqueeze(0), requires_grad=False)
        nn.init.trunc_normal_(self.token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions


def _sinusoid(count: int, dim: int) -> Tensor:
    """Sine in even and cosine in odd channels i of p / 10000**(2 (i // 2) / dim), (count, dim); computed in fp64."""
    channels = torch.arange(dim)
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000 ** (2.0 * (channels // 2).double() / dim)
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()


@dataclass(frozen=True)
class TokenStage(Block):
    """A soft split, then one-head attention and an MLP, both of width `cout` (sec. 3.1). Map or tokens -> tokens.

    Attributes:
        kernel, stride: of the split.
        kind: `performer` or `transformer`.
        cout: channels of the tokens that go out, even for performers.
    """

    kernel: int = 3
    stride: int = 2
    kind: str = one_of(*TOKEN_STAGES)
    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        if self.kind not in TOKEN_STAGES:
            raise InputError(suggest("token stage", self.kind, TOKEN_STAGES))
        cin, dim = x.channels * self.kernel**2, self.cout
        ops = (SoftSplit(x.side, self.kernel, self.stride), LayerNorm(cin), TOKEN_STAGES[self.kind](cin, dim))
        mlp = (LayerNorm(dim), Linear(dim, dim, act="gelu"), Linear(dim, dim))
        dropout = [nn.Dropout(DROPOUT)] if self.kind == "performer" else []
        body = nn.Sequential(*in_order(*mlp), *dropout)
        return nn.Sequential(*in_order(*ops), _Shortcut(body))


class _Shortcut(nn.Module):
    """x + body(x), in a block that has no share in the drop path: its rates grow over the blocks behind it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.add = Add().module()

    def forward(self, x: Tensor) -> Any:
        return self.add(x, self.body(x))


@dataclass(frozen=True)
class SplitTokens(Block):
    """The last soft split, a Linear, a class token in front, positions added. Map or tokens -> tokens of `cout`."""

    prefix_tokens: ClassVar[int] = 1  # tokens in front of those of the map, from here on

    cout: int = from_stage()
    kernel: int = 3
    stride: int = 2

    def build(self, x: Shape) -> nn.Module:
        split = SoftSplit(x.side, self.kernel, self.stride)
        linear = Linear(x.channels * self.kernel**2, self.cout)
        embed = ClassAndSinusoid(self.cout, (x.side // self.stride) ** 2)
        return in_order(split, linear, embed)


EPS = "1e-5"
HEAD = (ClassToken(EPS), Logits(heads=1))


def vit_block(ratio: int, head_dim: int = 64) -> ViTBlock:
    """The block of the deep part: that of a plain ViT, without bias in q, k and v."""
    return ViTBlock(ratio, head_dim, bias=False, eps=EPS)


SPACE = Space(
    name="t2t",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Repeat(TokenStage(7, 4), TokenStage(), width=64, depth=1),
        Repeat(
            SplitTokens(),
            vit_block(one_of(2, 3, 4)),
            width=one_of(192, 256, 320, 384, 448, 512),
            depth=one_of(*range(4, 25)),
        ),
    ),
    head=HEAD,
)

SMALL = Space(
    name="t2t-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Repeat(TokenStage(), TokenStage(), width=one_of(16, 24), depth=1),
        Repeat(SplitTokens(stride=1), vit_block(one_of(2, 3), 16), width=one_of(32, 48, 64), depth=one_of(2, 3, 4)),
    ),
    head=HEAD,
)

SPACES = (SMALL,)


def make(
    width: int,
    depth: int,
    *,
    kind: str = "performer",
    ratio: int = 2,
    head_dim: int = 64,
    tokens: int = 64,
    splits: tuple[tuple[int, int], ...] = ((7, 4), (3, 2), (3, 2)),
    side: int = 224,
    classes: int = 1000,
) -> Arch:
    """A T2T-ViT of any size, on the grid of the shipped space or off it.

    Args:
        width: channels of the deep part, a multiple of `head_dim`.
        depth: blocks of the deep part.
        kind: of the token stages, `performer` or `transformer`.
        ratio: of the MLPs of the deep part.
        head_dim: channels of a head of attention.
        tokens: channels of the token stages.
        splits: kernel and stride of the three soft splits.
        side: input side in pixels, a multiple of all strides.
        classes: number of logits.
    """
    first, second, last = splits
    stages = (
        Repeat(TokenStage(*first, kind), TokenStage(*second, kind), tokens, 1),
        Repeat(SplitTokens(kernel=last[0], stride=last[1]), vit_block(ratio, head_dim), width, depth),
    )
    return Space("t2t", (3, side, side), classes, stages, HEAD, monotone=False).arch({})


LARGER = {14: 384, 19: 448, 24: 512}  # depth: width
PRESETS: Mapping[str, Arch] = (
    {f"t2t-vit-{depth}": make(256, depth) for depth in (7, 10, 12)}
    | {f"t2t-vit-{depth}": make(width, depth, ratio=3) for depth, width in LARGER.items()}
    | {f"t2t-vit-t-{depth}": make(width, depth, kind="transformer", ratio=3) for depth, width in LARGER.items()}
)

PUBLISHED: Mapping[str, Published] = {
    f"t2t-vit-{size}": Published(top1, "github.com/yitu-opensource/T2T-ViT, README", "300 epochs and 10 to cool down")
    for size, top1 in {
        **{"7": 0.717, "10": 0.752, "12": 0.765, "14": 0.815, "19": 0.819, "24": 0.823},
        **{"t-14": 0.817, "t-19": 0.824, "t-24": 0.826},
    }.items()
}
