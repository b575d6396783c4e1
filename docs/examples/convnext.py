"""ConvNeXt (arXiv:2201.03545) as a family of one's own: two ops, four blocks, two spaces, a preset.

    export NAS_PLUGINS=docs/examples
    nas search --space convnext-32 --budget 'latency_ms<=p40'

Differences from the paper: the MLPs are 1x1 convolutions, the same function without a change of layout; layer scales
start at 1e-5, not 1e-6; kernels and ratios are searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nas.core.arch import Arch
from nas.core.blocks import Logits
from nas.core.channels import Layout, Wires, fresh
from nas.core.ops import (
    Block,
    Conv,
    LayerNorm,
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
from nas.core.space import Repeat, Space
from search_spaces import Published

# ops: leaves that a table prices; what nas has already is imported


@dataclass(frozen=True)
class Shrink(Op):
    """Convolution whose kernel is its stride. Map (N, cin, H, W) -> (N, cout, H / patch, W / patch)."""

    cin: int
    cout: int
    patch: int = 2

    def body(self) -> nn.Module:
        return nn.Conv2d(self.cin, self.cout, self.patch, self.patch)

    def wires(self, *given: Layout) -> Wires | None:
        """Every output channel is new, and reads all that came in."""
        out = fresh(self.cout)
        return Wires([out], linear_wires("", out, given[0]))


@dataclass(frozen=True)
class ChannelNorm(Op):
    """Layer norm over the channels of a map. (N, dim, H, W) -> same."""

    dim: int

    def body(self) -> nn.Module:
        return _ChannelNorm(self.dim, eps=1e-6)

    def wires(self, *given: Layout) -> Wires | None:
        """Channels stay where they are, and each has its part of the parameters."""
        return Wires(given[:1], norm_wires("", given[0]))


class _ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


# blocks: ops in sequence; their choices stand where values would


@dataclass(frozen=True)
class ConvNeXtStem(Block):
    """Patches of the image, normalised (sec. 2.2). Image -> map."""

    cout: int = from_stage()
    patch: int = 4

    def build(self, x: Shape) -> nn.Module:
        return in_order(Shrink(x.channels, self.cout, self.patch), ChannelNorm(self.cout))


@dataclass(frozen=True)
class ConvNeXtDown(Block):
    """Norm, then a 2x2 convolution of stride 2, between stages (sec. 2.6). Map -> map of half the side."""

    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return in_order(ChannelNorm(x.channels), Shrink(x.channels, self.cout))


@dataclass(frozen=True)
class ConvNeXtBlock(Block):
    """A wide depthwise convolution, norm, and an MLP, in a layer-scaled residual (fig. 4). Map -> same shape."""

    kernel: int = one_of(5, 7)
    ratio: int = one_of(2, 3, 4)

    def build(self, x: Shape) -> nn.Module:
        dim = x.channels
        body = in_order(
            Conv(dim, dim, self.kernel, groups=dim, bias=True, norm=False),
            ChannelNorm(dim),
            Conv(dim, dim * self.ratio, act="gelu", bias=True, norm=False),
            Conv(dim * self.ratio, dim, bias=True, norm=False),
        )
        return Residual(body, dim)


@dataclass(frozen=True)
class ConvNeXtPooled(Block):
    """The mean over positions, normalised. Map -> vector (N, C)."""

    def build(self, x: Shape) -> nn.Module:
        return in_order(Mean(), LayerNorm(x.channels, "1e-6"))


# spaces: the file ends in `SPACE`, which is its registration; `SPACES` are further ones

HEAD = (ConvNeXtPooled(), Logits(heads=1))

SPACE = Space(
    name="convnext",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Repeat(ConvNeXtStem(), ConvNeXtBlock(), width=one_of(40, 48, 64, 80, 96), depth=one_of(1, 2, 3)),
        Repeat(ConvNeXtDown(), ConvNeXtBlock(), width=one_of(80, 96, 128, 160, 192), depth=one_of(1, 2, 3)),
        Repeat(ConvNeXtDown(), ConvNeXtBlock(), width=one_of(160, 192, 256, 320, 384), depth=one_of(*range(2, 10))),
        Repeat(ConvNeXtDown(), ConvNeXtBlock(), width=one_of(320, 384, 512, 640, 768), depth=one_of(1, 2, 3)),
    ),
    head=HEAD,
)

_SMALL_BLOCK = ConvNeXtBlock(one_of(3, 5), one_of(2, 4))
SMALL = Space(
    name="convnext-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Repeat(ConvNeXtStem(patch=2), _SMALL_BLOCK, width=one_of(16, 32), depth=one_of(1, 2)),
        Repeat(ConvNeXtDown(), _SMALL_BLOCK, width=one_of(32, 48), depth=one_of(1, 2)),
        Repeat(ConvNeXtDown(), _SMALL_BLOCK, width=one_of(48, 64), depth=one_of(1, 2, 3)),
        Repeat(ConvNeXtDown(), _SMALL_BLOCK, width=one_of(64, 96), depth=one_of(1, 2)),
    ),
    head=HEAD,
)

SPACES = (SMALL,)


def make(widths: Sequence[int], depths: Sequence[int]) -> Arch:
    """A ConvNeXt as published, of any width and depth of its four stages."""
    entries = (ConvNeXtStem(), ConvNeXtDown(), ConvNeXtDown(), ConvNeXtDown())
    kinds = zip(entries, widths, depths, strict=True)
    stages = tuple(Repeat(entry, ConvNeXtBlock(7, 4), width, depth) for entry, width, depth in kinds)
    return Space("convnext", (3, 224, 224), 1000, stages, HEAD).arch({})


PRESETS: Mapping[str, Arch] = {"convnext-t": make((96, 192, 384, 768), (3, 3, 9, 3))}

PUBLISHED: Mapping[str, Published] = {"convnext-t": Published(0.821, "arXiv:2201.03545, table 1", "300 epochs")}

TIMM = {"convnext-t": "convnext_tiny.fb_in1k"}  # so that --weights timm finds them


def from_timm(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """The weights of timm's `convnext_*`, under the names of our model of the same architecture."""
    pairs = {"stem.0.": "stages.0.0.body.0.body.", "stem.1.": "stages.0.0.body.1.body."}
    pairs |= {"head.norm.": "stages.4.0.body.1.body.", "head.fc.": "stages.4.1.body.body.heads.0."}
    for index, stage in enumerate(arch.stages[:-1]):
        down = f"stages.{index}.downsample."
        pairs |= {f"{down}0.": f"stages.{index}.0.body.0.body.", f"{down}1.": f"stages.{index}.0.body.1.body."}
        for number in range(1, len(stage)):
            theirs, ours = f"stages.{index}.blocks.{number - 1}.", f"stages.{index}.{number}.body."
            pairs |= {
                f"{theirs}gamma": f"{ours}scale.body.gamma",
                f"{theirs}conv_dw.": f"{ours}body.0.body.0.",
                f"{theirs}norm.": f"{ours}body.1.body.",
                f"{theirs}mlp.fc1.": f"{ours}body.2.body.0.",
                f"{theirs}mlp.fc2.": f"{ours}body.3.body.0.",
            }
    renamed = {}
    for key, value in state.items():
        prefix = next((prefix for prefix in pairs if key.startswith(prefix)), None)
        if prefix is not None:
            is_linear = ".mlp." in key and value.ndim == 2  # a 1x1 convolution here
            renamed[pairs[prefix] + key.removeprefix(prefix)] = value[:, :, None, None] if is_linear else value
    return renamed
