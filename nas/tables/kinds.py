"""Which line of models a network is of: its family and, in a space whose stages choose among kinds, the kind."""

from __future__ import annotations

import dataclasses
import functools

import search_spaces
from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.core.space import Either, Space


@functools.lru_cache(maxsize=1 << 14)
def family_of(arch: Arch) -> str:
    """The name of a network's space; with the kind where it is in the part that `only` leaves: `hybrid:mb4d`."""
    try:
        space = search_spaces.load(arch.family)
        if not kinds(space):
            return arch.family
        params = _for(arch.family, arch.input_shape, arch.classes).params_of(arch)
    except InputError:  # no point of its space, such as one measured before the space was changed
        return arch.family
    chosen = [(stage, params[f"stage{n}.kind"]) for n, stage in enumerate(space.stages, 1) if isinstance(stage, Either)]
    last = chosen[-1][1]
    return f"{arch.family}:{last}" if all(kind == _nearest(stage, last) for stage, kind in chosen) else arch.family


@functools.lru_cache(maxsize=64)
def _for(family: str, input_shape: tuple[int, int, int], classes: int) -> Space:
    """One object for each, which remembers the stages it has seen."""
    return dataclasses.replace(search_spaces.load(family), input_shape=input_shape, classes=classes)


def line_of(arch: Arch) -> str:
    """What intervals hold for: the kind alone where `family_of` names one, since a line of models is off alike in every
    space that offers it.
    """
    return family_of(arch).rpartition(":")[2]


def kinds(space: Space) -> tuple[str, ...]:
    """The kinds that the last choosing stage of a space offers; none where no stage chooses."""
    offering = [stage for stage in space.stages if isinstance(stage, Either)]
    return tuple(dict(offering[-1].kinds)) if offering else ()


def only(space: Space, kind: str) -> Space:
    """The part of a space whose stages are all of one kind; of their first one where they do not offer it."""
    stages = (
        Either(((nearest := _nearest(stage, kind), dict(stage.kinds)[nearest]),))
        if isinstance(stage, Either)
        else stage
        for stage in space.stages
    )
    return dataclasses.replace(space, stages=tuple(stages))


def _nearest(stage: Either, kind: str) -> str:
    offered = [name for name, _ in stage.kinds]
    return kind if kind in offered else offered[0]
