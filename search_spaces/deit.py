"""DeiT (arXiv:2012.12877, without its distillation token): the plain vision transformer (ViT, arXiv:2010.11929).

Image patches become tokens, a class token stands in front of them, and equal blocks of attention and MLP follow at one
resolution. Hosts of token pruning and of channel shuffle are made of the blocks of this file.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nas.core.arch import Arch
from nas.core.blocks import Logits
from nas.core.channels import Layout, Wires, fresh
from nas.core.errors import InputError
from nas.core.ops import (
    Block,
    LayerNorm,
    Linear,
    Op,
    Residual,
    Shape,
    from_stage,
    linear_wires,
    one_of,
    resized,
    scale_rows,
)
from nas.core.space import Repeat, Space
from search_spaces import Published

# ops


@dataclass(frozen=True)
class Patchify(Op):
    """Convolution whose kernel is its stride: every patch one token, row by row.

    Shape: (N, cin, H, W) -> (N, H * W / patch**2, cout).
    """

    cin: int
    cout: int
    patch: int = 16

    def body(self) -> nn.Module:
        return _Patchify(self)

    def wires(self, *given: Layout) -> Wires | None:
        out = fresh(self.cout)
        return Wires([out], linear_wires("conv.", out, given[0]))


class _Patchify(nn.Module):
    def __init__(self, op: Patchify) -> None:
        super().__init__()
        self.conv = nn.Conv2d(op.cin, op.cout, op.patch, op.patch)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x)).flatten(2).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class ClassAndPositions(Op):
    """A learned class token in front, then a learned position added to every token.

    Shape: (N, tokens, dim) -> (N, 1 + tokens, dim).
    """

    fixed_in_host: ClassVar[bool] = True

    dim: int
    tokens: int

    def body(self) -> nn.Module:
        return _ClassAndPositions(self)

    def tables(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"positions": functools.partial(resized, side=math.isqrt(self.tokens), front=1)}

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {name: {2: given[0]} for name in ("token", "positions")})


class _ClassAndPositions(nn.Module):
    def __init__(self, op: ClassAndPositions) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, op.dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + op.tokens, op.dim))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions


@dataclass(frozen=True)
class Attention(Op):
    """Multi-head self-attention; one Linear makes q | k | v (arXiv:1706.03762, sec. 3.2.2).

    Shape: (N, T, dim) -> same. In training form a second input keep (N, T), 1 or 0, may say which tokens others see
    (`masked_softmax`); a token always sees itself.

    Attributes:
        dim: channels, a multiple of `heads`.
        heads: how many; each has dim / heads channels, and scores are divided by the root of that.
        bias: whether q, k and v have one; the output always has.
    """

    dim: int
    heads: int
    bias: bool = True

    def body(self) -> nn.Module:
        return _Attention(self)

    def fused(self, body: nn.Module) -> nn.Module:
        return _FusedAttention(self, cast(_Attention, body))

    def scaled(self, body: nn.Module, gamma: Tensor) -> nn.Module | None:
        attention = cast(_FusedAttention, body)
        attention.proj = cast(nn.Linear, scale_rows(attention.proj, gamma))
        return attention

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return {f"qkv.{name}": {0: (self.dim,) * 3} for name in ("weight", "bias")}

    def wires(self, *given: Layout) -> Wires | None:
        heads, out = fresh(self.heads, self.dim // self.heads), fresh(self.dim)
        return Wires([out], linear_wires("qkv.", heads * 3, given[0]) | linear_wires("proj.", out, heads))


class _Attention(nn.Module):
    def __init__(self, op: Attention) -> None:
        super().__init__()
        self.op = op
        self.qkv = nn.Linear(op.dim, 3 * op.dim, bias=op.bias)
        self.proj = nn.Linear(op.dim, op.dim)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        query, key, value = _per_head(self.qkv(x), self.op.heads)
        if keep is None:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            scores = query * query.shape[3] ** -0.5 @ key.transpose(2, 3)
            mixed = masked_softmax(scores, keep) @ value
        return cast(Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))


class _FusedAttention(nn.Module):
    """The softmax scale inside the query weights; plain products, which exporters and runtimes know."""

    def __init__(self, op: Attention, body: _Attention) -> None:
        super().__init__()
        self.op = op
        factor = torch.ones(3 * op.dim, dtype=body.qkv.weight.dtype, device=body.qkv.weight.device)
        factor[: op.dim] = (op.dim // op.heads) ** -0.5
        self.qkv = scale_rows(body.qkv, factor)
        self.proj = body.proj

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = _per_head(self.qkv(x), self.op.heads)
        mixed = (query @ key.transpose(2, 3)).softmax(3) @ value
        return cast(Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))


def _per_head(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(N, T, 3 C) -> query, key and value, each (N, heads, T, C / heads)."""
    return qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


@dataclass(frozen=True)
class Damp(Op):
    """A fixed part of every channel, in percent; deployed, it is in the weights of the layer before it.

    Shape: (N, T, dim) -> same.
    """

    dim: int
    percent: int

    def body(self) -> nn.Module:
        return _Damp(self)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {})


class _Damp(nn.Module):
    gamma: Tensor

    def __init__(self, op: Damp) -> None:
        super().__init__()
        self.register_buffer("gamma", torch.full((op.dim,), op.percent / 100), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def masked_softmax(scores: Tensor, keep: Tensor, eps: float = 1e-6) -> Tensor:
    """Softmax over the tokens that are kept, and over each token itself; differentiable in `keep`.

    DynamicViT (arXiv:2106.02034, sec. 3.3) with the published code's eps, which shares out that much weight evenly.
    Computed in fp32 at least.

    Args:
        scores: of query i and key j, (N, heads, T, T).
        keep: (N, T), 1 for tokens that are seen, 0 for those that only see themselves.
        eps: added to each sum.
    """
    tokens, kind = scores.shape[3], torch.promote_types(scores.dtype, torch.float32)
    itself = torch.eye(tokens, dtype=kind, device=scores.device)
    seen = keep.to(kind)[:, None, None, :]
    seen = seen + (1 - seen) * itself  # (N, 1, T, T)
    raised = (scores - scores.amax(3, keepdim=True)).to(kind).exp() * seen
    weights = (raised + eps / tokens) / (raised.sum(3, keepdim=True) + eps)
    return weights.to(scores.dtype)


# blocks


@dataclass(frozen=True)
class PatchTokens(Block):
    """Patches as tokens, a class token in front, positions added. Image -> tokens (N, 1 + (side / patch)**2, cout)."""

    prefix_tokens: ClassVar[int] = 1  # tokens in front of those of the map, from here on

    cout: int = from_stage()
    patch: int = 16

    def build(self, x: Shape) -> nn.Module:
        if x.side % self.patch:
            raise InputError(f"PatchTokens patch={self.patch}: does not divide an image of side {x.side}")
        patchify = Patchify(x.channels, self.cout, self.patch)
        return nn.Sequential(patchify.module(), ClassAndPositions(self.cout, (x.side // self.patch) ** 2).module())


@dataclass(frozen=True)
class ViTBlock(Block):
    """Attention, then an MLP with GELU, each behind a layer norm and in a residual. Tokens -> tokens.

    Attributes:
        ratio: of the MLP.
        head_dim: channels of a head of attention.
        bias: whether q, k and v have one.
        eps: of the norms.
        branch: percent of each branch that is added to its input.
    """

    ratio: int = one_of(2, 3, 4)
    head_dim: int = 64
    bias: bool = True
    eps: str = "1e-6"
    branch: int = 100

    def build(self, x: Shape) -> nn.Module:
        return nn.Sequential(*self.residuals(x.channels))

    def residuals(self, dim: int) -> tuple[Residual, Residual]:
        """Attention and MLP on so many channels.

        Raises:
            InputError: they are no multiple of a head's.
        """
        if dim % self.head_dim:
            raise InputError(f"{type(self).__name__}: {dim} channels are no multiple of head_dim={self.head_dim}")
        norm, hidden = LayerNorm(dim, self.eps), dim * self.ratio
        attention = PreNorm(norm, Attention(dim, dim // self.head_dim, self.bias))
        mlp = PreNorm(norm, Linear(dim, hidden, act="gelu"), Linear(hidden, dim))
        return self._residual(attention, dim), self._residual(mlp, dim)

    def _residual(self, branch: nn.Module, dim: int) -> Residual:
        residual = Residual(branch)
        residual.scale = Damp(dim, self.branch).module() if self.branch != 100 else None
        return residual


class PreNorm(nn.Sequential):
    """Ops in order; the second, behind the norm, also reads what else is given."""

    def __init__(self, *ops: Op) -> None:
        super().__init__(*(op.module() for op in ops))

    def forward(self, x: Tensor, *others: Tensor) -> Any:
        norm, reader, *rest = self
        x = reader(norm(x), *others)
        for layer in rest:
            x = layer(x)
        return x


@dataclass(frozen=True)
class ClassToken(Block):
    """The class token behind a layer norm, which needs no other token. Tokens (N, T, C) -> vector (N, C)."""

    eps: str = "1e-6"

    def build(self, x: Shape) -> nn.Module:
        return _ClassToken(LayerNorm(x.channels, self.eps))


class _ClassToken(nn.Module):
    def __init__(self, norm: LayerNorm) -> None:
        super().__init__()
        self.norm = norm.module()

    def forward(self, x: Tensor) -> Any:
        return self.norm(x[:, 0])


HEAD = (ClassToken(), Logits(heads=1))

SPACE = Space(
    name="deit",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Repeat(
            PatchTokens(),
            ViTBlock(),
            width=one_of(128, 192, 256, 320, 384, 448, 512, 576, 640, 768),
            depth=one_of(*range(4, 17)),
        ),
    ),
    head=HEAD,
)

SMALL = Space(
    name="deit-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Repeat(
            PatchTokens(patch=one_of(4, 8)),
            ViTBlock(one_of(2, 4), head_dim=16),
            width=one_of(32, 48, 64),
            depth=one_of(2, 3, 4, 5),
        ),
    ),
    head=HEAD,
)

SPACES = (SMALL,)


def make(
    width: int,
    depth: int,
    *,
    ratio: int = 4,
    head_dim: int = 64,
    patch: int = 16,
    side: int = 224,
    classes: int = 1000,
) -> Arch:
    """A DeiT of any size, on the grid of the shipped space or off it.

    Args:
        width: channels, a multiple of `head_dim`.
        depth: number of blocks.
        ratio: of the MLPs.
        head_dim: channels of a head of attention.
        patch: side of the patches in pixels.
        side: input side in pixels, a multiple of `patch`.
        classes: number of logits.
    """
    stage = Repeat(PatchTokens(patch=patch), ViTBlock(ratio, head_dim), width, depth)
    return Space("deit", (3, side, side), classes, (stage,), HEAD).arch({})


PRESETS: Mapping[str, Arch] = {
    "deit-t": make(192, 12),
    "deit-256": make(256, 12),  # a host of DynamicViT (arXiv:2106.02034)
    "deit-s": make(384, 12),
    "deit-b": make(768, 12),
}

PUBLISHED: Mapping[str, Published] = {
    f"deit-{size}": Published(top1, "github.com/facebookresearch/deit, README_deit", "300 epochs, no teacher")
    for size, top1 in (("t", 0.722), ("s", 0.799), ("b", 0.818))
}

TIMM: Mapping[str, str | None] = {
    f"deit-{name[0]}": f"deit_{name}_patch16_224" for name in ("tiny", "small", "base")
} | {"deit-256": None}


def from_timm(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """The weights of timm's `deit_*_patch*`, under the names of our model of the same architecture.

    Args:
        state: timm's state dict.
        arch: the architecture to load into, such as a preset.
    """
    stem, head = "stages.0.0.body.", f"stages.{len(arch.stages) - 1}."
    names = {
        "cls_token": f"{stem}1.body.token",
        "pos_embed": f"{stem}1.body.positions",
        "patch_embed.proj.": f"{stem}0.body.conv.",
        "norm.": f"{head}0.body.norm.body.",
        "head.": f"{head}1.body.body.heads.0.",
    }
    places = [place for place, block in enumerate(arch.stages[0]) if isinstance(block, ViTBlock)]
    for number, place in enumerate(places):
        ours = {f"blocks.{number}.{theirs}": f"stages.0.{place}.body.{name}" for theirs, name in BLOCK_NAMES.items()}
        names |= ours
    renamed = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        if prefix is not None:
            renamed[names[prefix] + key.removeprefix(prefix)] = value
    return renamed


#: where timm's layers of a block stand in ours
BLOCK_NAMES = {
    "norm1.": "0.body.0.body.",
    "attn.": "0.body.1.body.",
    "norm2.": "1.body.0.body.",
    "mlp.fc1.": "1.body.1.body.0.",
    "mlp.fc2.": "1.body.2.body.",
}
