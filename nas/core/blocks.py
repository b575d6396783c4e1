"""What several families use. A family imports a block of another; what belongs to none of them stands here."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas.core.ops import Block, Classifier, Conv, Residual, Shape, ToMap, from_stage, one_of


@dataclass(frozen=True)
class Logits(Block):
    """Linear classifier; of two heads one learns from the labels and one from a teacher, averaged at inference.

    (N, C) -> (N, classes). A block of its own, so that a table's other rows serve any number of classes.
    """

    classes: int = from_stage()
    heads: int = 2

    def build(self, x: Shape) -> nn.Module:
        return Classifier(x.channels, self.classes, self.heads).module()


@dataclass(frozen=True)
class AsMap(Block):
    """Tokens back to a square map, where they are tokens. (N, T, C) or (N, C, H, W) -> (N, C, H, W)."""

    def build(self, x: Shape) -> nn.Module:
        return nn.Identity() if x.is_map else ToMap(x.side).module()


@dataclass(frozen=True)
class InvertedResidual(Block):
    """Expand, mix each channel by itself, project; ReLU6. MobileNetV2 (arXiv:1801.04381, sec. 3.3). Map -> map.

    The input is added where stride is 1 and the width stays; tokens are taken back to a map first.
    """

    cout: int = from_stage()
    stride: int = from_stage()
    kernel: int = one_of(3, 5)
    expand: int = one_of(3, 4, 6)

    def build(self, x: Shape) -> nn.Module:
        hidden = x.channels * self.expand
        body = nn.Sequential(
            Conv(x.channels, hidden, act="relu6").module(),
            Conv(hidden, hidden, self.kernel, self.stride, groups=hidden, act="relu6").module(),
            Conv(hidden, self.cout).module(),
        )
        if x.is_map:
            return Residual(body) if self.stride == 1 and x.channels == self.cout else body
        return nn.Sequential(ToMap(x.side).module(), body)


def divisible(channels: float, by: int) -> int:
    """The nearest multiple of `by`; the next larger one where that falls below nine tenths of `channels`.

    As in the published code of MobileNetV2 (arXiv:1801.04381) and its heirs.
    """
    nearest = max(by, int(channels + by / 2) // by * by)
    return nearest if nearest >= 0.9 * channels else nearest + by
