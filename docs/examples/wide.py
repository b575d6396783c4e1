"""Residual blocks with a large depthwise kernel, for images of 32 pixels."""

from dataclasses import dataclass

from torch import nn

from nas.core.blocks import Logits
from nas.core.ops import Block, Conv, Residual, Shape, from_stage, one_of
from nas.core.space import Repeat, Space
from search_spaces.efficientformer import Pooled


@dataclass(frozen=True)
class Entry(Block):
    """Halves the side; the stage says how wide it becomes."""

    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return Conv(x.channels, self.cout, 3, 2, act="relu").module()


@dataclass(frozen=True)
class Wide(Block):
    """Mix each channel by itself over a wide window, then expand and project. Map -> same shape."""

    kernel: int = one_of(3, 5, 7)
    expand: int = one_of(2, 4)

    def build(self, x: Shape) -> nn.Module:
        hidden = x.channels * self.expand
        body = nn.Sequential(
            Conv(x.channels, x.channels, self.kernel, groups=x.channels).module(),
            Conv(x.channels, hidden, act="gelu").module(),
            Conv(hidden, x.channels).module(),
        )
        return Residual(body)


SPACE = Space(
    name="wide",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Repeat(Entry(), Wide(), width=one_of(16, 24, 32), depth=one_of(1, 2)),
        Repeat(Entry(), Wide(), width=one_of(32, 48, 64), depth=one_of(1, 2, 3)),
    ),
    head=(Pooled(), Logits(heads=1)),
)
