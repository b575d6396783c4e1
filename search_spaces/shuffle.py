"""Channel shuffle for small vision transformers (arXiv:2310.05642), on DeiT, T2T-ViT and Swin.

Tokens get twice the channels, but every block works on the first half alone, the attended group, just as it does in the
narrow host; the idle half passes by. Behind each block both halves interleave (as in ShuffleNet V2, arXiv:1807.11164),
so half of the idle channels are attended next. Only embedding, last norm and head get wider, and in Swin each group has
a merge of its own. Two learned factors per block balance both groups; the paper's text leaves open what they multiply,
so `RESCALINGS` has the ways. Where the author's code of 2021 halves the shortcut, that is `half`.

Shuffled T2T-ViTs are our own: the paper has some, but no numbers of theirs are known to us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas.core.arch import Arch, Blocks
from nas.core.errors import InputError, suggest
from nas.core.ops import Block, Concat, Op, Residual, Shape, from_stage, one_of
from nas.core.space import Either, Space, Stage, fill
from search_spaces import Published, deit, swin, t2t
from search_spaces.deit import PatchTokens, ViTBlock
from search_spaces.swin import SwinBlock, SwinEmbed, SwinMerge, Windowed, alternating, merging
from search_spaces.t2t import SplitTokens, TokenStage

#: how the residuals of the attended group add: of the shortcut x, the branch y and the factor a
RESCALINGS: Mapping[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "plain": lambda x, y, a: x + y,
    "half": lambda x, y, a: torch.add(y, x, alpha=0.5),
    "shortcut": lambda x, y, a: torch.addcmul(y, x, a),
    "branch": lambda x, y, a: torch.addcmul(x, y, a),
    "sum": lambda x, y, a: a * (x + y),
}
LEARNED = ("shortcut", "branch", "sum")

# ops


@dataclass(frozen=True)
class RescaledAdd(Op):
    """Sum of a shortcut and its branch with a factor for one of them or both (`RESCALINGS`), which begins as 1.

    Shape: (N, T, C) twice -> same.
    """

    shuffle: str

    def body(self) -> nn.Module:
        return _RescaledAdd(self.shuffle)


class _RescaledAdd(nn.Module):
    def __init__(self, rescaling: str) -> None:
        super().__init__()
        if rescaling not in RESCALINGS:
            raise InputError(suggest("shuffle", rescaling, RESCALINGS))
        self.rescaling = rescaling
        self.factor = nn.Parameter(torch.ones(1)) if rescaling in LEARNED else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return RESCALINGS[self.rescaling](x, y, self.factor)


@dataclass(frozen=True)
class Interleave(Op):
    """Channels of two groups in turn: the first of either, the second of either, ... (N, T, C) twice -> (N, T, 2 C)."""

    def body(self) -> nn.Module:
        return _Interleave()


class _Interleave(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack((x, y), 3).flatten(2)


# blocks


@dataclass(frozen=True)
class ShuffledViTBlock(ViTBlock):
    """A plain ViT's block on the first half of the channels, then both halves interleaved. Tokens -> same shape.

    Attributes:
        shuffle: how the residuals add, a name in `RESCALINGS`.
    """

    shuffle: str = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return Attended(self.shuffle, *self.residuals(half(self, x)))


@dataclass(frozen=True)
class ShuffledSwinBlock(SwinBlock):
    """Swin's block on the first half of the channels, then both halves interleaved. Tokens -> same shape.

    Attributes:
        shuffle: how the residuals add, a name in `RESCALINGS`.
    """

    shuffle: str = from_stage()

    def build(self, x: Shape) -> nn.Module:
        attention, mlp = self.branches(half(self, x), x.side)
        return Attended(self.shuffle, Residual(attention), Residual(mlp))


class Attended(nn.Module):
    """Residuals on the first half of the channels, with rescaled sums, and an interleaving of both halves.

    Tokens -> same shape.
    """

    def __init__(self, rescaling: str, *residuals: Residual) -> None:
        super().__init__()
        for residual in residuals:
            residual.add = RescaledAdd(rescaling).module()
        self.residuals = nn.ModuleList(residuals)
        self.interleave = Interleave().module()

    def forward(self, x: Tensor) -> Any:
        attended, idle = x.chunk(2, 2)
        for residual in map(_residual, self.residuals):
            attended = residual.add(attended, residual.branch(attended))
        return self.interleave(attended, idle)


def _residual(module: nn.Module) -> Residual:
    return cast(Residual, module)


@dataclass(frozen=True)
class GroupMerge(Block):
    """Swin's merge for either half of the channels by itself, the results side by side. Tokens -> a fourth as many."""

    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return _GroupMerge(x.side, half(self, x), self.cout // 2)


class _GroupMerge(nn.Module):
    def __init__(self, side: int, cin: int, cout: int) -> None:
        super().__init__()
        self.attended, self.idle = merging(side, cin, cout), merging(side, cin, cout)
        self.join = Concat().module()

    def forward(self, x: Tensor) -> Any:
        attended, idle = x.chunk(2, 2)
        return self.join(self.attended(attended), self.idle(idle))


def half(block: Block, x: Shape) -> int:
    """Half of the channels, which a block works on.

    Raises:
        InputError: their number is odd.
    """
    if x.channels % 2:
        raise InputError(f"{type(block).__name__}: expected an even number of channels, got {x.channels}")
    return x.channels // 2


# how they go together: `shuffle` is chosen once per net, since it is the width of everything


@dataclass(frozen=True)
class Plain(Stage):
    """The one stage of a plain ViT, with or without shuffle; its embedding stands before its blocks.

    Attributes:
        starts: blocks before the embedding.
        embed: gives `width` channels, or twice as many.
        host: the host's block.
        shuffled: the block in its place where channels are shuffled.
        width: choice of the attended channels.
        depth: choice of the number of blocks.
    """

    embed: Block
    host: Block
    shuffled: Block
    width: Any
    depth: Any
    starts: Blocks = ()

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        shuffles = picked["shuffle"] != "off"
        embed = fill(self.embed, picked, cout=picked["width"] * (1 + shuffles))
        return (*self.starts, embed, *[fill(self.shuffled if shuffles else self.host, picked)] * picked["depth"])

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        place = len(self.starts)
        return {"depth": len(blocks) - 1 - place} | _width_hint(blocks[place:])


@dataclass(frozen=True)
class ShuffledWindowed(Windowed):
    """A stage of Swin, with or without shuffle; `width` is that of the attended channels.

    Attributes:
        shuffled_entry, shuffled_body: in place of the entry and the body where channels are shuffled.
    """

    shuffled_entry: Block
    shuffled_body: Block

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        if picked["shuffle"] == "off":
            return super().lay(picked, streams)
        return alternating(self.shuffled_entry, self.shuffled_body, picked, 2 * picked["width"])

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        return super().hints(blocks) | _width_hint(blocks)


def _width_hint(blocks: Blocks) -> dict[str, Any]:
    """The attended channels of a stage, which its first block says."""
    shuffles = any("shuffle" in block.names() for block in blocks)
    return {"width": getattr(blocks[0], "cout", 0) // (1 + shuffles)}


def on_deit(width: Any, depth: Any, ratio: int, head_dim: int = 64, patch: int = 16) -> Plain:
    """The stage of a DeiT."""
    host, shuffled = (kind(ratio, head_dim) for kind in (ViTBlock, ShuffledViTBlock))
    return Plain(PatchTokens(patch=patch), host, shuffled, width, depth)


def on_t2t(width: Any, depth: Any, ratio: int, head_dim: int = 64, kind: str = "performer", tokens: int = 64) -> Plain:
    """The stage of a T2T-ViT, its token stages among the blocks before."""
    host, shuffled = (block(ratio, head_dim, bias=False, eps=t2t.EPS) for block in (ViTBlock, ShuffledViTBlock))
    starts = (TokenStage(7, 4, kind, tokens), TokenStage(3, 2, kind, tokens))
    return Plain(SplitTokens(), host, shuffled, width, depth, starts)


def on_swin(width: Any, depth: Any, heads: int, ratio: int, window: int = 7, patch: int = 0) -> ShuffledWindowed:
    """A stage of Swin; one with `patch` is the first."""
    entries = (SwinEmbed(patch=patch),) * 2 if patch else (SwinMerge(), GroupMerge())
    host, shuffled = (block(heads, ratio, window) for block in (SwinBlock, ShuffledSwinBlock))
    return ShuffledWindowed(entries[0], host, width, depth, entries[1], shuffled)


def head(last: Blocks) -> Blocks:
    """What stands behind the last stage: the host's head, whose norms differ in eps."""
    return t2t.HEAD if isinstance(last[0], TokenStage) else deit.HEAD


RATIOS = one_of(2, 3, 4)
SHUFFLES = one_of("off", "plain", "shortcut")

SPACE = Space(
    name="shuffle",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Either.of(
            deit=on_deit(one_of(128, 192, 256, 320, 384), one_of(*range(4, 17)), RATIOS),
            t2t=on_t2t(one_of(192, 256, 320, 384), one_of(*range(4, 17)), RATIOS),
        ),
    ),
    head=head,
    shared={"shuffle": SHUFFLES},
)

SWIN = Space(
    name="shuffle-swin",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        on_swin(one_of(48, 72, 96), one_of(1, 2, 3, 4), 3, RATIOS, patch=4),
        on_swin(one_of(96, 144, 192), one_of(1, 2, 3, 4), 6, RATIOS),
        on_swin(one_of(192, 288, 384), one_of(*range(2, 19)), 12, RATIOS),
        on_swin(one_of(384, 576, 768), one_of(1, 2, 3, 4), 24, RATIOS),
    ),
    head=swin.HEAD,
    monotone=False,
    rise=1,
    shared={"shuffle": SHUFFLES},
)

ON_OR_OFF = one_of("off", "shortcut")

SMALL = Space(
    name="shuffle-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(on_deit(one_of(48, 64), one_of(2, 3, 4, 5), one_of(2, 4), head_dim=16, patch=4),),
    head=deit.HEAD,
    shared={"shuffle": ON_OR_OFF},
)

SMALL_SWIN = Space(
    name="shuffle-swin-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        on_swin(one_of(24, 32), one_of(1, 2, 3), 2, 2, window=4, patch=2),
        on_swin(one_of(48, 64), one_of(1, 2, 3, 4), 4, 2, window=4),
        on_swin(one_of(96, 128), 1, 8, 2, window=4),
    ),
    head=swin.HEAD,
    monotone=False,
    rise=0,
    shared={"shuffle": ON_OR_OFF},
)

SPACES = (SWIN, SMALL, SMALL_SWIN)


def make(
    host: str,
    width: int,
    depth: int,
    *,
    shuffle: str = "shortcut",
    ratio: int = 4,
    head_dim: int = 64,
    kind: str = "performer",
    tokens: int = 64,
    side: int = 224,
    classes: int = 1000,
) -> Arch:
    """A plain ViT with shuffled channels of any size, on the grid of the shipped space or off it.

    Args:
        host: `deit` or `t2t`.
        width: attended channels, those of the narrow host, a multiple of `head_dim`.
        depth: number of blocks.
        shuffle: how the residuals add, a name in `RESCALINGS`; `off` is the narrow host.
        ratio: of the MLPs.
        head_dim: channels of a head of attention.
        kind: of the token stages of `t2t`, `performer` or `transformer`.
        tokens: channels of the token stages of `t2t`.
        side: input side in pixels, a multiple of 16.
        classes: number of logits.

    Raises:
        InputError: an unknown host.
    """
    if host not in HOSTS:
        raise InputError(suggest("host", host, HOSTS))
    stage, behind = HOSTS[host]
    starts = {"kind": kind, "tokens": tokens} if host == "t2t" else {}
    return _one("shuffle", (stage(width, depth, ratio, head_dim, **starts),), behind, shuffle, side, classes)


HOSTS: Mapping[str, tuple[Callable[..., Stage], Blocks]] = {"deit": (on_deit, deit.HEAD), "t2t": (on_t2t, t2t.HEAD)}


def make_swin(
    widths: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int] = (3, 6, 12, 24),
    *,
    shuffle: str = "shortcut",
    ratios: Sequence[int] = (4, 4, 4, 4),
    window: int = 7,
    patch: int = 4,
    side: int = 224,
    classes: int = 1000,
) -> Arch:
    """A Swin Transformer with shuffled channels of any size, on the grid of the shipped space or off it.

    Args:
        widths: attended channels of the stages, those of the narrow host.
        shuffle: how the residuals add, a name in `RESCALINGS`; `off` is the narrow host.
        depths, heads, ratios, window, patch, side, classes: as in `swin.make`.
    """
    lists = enumerate(zip(widths, depths, heads, ratios, strict=True))
    stages = tuple(on_swin(*sizes, window, 0 if number else patch) for number, sizes in lists)
    return _one("shuffle-swin", stages, swin.HEAD, shuffle, side, classes)


def _one(name: str, stages: tuple[Stage, ...], behind: Blocks, shuffle: str, side: int, classes: int) -> Arch:
    """The arch of a space that has no other."""
    shared = {"shuffle": shuffle}
    return Space(name, (3, side, side), classes, stages, behind, monotone=False, shared=shared).arch({})


PRESETS: Mapping[str, Arch] = {
    "shuffle-deit-t": make("deit", 192, 12),
    **{f"shuffle-t2t-vit-{depth}": make("t2t", 256, depth, ratio=2) for depth in (7, 10, 12)},
    "shuffle-t2t-vit-14": make("t2t", 384, 14, ratio=3),
    "shuffle-swin-xt": make_swin((48, 96, 192, 384), (2, 2, 4, 2)),
    "shuffle-swin-t": make_swin((96, 192, 384, 768), (2, 2, 5, 2)),
}

PUBLISHED: Mapping[str, Published] = {"shuffle-deit-t": Published(0.744, "arXiv:2310.05642, text")}
