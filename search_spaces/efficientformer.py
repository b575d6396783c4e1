"""EfficientFormer V1 (arXiv:2206.01191): convolutional MB4D blocks first, attention MB3D blocks at the end of the net.

The number of MB3D blocks is counted from the end; where it reaches into stage 3, the embedding before stage 4 takes
tokens back to a map. Differences from the paper follow the published code: the pooling mixer is Pool(x) - x, scaled and
then added (the paper writes Pool(x) + x), and convolutions keep their bias although a batch norm follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from nas.core.arch import Arch
from nas.core.blocks import Logits
from nas.core.ops import (
    BiasAttention,
    Block,
    Conv,
    LayerNorm,
    Linear,
    Mean,
    PoolMixer,
    Residual,
    Shape,
    ToMap,
    ToTokens,
    from_stage,
    in_order,
    one_of,
    trunc_normal,
)
from nas.core.space import Repeat, Space
from search_spaces import Published


@dataclass(frozen=True)
class Stem(Block):
    """3x3 convolutions of stride 2, each with batch norm and ReLU (sec. 4). Image -> map, side / 2**convs."""

    cout: int = from_stage()
    convs: int = 2
    act: ClassVar[str] = "relu"

    def build(self, x: Shape) -> nn.Module:
        widths = [x.channels, *(self.cout >> (self.convs - 1 - step) for step in range(self.convs))]
        convs = (Conv(cin, cout, 3, 2, act=self.act, bias=True) for cin, cout in itertools.pairwise(widths))
        return in_order(*convs)


@dataclass(frozen=True)
class Embedding(Block):
    """3x3 convolution of stride 2 with batch norm, between stages (sec. 4). Map or tokens -> map of half the side."""

    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        conv = Conv(x.channels, self.cout, 3, 2, bias=True).module()
        return conv if x.is_map else nn.Sequential(ToMap(x.side).module(), conv)


@dataclass(frozen=True)
class MB4D(Block):
    """Pooling mixer, then an MLP of 1x1 convolutions, each in a layer-scaled residual (eq. 3). Map -> same shape."""

    ratio: int = one_of(2, 3, 4)

    def build(self, x: Shape) -> nn.Module:
        hidden = x.channels * self.ratio
        mlp = nn.Sequential(
            Conv(x.channels, hidden, act="gelu", bias=True).module(),
            Conv(hidden, x.channels, bias=True).module(),
        )
        return nn.Sequential(Residual(PoolMixer().module(), x.channels), Residual(mlp, x.channels))

    def init(self, module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                trunc_normal(part)


@dataclass(frozen=True)
class MB3D(Block):
    """Attention with learned bias, then an MLP, pre-norm, layer-scaled (eq. 4, 5). Map or tokens -> tokens.

    The first one after a map flattens it, so whether the input is a map or tokens is part of its key.
    """

    ratio: int = one_of(2, 3, 4)

    def build(self, x: Shape) -> nn.Module:
        dim = x.channels
        attention = nn.Sequential(LayerNorm(dim).module(), BiasAttention(dim, x.side).module())
        mlp = nn.Sequential(
            LayerNorm(dim).module(),
            Linear(dim, dim * self.ratio, act="gelu").module(),
            Linear(dim * self.ratio, dim).module(),
        )
        flatten = [ToTokens().module()] if x.is_map else []
        return nn.Sequential(*flatten, Residual(attention, dim), Residual(mlp, dim))


@dataclass(frozen=True)
class Pooled(Block):
    """Layer norm over channels, then the mean over positions. Map or tokens -> vector (N, C)."""

    def build(self, x: Shape) -> nn.Module:
        flatten = [ToTokens().module()] if x.is_map else []
        return nn.Sequential(*flatten, LayerNorm(x.channels).module(), Mean().module())


HEAD = (Pooled(), Logits())

SPACE = Space(
    name="efficientformer",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Repeat(Stem(), MB4D(), width=one_of(32, 48, 64, 80, 96), depth=one_of(*range(1, 7))),
        Repeat(Embedding(), MB4D(), width=one_of(64, 96, 128, 160, 192), depth=one_of(*range(1, 7))),
        Repeat(Embedding(), MB4D(), width=one_of(128, 192, 224, 320, 384), depth=one_of(*range(2, 19)), tail=MB3D()),
        Repeat(Embedding(), MB4D(), width=one_of(256, 384, 448, 512, 768), depth=one_of(*range(2, 9)), tail=MB3D()),
    ),
    head=HEAD,
    tail=one_of(*range(9)),
)

SMALL = Space(
    name="efficientformer-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Repeat(Stem(convs=1), MB4D(one_of(2, 4)), width=one_of(16, 32), depth=one_of(1, 2, 3)),
        Repeat(Embedding(), MB4D(one_of(2, 4)), width=one_of(32, 48, 64), depth=one_of(1, 2, 3)),
        Repeat(Embedding(), MB4D(one_of(2, 4)), width=one_of(48, 64, 96), depth=one_of(1, 2, 3, 4)),
        Repeat(Embedding(), MB4D(one_of(2, 4)), one_of(96, 128), one_of(1, 2, 3), tail=MB3D(one_of(2, 4))),
    ),
    head=HEAD,
    tail=one_of(0, 1, 2, 3),
)

SPACES = (SMALL,)


def make(
    widths: Sequence[int],
    depths: Sequence[int],
    tail: int,
    *,
    ratios: Sequence[int] = (4, 4, 4, 4),
    side: int = 224,
    classes: int = 1000,
    stem_convs: int = 2,
) -> Arch:
    """An EfficientFormer of any size, on the grid of the shipped space or off it.

    Args:
        widths: channels of the four stages.
        depths: blocks of the four stages.
        tail: how many of the last blocks are MB3D; it may reach into stage 3.
        ratios: MLP ratio of each stage.
        side: input side in pixels, a multiple of 8 times the stem's stride.
        classes: number of logits.
        stem_convs: 2 for the published stem, 1 for the small form.
    """
    entries = (Stem(convs=stem_convs), Embedding(), Embedding(), Embedding())
    kinds = zip(entries, widths, depths, ratios, (None, None, MB3D(), MB3D()), strict=True)
    stages = tuple(
        Repeat(entry, MB4D(ratio), width, depth, last and MB3D(ratio)) for entry, width, depth, ratio, last in kinds
    )
    one = Space("efficientformer", (3, side, side), classes, stages, HEAD, one_of(*range(tail + 1)), False)
    return one.arch({"tail": tail} if tail else {})


PRESETS: Mapping[str, Arch] = {
    "efficientformer-l1": make((48, 96, 224, 448), (3, 2, 6, 4), 1),
    "efficientformer-l3": make((64, 128, 320, 512), (4, 4, 12, 6), 4),
    "efficientformer-l7": make((96, 192, 384, 768), (6, 6, 18, 8), 8),
}

PUBLISHED: Mapping[str, Published] = {
    f"efficientformer-{size}": Published(
        top1, "github.com/snap-research/EfficientFormer, README", "300 epochs, distilled from RegNetY-16GF"
    )
    for size, top1 in (("l1", 0.792), ("l3", 0.824), ("l7", 0.833))
}


def from_timm(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """The weights of timm's `efficientformer_*`, under the names of our model of the same architecture.

    Args:
        state: timm's state dict, with both heads.
        arch: the architecture to load into, such as a preset.
    """
    norm = 0 if isinstance(arch.stages[-2][-1], MB3D) else 1  # behind a ToTokens
    pairs = {"norm.": f"stages.4.0.body.{norm}.body.", "head.": "stages.4.1.body.body.heads.0."}
    pairs |= {"head_dist.": "stages.4.1.body.body.heads.1."}
    for step in (0, 1):
        pairs |= {
            f"stem.{kind}{step + 1}.": f"stages.0.0.body.{step}.body.{n}." for n, kind in enumerate(("conv", "norm"))
        }
    for index, stage in enumerate(arch.stages[:-1]):
        for number, kind in enumerate(("conv", "norm") if index else ()):
            inner = "body.1" if isinstance(arch.stages[index - 1][-1], MB3D) else "body"  # behind a ToMap
            pairs[f"stages.{index}.downsample.{kind}."] = f"stages.{index}.0.{inner}.body.{number}."
        for number, block in enumerate(stage[1:], 1):
            flattens = int(isinstance(block, MB3D) and not isinstance(stage[number - 1], MB3D))
            flat = any(isinstance(before, MB3D) for before in stage[1:number])
            theirs, ours = f"stages.{index}.blocks.{number - 1 + (flattens or flat)}.", f"stages.{index}.{number}.body."
            pairs |= {theirs + key: ours + name for key, name in _block_names(block, flattens).items()}
    prefixes = sorted(pairs, key=len, reverse=True)
    renamed = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), None)
        if prefix is not None:
            renamed[pairs[prefix] + key.removeprefix(prefix)] = value
    return renamed


def _block_names(block: Block, offset: int) -> dict[str, str]:
    """Where timm's parts of a block stand in ours; `offset` is 1 where the block first flattens a map."""
    mixer, mlp = f"{offset}.", f"{offset + 1}."
    names = {"ls1.": f"{mixer}scale.body.", "ls2.": f"{mlp}scale.body."}
    if isinstance(block, MB4D):
        convs = {("fc1", "norm1"): 0, ("fc2", "norm2"): 1}
        for (conv, norm), place in convs.items():
            names |= {f"mlp.{conv}.": f"{mlp}body.{place}.body.0.", f"mlp.{norm}.": f"{mlp}body.{place}.body.1."}
        return names
    return names | {
        "norm1.": f"{mixer}body.0.body.",
        "norm2.": f"{mlp}body.0.body.",
        "token_mixer.attention_biases": f"{mixer}body.1.body.bias",
        "token_mixer.qkv.": f"{mixer}body.1.body.qkv.",
        "token_mixer.proj.": f"{mixer}body.1.body.proj.",
        "mlp.fc1.": f"{mlp}body.1.body.0.",
        "mlp.fc2.": f"{mlp}body.2.body.",
    }
