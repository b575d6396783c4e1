"""How much each row matters for a space: the share of its archs that use it."""

from __future__ import annotations

import functools
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping

from nas.core.arch import Arch, calls_of
from nas.core.ops import Row
from nas.core.space import Space
from nas.core.tracing import calls_of_unit

SAMPLES = 3000
MOST_HALVINGS = 8  # rows of fewer archs are all alike: chance decides about them


@functools.lru_cache(maxsize=16)
def usage(space: Space, level: str = "block", samples: int = SAMPLES, seed: int = 0) -> dict[Row, float]:
    """The share of random archs of a space that use a row; rows that none of them uses are not in it."""
    rng = random.Random(seed)
    counts: Counter[Row] = Counter()
    for _ in range(samples):
        counts.update(rows_of_arch(space.sample(rng), level))
    return {row: count / samples for row, count in counts.items()}


def rows_of_arch(arch: Arch, level: str = "block") -> tuple[Row, ...]:
    """The rows that an arch needs, each once."""
    blocks = [call.row for call in calls_of(arch)]
    if level == "block":
        return tuple(dict.fromkeys(blocks))
    return tuple(dict.fromkeys(op for row in blocks for op in _ops_of(row)))


@functools.cache
def _ops_of(row: Row) -> tuple[Row, ...]:
    return tuple(dict.fromkeys(op.row for op in calls_of_unit(row).ops))


def in_order(rows: Iterable[Row], used: Mapping[Row, float]) -> tuple[Row, ...]:
    """Rows, the most used first: those of more than half of the archs, of more than a quarter, and so on.

    Rows that are about as much used stand in the order of networks, so that those which are timed with the help of the
    same graphs are timed in the same process.
    """
    return tuple(sorted(rows, key=lambda row: (halvings(used.get(row, 0.0)), *_place(row))))


def halvings(share: float) -> int:
    """How often the share of all archs has to be halved to come down to this one, in whole steps."""
    return min(int(-math.log2(share)), MOST_HALVINGS) if share > 0 else MOST_HALVINGS


def _place(row: Row) -> tuple[int, str]:
    shape = row.inputs[0]
    positions = shape[2] * shape[3] if shape.is_map else shape[1] if len(shape) == 3 else 1
    return -positions, str(row)
