"""Which channels of a network go together: those that have to keep one order wherever they pass.

A tensor's channels are a `Layout`: parts side by side, each a `Group` of things (channels, heads), of which each has as
many neighbouring channels as the part says. An op says how channels run through it (`Op.wires`); what has to be in one
order is then one group, and any order of its things leaves a network's outputs as they are, if all that touch them are
in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(eq=False)
class Group:
    """Things that are in one order everywhere.

    Attributes:
        size: how many.
        unit: so many neighbours move together.
        front: the first ones, which stay where they are.
        fixed: whether none may move, since something that is not known reads them.
        into: what it turned out to be made of; empty for itself.
    """

    size: int
    unit: int = 1
    front: int = 0
    fixed: bool = False
    into: tuple[Part, ...] = field(default=())


class Part(NamedTuple):
    """A group on an axis; each of its things is `inner` neighbouring channels."""

    group: Group
    inner: int = 1


Layout = tuple[Part, ...]


class Wires(NamedTuple):
    """How channels run through an op.

    Attributes:
        gives: the layout of each output.
        held: the layouts of axes of its parameters and buffers, {name: {axis: layout}}; other axes are in no order that
            could change.
    """

    gives: Sequence[Layout]
    held: Mapping[str, Mapping[int, Layout]]


def fresh(size: int, inner: int = 1) -> Layout:
    """A new group of `size` things of `inner` channels each."""
    return (Part(Group(size), inner),)


def fixed(size: int) -> Layout:
    """Channels whose order stays."""
    return (Part(Group(size, fixed=True)),)


def found(layout: Layout) -> Layout:
    """A layout in terms of the groups that have turned out."""
    parts: list[Part] = []
    for group, inner in layout:
        if group.into:
            parts += found(tuple(Part(part.group, part.inner * inner) for part in group.into))
        else:
            parts.append(Part(group, inner))
    return tuple(parts)


def width(layout: Layout) -> int:
    """How many channels."""
    return sum(group.size * inner for group, inner in layout)


def times(layout: Layout, count: int) -> Layout:
    """`count` channels in the place of each."""
    return tuple(Part(group, inner * count) for group, inner in layout)


def fix(layout: Layout) -> Layout:
    """Let these channels stay where they are."""
    for group, _ in found(layout):
        group.fixed = True
    return layout


def move_together(layout: Layout, unit: int) -> None:
    """Let neighbours move only in runs of `unit` channels, as the groups of a convolution."""
    for group, inner in found(layout):
        run = unit // math.gcd(unit, inner)
        together = math.lcm(group.unit, run)
        if group.size % together or group.size * inner % unit:
            fix(layout)
            return
        group.unit = together


def cut(layout: Layout, sizes: Sequence[int]) -> None:
    """Part a layout behind every one of these numbers of channels; what cannot be parted there stays in order."""
    ends = list(itertools.accumulate(sizes))
    start = 0
    for group, inner in found(layout):
        inside = sorted(end - start for end in ends if start < end < start + group.size * inner)
        start += group.size * inner
        if inside and not _part(group, inner, inside):
            fix(layout)


def _part(group: Group, inner: int, ends: Sequence[int]) -> bool:
    """Make a group several, ending behind these channels."""
    if any(end % (inner * group.unit) for end in ends) or group.front:
        return False
    places = [0, *(end // inner for end in ends), group.size]
    sizes = [after - before for before, after in itertools.pairwise(places)]
    group.into = tuple(Part(Group(size, group.unit, fixed=group.fixed)) for size in sizes)
    return True


def join(one: Layout, other: Layout) -> Layout:
    """Let two layouts of as many channels be in one order, as those of a sum are."""
    cut(one, [group.size * inner for group, inner in found(other)])
    cut(other, [group.size * inner for group, inner in found(one)])
    mine, theirs = found(one), found(other)
    if [group.size * inner for group, inner in mine] != [group.size * inner for group, inner in theirs]:
        fix(one)
        fix(other)
        return one
    for (a, a_inner), (b, b_inner) in zip(mine, theirs, strict=True):
        _unite(a, a_inner, b, b_inner)
    return one


def _unite(a: Group, a_inner: int, b: Group, b_inner: int) -> None:
    if a is b:
        return
    if a_inner < b_inner:
        a, a_inner, b, b_inner = b, b_inner, a, a_inner
    runs, rest = divmod(a_inner, b_inner)
    apart = rest or (b.unit > runs and b.unit % runs) or (b.unit < runs and runs % b.unit) or a.front or b.front
    unit = math.lcm(a.unit, max(b.unit // runs, 1)) if not apart else 0
    if apart or a.size % unit:
        a.fixed = b.fixed = True
        return
    a.unit, a.fixed = unit, a.fixed or b.fixed
    b.into = (Part(a, runs),)
