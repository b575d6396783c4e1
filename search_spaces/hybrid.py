"""One space across families: each stage picks its kind of block. It finds out, per device, which family wins where.

A stage is of MB4D or MB3D blocks (EfficientFormer, arXiv:2206.01191), Next-ViT groups (arXiv:2207.05501),
Mobile-Former blocks (arXiv:2108.05895), MobileViT blocks of v1 or v3 (arXiv:2110.02178, 2209.15159) or inverted
residuals (arXiv:1801.04381); a further kind is one more line. A kind brings its own way to change resolution, and the
last stage's kind brings the head, so that published networks are points (`from_family`). Mobile-Former's tokens have
one number and width in a net; they come in at the first stage that reads them and pass other stages untouched. Where
tokens of an MB3D reach a block that needs a map, they are taken back to one.

Kind `shuffle` has MB3D blocks that work on half of the channels (arXiv:2310.05642). In the last stage DynamicViT's
prediction module (arXiv:2106.02034) may drop tokens halfway through the MB3D blocks. It scores every token from its own
features and the mean of all, so no class token is needed, and there is none. Behind it there is no way back to a map,
and the head takes the mean of the tokens that are left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nas.core.arch import Arch, Blocks
from nas.core.blocks import AsMap, InvertedResidual, Logits
from nas.core.errors import InputError
from nas.core.ops import (
    BiasAttention,
    Block,
    LayerNorm,
    Linear,
    Mean,
    Op,
    Residual,
    Shape,
    ToTokens,
    from_stage,
    in_order,
    one_of,
)
from nas.core.space import Either, Repeat, Space, fill
from search_spaces import efficientformer, mobileformer, mobilevit, nextvit
from search_spaces.deit import Attention, PreNorm
from search_spaces.dynamicvit import BarePrune, BareUndecided, current
from search_spaces.efficientformer import MB3D, MB4D, Embedding, Stem
from search_spaces.mobileformer import Bridged, FirstBridged, Lite, Mobile, MobileDown, MobileStem, Tokens
from search_spaces.mobilevit import MobileViTv1, MobileViTv3, Patched, Patches, SiluResidual, SiluStem
from search_spaces.nextvit import NCB, NTB, Groups, NextStem
from search_spaces.shuffle import Attended, half

# blocks


@dataclass(frozen=True)
class ShuffledMB3D(MB3D):
    """`MB3D` on the first half of the channels, then both halves interleaved. Map or tokens -> tokens.

    Attributes:
        shuffle: how the residuals add, a name in `shuffle.RESCALINGS`.
    """

    shuffle: str = "shortcut"

    def build(self, x: Shape) -> nn.Module:
        dim = half(self, x)
        attended = Attended(self.shuffle, *_residuals(BiasAttention(dim, x.side), dim, self.ratio))
        return nn.Sequential(ToTokens().module(), attended) if x.is_map else attended


@dataclass(frozen=True)
class PrunedMB3D(Block):
    """`MB3D` behind a selection: in training no token attends to those that are dropped. Tokens, decisions -> tokens.

    Its attention is DeiT's, without the learned bias for distances: which positions are left differs from image to
    image, so a runtime would gather a matrix of biases for each. Query, key and value are as wide as the tokens.

    Attributes:
        head_dim: channels of a head, as many as MB3D's queries have.
    """

    takes = ("x", "kept")

    ratio: int = one_of(2, 3, 4)
    head_dim: int = 32

    def build(self, x: Shape, kept: Shape) -> nn.Module:
        dim = x.channels
        if dim % self.head_dim:
            raise InputError(f"PrunedMB3D: {dim} channels are no multiple of head_dim={self.head_dim}")
        return _PrunedMB3D(*_residuals(Attention(dim, dim // self.head_dim), dim, self.ratio))


class _PrunedMB3D(nn.Sequential):
    def forward(self, x: Tensor, kept: Tensor) -> Any:  # type: ignore[override]  # two tensors
        attention, mlp = self
        return mlp(attention(x, *current(kept)))


def _residuals(attention: Op, dim: int, ratio: int) -> tuple[Residual, Residual]:
    """The two halves of an MB3D with this attention."""
    norm, hidden = LayerNorm(dim), dim * ratio
    mlp = PreNorm(norm, Linear(dim, hidden, act="gelu"), Linear(hidden, dim))
    return Residual(PreNorm(norm, attention), dim), Residual(mlp, dim)


@dataclass(frozen=True)
class PrunedPooled(Block):
    """Layer norm, then the mean over the tokens that are kept. Tokens, decisions -> vector (N, C)."""

    takes = ("x", "kept")

    def build(self, x: Shape, kept: Shape) -> nn.Module:
        return _PrunedPooled(x.channels)


class _PrunedPooled(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.mean = in_order(LayerNorm(dim), Mean())

    def forward(self, x: Tensor, kept: Tensor) -> Any:
        x = self.norm(x)
        if not kept.shape[1]:
            return self.mean(x)
        (keep,) = current(kept)
        return (keep.to(x.dtype).unsqueeze(1) @ x).squeeze(1) / keep.sum(1, keepdim=True).clamp_min(1)


# how they go together

SIX = Mobile(expand=6, kernel=3)


@dataclass(frozen=True)
class Split(Repeat):
    """MB4D blocks, then MB3D blocks: EfficientFormer's partition inside one stage.

    Attributes:
        attention: choice of the number of MB3D blocks, at the end of the stage; all of them where it has fewer.
    """

    attention: Any = 1

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        return super().lay({**picked, "tail": min(picked["attention"], picked["depth"])}, streams)

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        return {name: value for name, value in super().hints(blocks).items() if name != "tail"}


@dataclass(frozen=True)
class Pruned(Split):
    """`Split`, with fewer tokens for the second half of its MB3D blocks; one MB3D block by itself sees all.

    A last stage: behind it there is no map.

    Attributes:
        late: the block that takes the place of the MB3Ds of the second half.
        keep: choice of the percentage of tokens that are kept; 100 for no selection.
    """

    late: Block = PrunedMB3D()
    keep: Any = 100

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        blocks = super().lay(picked, streams)
        late = min(picked["attention"], picked["depth"]) // 2
        if picked["keep"] == 100 or not late:
            return blocks
        return (*blocks[:-late], BareUndecided(), BarePrune((picked["keep"],)), *[fill(self.late, picked)] * late)

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        keeps = [block.keep[0] for block in blocks if isinstance(block, BarePrune)]
        plain = tuple(block for block in blocks if not isinstance(block, (BareUndecided, BarePrune)))
        return super().hints(plain) | {"keep": keeps[0] if keeps else 100}


@dataclass(frozen=True)
class Started(Repeat):
    """A `Repeat` behind further blocks, such as a stem.

    Attributes:
        starts: those blocks.
    """

    starts: Blocks = ()

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        return (*self.starts, *super().lay(picked, streams))

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        behind = blocks[len(self.starts) :]  # nothing, where the stage is of another kind and short
        return super().hints(behind) if behind else {}


@dataclass(frozen=True)
class PatchedMap(Patched):
    """A MobileViT stage behind one that may give tokens."""

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        return (AsMap(), *super().lay(picked, streams))

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        return super().hints(blocks[1:])


@dataclass(frozen=True)
class Widened(Bridged):
    """Mobile-Former blocks at one resolution, the second half of them wider; the published nets do so at stride 16.

    Attributes:
        wide: the Mobile of the second half, the first of which widens.
        wider: for every width the one of the second half.
    """

    wide: Block = SIX
    wider: tuple[tuple[int, int], ...] = ()

    def _mobiles(self, picked: Mapping[str, Any]) -> Blocks:
        late = picked["depth"] // 2
        wide = {**picked, "width": dict(self.wider)[picked["width"]]}
        narrow = super()._mobiles({**picked, "depth": picked["depth"] - late})
        return (*narrow, *(self._fill(self.wide, wide) for _ in range(late)))

    def hints(self, blocks: Blocks) -> dict[str, Any]:
        first = next((block.cout for block in blocks if isinstance(block, MobileDown)), None)
        return super().hints(blocks) | {"width": first}


@dataclass(frozen=True)
class OnMap(Bridged):
    """Mobile-Former blocks behind a stage that may give tokens."""

    def lay(self, picked: Mapping[str, Any], streams: frozenset[str]) -> Blocks:
        return (AsMap(), *super().lay(picked, streams))


@dataclass(frozen=True)
class Mixed(Space):
    """A space whose shared values are those of Mobile-Former's tokens; transformers of MobileViT have a `dim` too."""

    def shared_of(self, arch: Arch) -> dict[str, Any]:
        """See `Space`; only of the blocks that carry Mobile-Former's tokens."""
        tokens = (tuple(block for block in stage if isinstance(block, Tokens)) for stage in arch.stages)
        return super().shared_of(dataclasses.replace(arch, stages=tuple(tokens)))


def head(last: Blocks) -> Blocks:
    """The head of the family that the last block belongs to; Next-ViT's behind inverted residuals."""
    if isinstance(last[-1], PrunedMB3D):
        return (PrunedPooled(), Logits())
    if isinstance(last[-1], (MB4D, MB3D)):
        return efficientformer.HEAD
    if isinstance(last[-1], Patches):
        return mobilevit.head(last)
    return nextvit.HEAD if isinstance(last[-1], (NCB, NTB, InvertedResidual)) else mobileformer.head(last)


def from_family(arch: Arch) -> Arch:
    """A network of EfficientFormer, Next-ViT, Mobile-Former or MobileViT, with its blocks as the hybrid space has them.

    It is a point of the space where its widths, depths and input are (`arch in SPACE`); MobileViTs are published for
    images of side 256.
    """
    stages = arch.stages
    if arch.family == mobilevit.SPACE.name:  # its first two stages are one here
        stages = (stages[0] + stages[1], *stages[2:4], (AsMap(), *stages[4]), *stages[5:])
    if arch.family.startswith("mobileformer"):  # its two stages at stride 16 are one here
        stages = (*stages[:2], stages[2] + stages[3], (AsMap(), *stages[4]), *stages[5:])
    return dataclasses.replace(arch, family=SPACE.name, stages=stages)


def settle(shared: dict[str, Any]) -> dict[str, Any]:
    """Tokens as the published nets have them; see `mobileformer.settle`."""
    return {name: mobileformer.settle({**shared, "groups": 1})[name] for name in shared}


# what stages share: entry and body of inverted residuals, Next-ViT's N and ratios, depths, Mobile-Former's parts
INVERTED = InvertedResidual(stride=2, kernel=3, expand=6), InvertedResidual(stride=1, expand=one_of(3, 6))
STARTS = tuple(start for start in mobileformer.STARTS if start[0] in (24, 40))
NCBS = one_of(2, 3, 4)
NEXT: dict[str, Any] = {"r": one_of(25, 50, 75, 100), "ncb_ratio": one_of(2, 3), "ntb_ratio": 2}
FIRST_NEXT = NEXT | {"r": 75, "stride": 1, "start": NextStem()}
RATIO, HYBRID = one_of(2, 4), one_of("C", "H")
SHALLOW, DEEP, LAST = one_of(1, 2, 3, 4, 6), one_of(2, 4, 6, 9, 12, 18), one_of(2, 4, 6, 8)
THIN, BRIDGES = one_of(1, 2, 3), one_of(True, False)
HOW_MANY = one_of(1, 2, 4, 8)
CUT: dict[str, Any] = {"late": PrunedMB3D(RATIO), "keep": one_of(50, 70, 100)}
EARLY, MIDDLE = Mobile(expand=one_of(3, 4), kernel=3), Mobile(expand=4, kernel=3)
DOWN, FLAT = SiluResidual(stride=2, expand=4), SiluResidual(stride=1, expand=4)
SILU_STARTS = SiluStem(16), SiluResidual(cout=32, stride=1, expand=4)
MOBILEVITS = {"mobilevit": MobileViTv1, "mobilevitv3": MobileViTv3}
SMALL_STARTS = ((16, (MobileStem(8), Lite(16))),)
WIDER = ((96, 128), (128, 176))


def patched(width: Any, layers: Any, stage: type[Patched] = Patched) -> dict[str, Patched]:
    """Stages of MobileViT v1 and v3, the transformers half as wide again as the map: those of v1 XS and S are."""
    return {
        kind: stage(DOWN, block(from_stage(), layers, patch=2), width, share=150) for kind, block in MOBILEVITS.items()
    }


SPACE = Mixed(
    name="hybrid",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Either.of(
            mb4d=Repeat(Stem(), MB4D(RATIO), one_of(48, 64, 96), SHALLOW),
            nextvit=Groups(one_of(64, 96), NCBS, 1, "C", **FIRST_NEXT),
            mobileformer=FirstBridged(MobileDown(), EARLY, one_of(24, 40), THIN, BRIDGES, starts=STARTS),
            mobilevit=Started(DOWN, FLAT, one_of(48, 64), THIN, starts=SILU_STARTS),
            inverted=Repeat(Stem(), INVERTED[1], one_of(24, 48), SHALLOW),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), one_of(96, 128, 192), SHALLOW),
            nextvit=Groups(one_of(96, 192), NCBS, 1, HYBRID, sr=4, **NEXT),
            mobileformer=Bridged(MobileDown(), EARLY, one_of(48, 72), THIN, BRIDGES),
            **patched(one_of(64, 96), one_of(1, 2)),
            inverted=Repeat(*INVERTED, one_of(48, 96), SHALLOW),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), one_of(224, 320, 384), DEEP),
            mb3d=Split(Embedding(), MB4D(RATIO), one_of(224, 320, 384), DEEP, MB3D(RATIO), HOW_MANY),
            shuffle=Split(Embedding(), MB4D(RATIO), one_of(224, 320, 384), DEEP, ShuffledMB3D(RATIO), HOW_MANY),
            nextvit=Groups(one_of(192, 384), NCBS, one_of(1, 2, 4, 6), HYBRID, sr=2, **NEXT),
            mobileformer=Widened(MobileDown(), MIDDLE, one_of(96, 128), one_of(2, 4, 6), BRIDGES, wider=WIDER),
            **patched(one_of(80, 128), one_of(2, 4)),
            inverted=Repeat(*INVERTED, one_of(96, 192), one_of(2, 4, 6)),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), one_of(448, 512, 768), SHALLOW),
            mb3d=Pruned(Embedding(), MB4D(RATIO), one_of(448, 512, 768), LAST, MB3D(RATIO), HOW_MANY, **CUT),
            shuffle=Split(Embedding(), MB4D(RATIO), one_of(448, 512, 768), LAST, ShuffledMB3D(RATIO), HOW_MANY),
            nextvit=Groups(one_of(384, 768), NCBS, 1, HYBRID, **NEXT),
            mobileformer=OnMap(MobileDown(), SIX, one_of(192, 240), THIN, BRIDGES),
            **patched(one_of(96, 160), one_of(2, 3), PatchedMap),
            inverted=Repeat(*INVERTED, one_of(192, 320), SHALLOW),
        ),
    ),
    head=head,
    monotone=False,
    shared={"tokens": one_of(1, 2, 3, 4, 6, 8), "dim": one_of(128, 192)},
    settle=settle,
)

TWICE, FEW = one_of(1, 2), one_of(1, 2, 3, 4)
SMALL_CUT = CUT | {"keep": one_of(50, 100)}
SMALL_NEXT: dict[str, Any] = {"ncb_ratio": 2, "ntb_ratio": 2}
SMALL_MOBILE = Mobile(one_of(3, 6), kernel=3)
SMALL_INVERTED = INVERTED[0], InvertedResidual(stride=1, kernel=3, expand=6)

SMALL = Mixed(
    name="hybrid-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Either.of(
            mb4d=Repeat(Stem(convs=1), MB4D(RATIO), 32, FEW),
            nextvit=Groups(32, FEW, 1, "C", 100, stride=1, start=Stem(32, convs=1), **SMALL_NEXT),
            mobileformer=FirstBridged(SMALL_MOBILE, SMALL_MOBILE, 16, TWICE, True, starts=SMALL_STARTS),
            inverted=Repeat(Stem(convs=1), SMALL_INVERTED[1], 16, FEW),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), 64, FEW),
            nextvit=Groups(64, FEW, 1, "C", 100, **SMALL_NEXT),
            mobileformer=Bridged(MobileDown(), SMALL_MOBILE, 32, FEW, BRIDGES),
            mobilevit=patched(64, 1)["mobilevit"],
            inverted=Repeat(*SMALL_INVERTED, 32, FEW),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), 96, FEW),
            mb3d=Pruned(Embedding(), MB4D(RATIO), 96, FEW, MB3D(RATIO), FEW, **SMALL_CUT),
            shuffle=Split(Embedding(), MB4D(RATIO), 96, FEW, ShuffledMB3D(RATIO), FEW),
            nextvit=Groups(96, TWICE, TWICE, HYBRID, one_of(50, 75), **SMALL_NEXT),
            mobileformer=Bridged(MobileDown(), SMALL_MOBILE, 64, FEW, BRIDGES),
            mobilevit=patched(96, 1)["mobilevit"],
            inverted=Repeat(*SMALL_INVERTED, 96, FEW),
        ),
    ),
    head=head,
    monotone=False,
    shared={"tokens": one_of(1, 6), "dim": 64},
)

CORE_NEXT: dict[str, Any] = {"r": 75, "ncb_ratio": 3, "ntb_ratio": 2}
CORE_INVERTED = INVERTED[0], InvertedResidual(stride=1, kernel=3, expand=6)

#: the blocks of EfficientFormer-L1, Next-ViT-S and Mobile-Former-294M in any number and order: few rows, for runtimes
#: and devices where a row takes long
CORE = Mixed(
    name="hybrid-core",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Either.of(
            mb4d=Repeat(Stem(), MB4D(4), 48, SHALLOW),
            nextvit=Groups(96, NCBS, 1, "C", stride=1, start=NextStem(), **CORE_NEXT),
            mobileformer=FirstBridged(MobileDown(), MIDDLE, 24, THIN, True, starts=STARTS[:1]),
            inverted=Repeat(Stem(), CORE_INVERTED[1], 24, SHALLOW),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(4), 96, SHALLOW),
            nextvit=Groups(192, NCBS, 1, HYBRID, sr=4, **CORE_NEXT),
            mobileformer=Bridged(MobileDown(), MIDDLE, 48, THIN, True),
            inverted=Repeat(*CORE_INVERTED, 48, SHALLOW),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(4), 224, DEEP),
            mb3d=Split(Embedding(), MB4D(4), 224, DEEP, MB3D(4), HOW_MANY),
            nextvit=Groups(384, NCBS, one_of(1, 2, 4, 6), HYBRID, sr=2, **CORE_NEXT),
            mobileformer=Widened(MobileDown(), MIDDLE, 96, one_of(2, 4, 6), True, wider=WIDER),
            inverted=Repeat(*CORE_INVERTED, 96, one_of(2, 4, 6)),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(4), 448, SHALLOW),
            mb3d=Split(Embedding(), MB4D(4), 448, LAST, MB3D(4), HOW_MANY),
            nextvit=Groups(768, NCBS, 1, HYBRID, **CORE_NEXT),
            mobileformer=OnMap(MobileDown(), SIX, 192, THIN, True),
            inverted=Repeat(*CORE_INVERTED, 192, SHALLOW),
        ),
    ),
    head=head,
    monotone=False,
    shared={"tokens": 6, "dim": 192},
    settle=settle,
)

SPACES = (CORE, SMALL)
