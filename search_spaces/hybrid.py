"""One space across families: each stage picks its kind of block. It finds out, per device, which family wins where.

A stage is of MB4D or MB3D blocks (EfficientFormer, arXiv:2206.01191), Next-ViT groups (arXiv:2207.05501),
Mobile-Former blocks (arXiv:2108.05895) or inverted residuals (arXiv:1801.04381); a further kind is one more line.
A kind brings its own way to change resolution, and the last stage's kind brings the head, so that published networks
are points (`from_family`). Mobile-Former's tokens have one number and width in a net; they come in at the first stage
that reads them and pass other stages untouched. Where tokens of an MB3D reach a block that needs a map, they are taken
back to one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.arch import Arch, Blocks
from nas.blocks import AsMap, InvertedResidual
from nas.ops import Block, one_of
from nas.space import Either, Repeat, Space
from search_spaces import efficientformer, mobileformer, nextvit
from search_spaces.efficientformer import MB3D, MB4D, Embedding, Stem
from search_spaces.mobileformer import Bridged, FirstBridged, Lite, Mobile, MobileDown, MobileStem
from search_spaces.nextvit import NCB, NTB, Groups, NextStem

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


def head(last: Blocks) -> Blocks:
    """The head of the family that the last block belongs to; Next-ViT's behind inverted residuals."""
    if isinstance(last[-1], (MB4D, MB3D)):
        return efficientformer.HEAD
    return nextvit.HEAD if isinstance(last[-1], (NCB, NTB, InvertedResidual)) else mobileformer.head(last)


def from_family(arch: Arch) -> Arch:
    """A network of EfficientFormer, Next-ViT or Mobile-Former, with its blocks as the hybrid space orders them.

    It is a point of the space where its widths and depths are (`arch in SPACE`).
    """
    stages = arch.stages
    if arch.family.startswith("mobileformer"):  # its two stages at stride 16 are one here
        stages = (*stages[:2], stages[2] + stages[3], (AsMap(), *stages[4]), *stages[5:])
    return dataclasses.replace(arch, family=SPACE.name, stages=stages)


def settle(shared: dict[str, Any]) -> dict[str, Any]:
    """Tokens as the published nets have them; see `mobileformer.settle`."""
    return {name: mobileformer.settle({**shared, "groups": 1})[name] for name in shared}


INVERTED = InvertedResidual(stride=2, kernel=3, expand=6), InvertedResidual(stride=1, expand=one_of(3, 6))
STARTS = tuple(start for start in mobileformer.STARTS if start[0] in (24, 40))
NCBS = one_of(2, 3, 4)
NEXT: dict[str, Any] = {"r": one_of(25, 50, 75, 100), "ncb_ratio": one_of(2, 3), "ntb_ratio": 2}
FIRST_NEXT = NEXT | {"r": 75, "stride": 1, "start": NextStem()}
RATIO, HYBRID = one_of(2, 4), one_of("C", "H")
SHALLOW, DEEP, LAST = one_of(1, 2, 3, 4, 6), one_of(2, 4, 6, 9, 12, 18), one_of(2, 4, 6, 8)
THIN, BRIDGES = one_of(1, 2, 3), one_of(True, False)
EARLY, MIDDLE = Mobile(expand=one_of(3, 4), kernel=3), Mobile(expand=4, kernel=3)
SMALL_STARTS = ((16, (MobileStem(8), Lite(16))),)
WIDER = ((96, 128), (128, 176))

SPACE = Space(
    name="hybrid",
    input_shape=(3, 224, 224),
    classes=1000,
    stages=(
        Either.of(
            mb4d=Repeat(Stem(), MB4D(RATIO), one_of(48, 64, 96), SHALLOW),
            nextvit=Groups(one_of(64, 96), NCBS, 1, "C", **FIRST_NEXT),
            mobileformer=FirstBridged(MobileDown(), EARLY, one_of(24, 40), THIN, BRIDGES, starts=STARTS),
            inverted=Repeat(Stem(), INVERTED[1], one_of(24, 48), SHALLOW),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), one_of(96, 128, 192), SHALLOW),
            nextvit=Groups(one_of(96, 192), NCBS, 1, HYBRID, sr=4, **NEXT),
            mobileformer=Bridged(MobileDown(), EARLY, one_of(48, 72), THIN, BRIDGES),
            inverted=Repeat(*INVERTED, one_of(48, 96), SHALLOW),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), one_of(224, 320, 384), DEEP),
            mb3d=Split(Embedding(), MB4D(RATIO), one_of(224, 320, 384), DEEP, MB3D(RATIO), one_of(1, 2, 4, 8)),
            nextvit=Groups(one_of(192, 384), NCBS, one_of(1, 2, 4, 6), HYBRID, sr=2, **NEXT),
            mobileformer=Widened(MobileDown(), MIDDLE, one_of(96, 128), one_of(2, 4, 6), BRIDGES, wider=WIDER),
            inverted=Repeat(*INVERTED, one_of(96, 192), one_of(2, 4, 6)),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), one_of(448, 512, 768), SHALLOW),
            mb3d=Split(Embedding(), MB4D(RATIO), one_of(448, 512, 768), LAST, MB3D(RATIO), one_of(1, 2, 4, 8)),
            nextvit=Groups(one_of(384, 768), NCBS, 1, HYBRID, **NEXT),
            mobileformer=OnMap(MobileDown(), SIX, one_of(192, 240), THIN, BRIDGES),
            inverted=Repeat(*INVERTED, one_of(192, 320), SHALLOW),
        ),
    ),
    head=head,
    monotone=False,
    shared={"tokens": one_of(1, 2, 3, 4, 6, 8), "dim": one_of(128, 192)},
    settle=settle,
)

TWICE = one_of(1, 2)
SMALL_NEXT: dict[str, Any] = {"ncb_ratio": 2, "ntb_ratio": 2}
SMALL_MOBILE, SMALL_INVERTED = (
    Mobile(one_of(3, 6), kernel=3),
    (INVERTED[0], InvertedResidual(stride=1, kernel=3, expand=one_of(3, 6))),
)

SMALL = Space(
    name="hybrid-32",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Either.of(
            mb4d=Repeat(Stem(convs=1), MB4D(RATIO), 32, THIN),
            nextvit=Groups(32, THIN, 1, "C", 100, stride=1, start=Stem(32, convs=1), **SMALL_NEXT),
            mobileformer=FirstBridged(SMALL_MOBILE, SMALL_MOBILE, 16, TWICE, True, starts=SMALL_STARTS),
            inverted=Repeat(Stem(convs=1), SMALL_INVERTED[1], 16, THIN),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), 64, THIN),
            nextvit=Groups(64, THIN, 1, "C", 100, **SMALL_NEXT),
            mobileformer=Bridged(MobileDown(), SMALL_MOBILE, 32, THIN, BRIDGES),
            inverted=Repeat(*SMALL_INVERTED, 32, THIN),
        ),
        Either.of(
            mb4d=Repeat(Embedding(), MB4D(RATIO), 96, THIN),
            mb3d=Split(Embedding(), MB4D(RATIO), 96, THIN, MB3D(RATIO), THIN),
            nextvit=Groups(96, TWICE, TWICE, HYBRID, **SMALL_NEXT),
            mobileformer=Bridged(MobileDown(), SMALL_MOBILE, 64, THIN, BRIDGES),
            inverted=Repeat(*SMALL_INVERTED, 96, THIN),
        ),
    ),
    head=head,
    monotone=False,
    shared={"tokens": one_of(1, 3, 6), "dim": 64},
)

SPACES = (SMALL,)
