"""Which whole networks to measure: spread evenly over a space, on a logarithmic scale of cost."""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections.abc import Callable, Collection, Iterator

from nas.core.arch import Arch, calls_of
from nas.core.errors import InputError
from nas.core.ops import Row
from nas.core.space import Space
from nas.core.tracing import BYTES_PER_VALUE, params_of_unit
from nas.tables.kinds import kinds, only

SAMPLES = 2000
WALKS = 60  # from either end of the space, which random samples hardly reach
STEPS = 8
TYPICAL = 201


def spread(
    space: Space, count: int, rng: random.Random, cost: Callable[[Row], float], exclude: Collection[Arch] = ()
) -> tuple[Arch, ...]:
    """Distinct archs of a space, from the smallest to the largest, their costs about evenly spaced in the logarithm.

    Args:
        space: to choose from.
        count: how many; a space with fewer gives what it has.
        rng: random samples and walks come from it.
        cost: of a row; an arch costs their sum.
        exclude: archs not to choose.
    """
    (_, smallest), (_, largest) = space.extreme(cost), space.extreme(cost, largest=True)
    pool = [space.sample(rng) for _ in range(SAMPLES)]
    pool += [arch for end in (smallest, largest) for _ in range(WALKS) for arch in _walk(space, end, rng)]
    distinct = [arch for arch in dict.fromkeys(pool) if arch not in exclude]
    logs = {arch: math.log(sum(cost(call.row) for call in calls_of(arch))) for arch in distinct}
    if not logs:
        return ()
    low, high = min(logs.values()), max(logs.values())
    chosen: list[Arch] = []
    for number in range(min(count, len(logs))):
        target = low + (high - low) * number / max(count - 1, 1)
        nearest = min(logs, key=lambda arch: abs(logs[arch] - target))
        chosen.append(nearest)
        del logs[nearest]
    return tuple(chosen)


def varied(
    space: Space, count: int, rng: random.Random, cost: Callable[[Row], float], exclude: Collection[Arch] = ()
) -> tuple[Arch, ...]:
    """As `spread`; where stages choose among kinds, half of the archs are of one kind each, all kinds in turn.

    Calibrations and cards both draw so: random mixtures hardly tell one kind's error from another's, while what people
    ask about is often of one kind, such as a published network.
    """
    names = list(kinds(space))
    rng.shuffle(names)
    half, drawn = count // 2, list[Arch]()
    for number, kind in enumerate(names[:half]):
        even = spread(only(space, kind), half, rng, cost, {*exclude, *drawn})
        drawn += even[number :: len(names)]
    return (*drawn, *spread(space, count - len(drawn), rng, cost, {*exclude, *drawn}))


@functools.lru_cache(maxsize=16)
def typical_bytes(space: Space) -> float:
    """Weights of a network of a space: the median over random ones, in bytes, fp32."""
    rng = random.Random(0)
    archs = (space.sample(rng) for _ in range(TYPICAL))
    sizes = [BYTES_PER_VALUE * sum(params_of_unit(call.row) for call in calls_of(arch)) for arch in archs]
    return statistics.median(sizes)


def _walk(space: Space, arch: Arch, rng: random.Random) -> Iterator[Arch]:
    yield arch
    for _ in range(rng.randrange(1, STEPS + 1)):
        try:
            arch = space.mutate(arch, rng)
        except InputError:  # a space of one arch
            return
        yield arch
