"""Swin Transformer (arXiv:2103.14030): attention inside windows of a map, which shift in every second block.

Between stages 2x2 neighbours merge into one token, mostly of twice the width. Tokens stand in the order of the map, row
by row; attention sorts them by window and back. What the paper does not say follows the published code and timm: a map
that windows do not divide is padded with zeros behind the norm, which take part as keys; a map no larger than a window
is one window, and nothing shifts there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nas.core.arch import Arch, Blocks
from nas.core.blocks import Logits
from nas.core.channels import Layout, Wires, fresh, times
from nas.core.errors import InputError
from nas.core.ops import Block, LayerNorm, Linear, Op, Residual, Shape, from_stage, in_order, linear_wires, one_of
from nas.core.space import Space, Stage, fill
from search_spaces import Published
from search_spaces.deit import Patchify
from search_spaces.efficientformer import Pooled

ACROSS = -100.0  # added to the score of two tokens that the shift brought into one window from afar


@dataclass(frozen=True)
class Neighbours(Op):
    """The tokens of every 2x2 square side by side, (row, column) 00, 10, 01, 11; an odd side is padded with zeros.

    Shape: (N, side * side, C) -> (N, ceil(side / 2)**2, 4 C).
    """

    side: int

    def body(self) -> nn.Module:
        return _Neighbours(self.side)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires([given[0] * 4], {})


class _Neighbours(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        odd, half = self.side % 2, (self.side + 1) // 2
        grid = x.reshape(x.shape[0], self.side, self.side, -1)
        grid = F.pad(grid, (0, 0, 0, odd, 0, odd)) if odd else grid
        squares = grid.reshape(x.shape[0], half, 2, half, 2, -1).permute(0, 1, 3, 4, 2, 5)  # (N, H, W, column, row, C)
        return squares.reshape(x.shape[0], half * half, -1)


@dataclass(frozen=True)
class WindowAttention(Op):
    """Multi-head attention inside windows, with a learned bias per head and offset in rows and columns (sec. 3.2).

    Shape: (N, side * side, dim) -> same. One Linear makes q | k | v, each of all heads.

    Attributes:
        dim: channels, a multiple of `heads`.
        side: of the map that the tokens are.
        heads: of attention.
        window: side of a window in tokens; of the map where that is smaller.
        shifted: whether windows start half a window further down and right; what the map's edge then cuts off goes
            into windows with the other edge's, without attention between the two.
    """

    dim: int
    side: int
    heads: int
    window: int = 7
    shifted: bool = False

    def body(self) -> nn.Module:
        return _WindowAttention(self)

    def fused(self, body: nn.Module) -> nn.Module:
        return _FusedWindowAttention(self, cast(_WindowAttention, body))

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        return {f"qkv.{name}": {0: (self.dim,) * 3} for name in ("weight", "bias")}

    def tables(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"bias": self._resized}

    def _resized(self, bias: Tensor) -> Tensor:
        """A bias table for windows of another side, by timm's rule for them: distances grow geometrically."""
        from timm.layers import resize_rel_pos_bias_table

        window = min(self.window, self.side)
        shape = (2 * window - 1) ** 2, self.heads
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of how timm looks places up
            return cast(Tensor, resize_rel_pos_bias_table(bias, (window, window), shape))

    def wires(self, *given: Layout) -> Wires | None:
        heads, out = fresh(self.heads), fresh(self.dim)
        mixed = times(heads, self.dim // self.heads)
        held = linear_wires("qkv.", mixed * 3, given[0]) | linear_wires("proj.", out, mixed)
        return Wires([out], held | {"bias": {1: heads}})


class _WindowAttention(nn.Module):
    order: Tensor
    back: Tensor
    offsets: Tensor
    apart: Tensor

    def __init__(self, op: WindowAttention) -> None:
        super().__init__()
        self.op = op
        self.qkv = nn.Linear(op.dim, 3 * op.dim)
        self.proj = nn.Linear(op.dim, op.dim)
        window = min(op.window, op.side)
        self.bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, op.heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        for name, tensor in _windows(op.side, window, op.window // 2 if _shifts(op) else 0).items():
            self.register_buffer(name, tensor, persistent=False)

    def scores_bias(self) -> Tensor:
        """What is added to the scores, (windows or 1, heads, tokens, tokens)."""
        learned = self.bias[self.offsets].permute(2, 0, 1).unsqueeze(0)
        return learned + ACROSS * self.apart.unsqueeze(1).to(learned.dtype) if _shifts(self.op) else learned

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.op.dim // self.op.heads) ** -0.5
        return _attend(self, x, self.scores_bias(), scale)


class _FusedWindowAttention(nn.Module):
    """The bias of the scores gathered once, and the softmax scale inside the query weights."""

    order: Tensor
    back: Tensor
    scores_bias: Tensor

    def __init__(self, op: WindowAttention, body: _WindowAttention) -> None:
        super().__init__()
        self.op = op
        self.qkv, self.proj = body.qkv, body.proj
        for parameter in (self.qkv.weight, self.qkv.bias):
            parameter[: op.dim] *= (op.dim // op.heads) ** -0.5
        self.register_buffer("order", body.order)
        self.register_buffer("back", body.back)
        self.register_buffer("scores_bias", body.scores_bias().detach())

    def forward(self, x: Tensor) -> Tensor:
        return _attend(self, x, self.scores_bias, 1.0)


def _shifts(op: WindowAttention) -> bool:
    return op.shifted and op.side > op.window


def _attend(module: Any, x: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Sort tokens by window, attend inside each, sort back. (N, T, C) -> same."""
    tokens, heads = bias.shape[3], module.op.heads
    padded = F.pad(x, (0, 0, 0, 1)) if len(module.order) > x.shape[1] else x  # a token of zeros, for all padding
    windows = padded.index_select(1, module.order).view(x.shape[0], -1, tokens, x.shape[2])
    query, key, value = module.qkv(windows).unflatten(3, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)
    query = query * scale if scale != 1.0 else query
    weights = (query @ key.transpose(3, 4) + bias).softmax(4)  # (N, windows, heads, tokens, tokens)
    mixed = (weights @ value).transpose(2, 3).reshape(x.shape[0], -1, x.shape[2])
    return cast(Tensor, module.proj(mixed)).index_select(1, module.back)


def _windows(side: int, window: int, shift: int) -> dict[str, Tensor]:
    """Where tokens stand when sorted by window.

    Returns:
        order: (windows * window**2), the token at every place; side**2 where a window reaches beyond the map.
        back: (side**2), the place of every token.
        offsets: (window**2, window**2), the row of the bias table for two places of a window.
        apart: (windows, window**2, window**2), whether two places of a shifted window are not neighbours in the map.
    """
    padding = -side % window
    grid = torch.arange(side * side).view(side, side).roll((-shift, -shift), (0, 1))
    grid = F.pad(grid, (0, padding, 0, padding), value=side * side)
    order = _by_window(grid, window).flatten()
    steps = torch.arange(window)
    distance = steps[:, None] - steps[None, :] + window - 1  # (window, window), from 0
    offsets = distance[:, None, :, None] * (2 * window - 1) + distance[None, :, None, :]
    found = {"order": order, "back": order.argsort(stable=True)[: side * side]}
    found |= {"offsets": offsets.reshape(window**2, window**2)}
    bands = torch.arange(side + padding)
    bands = (bands >= side + padding - window).long() + (bands >= side + padding - shift).long()
    regions = _by_window(3 * bands[:, None] + bands[None, :], window)
    return found | {"apart": regions[:, None, :] != regions[:, :, None]}


def _by_window(grid: Tensor, window: int) -> Tensor:
    """(side, side) -> (windows, window * window)."""
    count = grid.shape[0] // window
    return grid.view(count, window, count, window).transpose(1, 2).reshape(count * count, window * window)


@dataclass(frozen=True)
class SwinEmbed(Block):
    """Patches, one convolution with bias, then layer norm (sec. 3.1). Image -> tokens (N, T, cout)."""

    cout: int = from_stage()
    patch: int = 4

    def build(self, x: Shape) -> nn.Module:
        if x.side % self.patch:
            raise InputError(f"SwinEmbed patch={self.patch}: does not divide an image of side {x.side}")
        return in_order(Patchify(x.channels, self.cout, self.patch), LayerNorm(self.cout))


@dataclass(frozen=True)
class SwinMerge(Block):
    """2x2 neighbours side by side, layer norm, Linear without bias (sec. 3.1). Tokens -> a fourth as many."""

    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return merging(x.side, x.channels, self.cout)


def merging(side: int, cin: int, cout: int) -> nn.Module:
    """Tokens (N, side * side, cin) -> (N, ceil(side / 2)**2, cout)."""
    return in_order(Neighbours(side), LayerNorm(4 * cin), Linear(4 * cin, cout, bias=False))


@dataclass(frozen=True)
class SwinBlock(Block):
    """Attention inside windows, then an MLP, pre-norm, each in a residual (eq. 3). Tokens -> same shape."""

    heads: int
    ratio: int = one_of(2, 3, 4)
    window: int = 7
    shifted: bool = from_stage()

    def build(self, x: Shape) -> nn.Module:
        attention, mlp = self.branches(x.channels, x.side)
        return nn.Sequential(Residual(attention), Residual(mlp))

    def branches(self, dim: int, side: int) -> tuple[nn.Module, nn.Module]:
        """The bodies of both residuals for `dim` channels on a map of this side.

        Raises:
            InputError: where heads do not divide channels.
        """
        if dim % self.heads:
            raise InputError(f"SwinBlock.heads: {self.heads} heads do not divide {dim} channels")
        attention = WindowAttention(dim, side, self.heads, self.window, self.shifted)
        mlp = (LayerNorm(dim), Linear(dim, dim * self.ratio, act="gelu"), Linear(dim * self.ratio, dim))
        return in_order(LayerNorm(dim), attention), in_order(*mlp)


@dataclass(frozen=True)
class Windowed(Stage):
    """An entry, then blocks whose windows are shifted in every second one.

    Attributes:
        entry: the embedding or the merge; its `cout` is the stage's width.
        body: the block, its `shifted` open.
        width: choice of channels.
        depth: choice of the number of blocks behind the entry.
    """

    entry: Block
    body: Block
    width: Any
    depth: Any

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        return alternating(self.entry, self.body, picked, picked["width"])

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        return {"width": getattr(blocks[0], "cout", None), "depth": len(blocks) - 1}


def alternating(entry: Block, body: Block, picked: Mapping[str, Any], cout: int) -> Blocks:
    """An entry to `cout` channels and `depth` blocks behind it, every second of them shifted."""
    pair = [fill(body, picked, shifted=shifted) for shifted in (False, True)]
    return (fill(entry, picked, cout=cout), *(pair[number % 2] for number in range(picked["depth"])))


HEAD = (Pooled(), Logits(heads=1))

SPACE = Space(
    name="swin",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Windowed(SwinEmbed(), SwinBlock(3), one_of(48, 72, 96), one_of(1, 2, 3, 4)),
        Windowed(SwinMerge(), SwinBlock(6), one_of(96, 144, 192), one_of(1, 2, 3, 4)),
        Windowed(SwinMerge(), SwinBlock(12), one_of(192, 288, 384), one_of(*range(2, 19))),
        Windowed(SwinMerge(), SwinBlock(24), one_of(384, 576, 768), one_of(1, 2, 3, 4)),
    ),
    head=HEAD,
    monotone=False,
    rise=1,
)

SMALL = Space(
    name="swin-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Windowed(SwinEmbed(patch=2), SwinBlock(2, one_of(2, 4), 4), one_of(24, 32), one_of(1, 2, 3)),
        Windowed(SwinMerge(), SwinBlock(4, one_of(2, 4), 4), one_of(48, 64), one_of(1, 2, 3, 4)),
        Windowed(SwinMerge(), SwinBlock(8, one_of(2, 4), 4), one_of(96, 128), one_of(1, 2)),
    ),
    head=HEAD,
    monotone=False,
    rise=1,
)

SPACES = (SMALL,)


def make(
    widths: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int] = (3, 6, 12, 24),
    *,
    ratios: Sequence[int] = (4, 4, 4, 4),
    window: int = 7,
    patch: int = 4,
    side: int = 224,
    classes: int = 1000,
) -> Arch:
    """A Swin Transformer of any size, on the grid of the shipped space or off it.

    Args:
        widths: channels of the stages.
        depths: blocks of the stages.
        heads: of attention in every stage; each divides its width.
        ratios: MLP ratio of every stage.
        window: side of a window in tokens.
        patch: pixels from one token of the first stage to the next.
        side: input side in pixels, a multiple of `patch`.
        classes: number of logits.
    """
    lists = zip(widths, depths, heads, ratios, strict=True)
    stages = [
        Windowed(SwinMerge() if number else SwinEmbed(patch=patch), SwinBlock(count, ratio, window), width, depth)
        for number, (width, depth, count, ratio) in enumerate(lists)
    ]
    return Space("swin", (3, side, side), classes, tuple(stages), HEAD, monotone=False).arch({})


PRESETS: Mapping[str, Arch] = {
    "swin-xt": make((48, 96, 192, 384), (2, 2, 5, 2)),
    "swin-t": make((96, 192, 384, 768), (2, 2, 6, 2)),
    "swin-s": make((96, 192, 384, 768), (2, 2, 18, 2)),
}

PUBLISHED: Mapping[str, Published] = {
    f"swin-{size}": Published(top1, "github.com/microsoft/Swin-Transformer, README", "300 epochs, ImageNet-1K alone")
    for size, top1 in (("t", 0.812), ("s", 0.832))
}

TIMM: Mapping[str, str | None] = {  # None where timm has no implementation
    "swin-t": "swin_tiny_patch4_window7_224",
    "swin-s": "swin_small_patch4_window7_224.ms_in1k",  # timm's own choice learned from ImageNet-22k, too
    "swin-xt": None,
}


def from_timm(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """The weights of timm's `swin_*`, under the names of our model of the same architecture.

    Args:
        state: timm's state dict.
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
    yield "patch_embed.proj.", "stages.0.0.body.0.body.conv."
    yield "patch_embed.norm.", "stages.0.0.body.1.body."
    for index, stage in enumerate(arch.stages[:-1]):
        yield f"layers.{index}.downsample.norm.", f"stages.{index}.0.body.1.body."
        yield f"layers.{index}.downsample.reduction.", f"stages.{index}.0.body.2.body."
        for number in range(len(stage) - 1):
            theirs, ours = f"layers.{index}.blocks.{number}.", f"stages.{index}.{number + 1}.body."
            yield from ((theirs + key, ours + name) for key, name in BLOCK_NAMES.items())
    head = len(arch.stages) - 1
    yield "norm.", f"stages.{head}.0.body.0.body."
    yield "head.fc.", f"stages.{head}.1.body.body.heads.0."


BLOCK_NAMES = {
    "norm1.": "0.body.0.body.",
    "attn.relative_position_bias_table": "0.body.1.body.bias",
    "attn.qkv.": "0.body.1.body.qkv.",
    "attn.proj.": "0.body.1.body.proj.",
    "norm2.": "1.body.0.body.",
    "mlp.fc1.": "1.body.1.body.0.",
    "mlp.fc2.": "1.body.2.body.",
}
