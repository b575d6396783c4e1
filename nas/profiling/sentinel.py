"""The sentinel: a fixed reference block, timed beside every sample; slow spells of the machine show in it."""

from __future__ import annotations

from nas.core.ops import BiasAttention, LayerNorm, Linear, Op, Row, Shape
from nas.core.tracing import calls_of_unit
from nas.profiling.probes import Probe

#: attention and an MLP, a third of a millisecond: a busy neighbour slows them as much as networks, convolutions half as
#: much
SENTINEL: tuple[Op, ...] = (
    LayerNorm(96),
    BiasAttention(96, side=7),
    LayerNorm(96),
    Linear(96, 192, act="gelu"),
    Linear(192, 96),
)
SENTINEL_SHAPE = Shape(1, 49, 96)


def sentinel() -> Probe:
    """The sentinel as a graph to be timed."""
    rows, shape = [], SENTINEL_SHAPE
    for op in SENTINEL:
        rows.append(Row(op, (shape,)))
        (shape,) = calls_of_unit(rows[-1]).outputs
    return Probe(tuple(rows))
