"""One family a file: its blocks, its `SPACES`, its published `PRESETS`. Presence in this folder registers it.

A file ends in `SPACE` (the full space) and may define further spaces in `SPACES`. What the authors report of each
preset stands in `PUBLISHED`. `nas.core.plugins` also finds files outside this package.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.core.space import Space


class Published(NamedTuple):
    """What the authors report of a preset, at the size of images that it takes.

    Attributes:
        top1: share of ImageNet's validation images that one crop classifies right, 0..1; None where none is known.
        source: where that stands: an arXiv number, or a repository, and the place in it.
        recipe: how the network was trained, in short; empty where that is not known.
    """

    top1: float | None = None
    source: str = ""
    recipe: str = ""


def families() -> list[str]:
    """Names of all families, sorted; see `nas.core.plugins` for where they are found."""
    from nas.core import plugins

    return plugins.names("families")


@functools.cache
def family(name: str) -> ModuleType:
    """The module of a family.

    Raises:
        InputError: for an unknown family, naming the closest ones, or a file that cannot be loaded, naming it.
    """
    from nas.core import plugins

    return plugins.module("families", name)


def family_of(space: str) -> ModuleType:
    """The module of the family that has a space of this name, such as an arch's `family`.

    Raises:
        InputError: for an unknown space, naming the closest ones.
    """
    load(space)
    modules = map(family, families())
    return next(m for m in modules if space in {each.name for each in (m.SPACE, *getattr(m, "SPACES", ()))})


def spaces() -> dict[str, Space]:
    """All spaces of all families, by name.

    Raises:
        InputError: two families have a space of one name.
    """
    found: dict[str, Space] = {}
    for name in families():
        module = family(name)
        _add(found, {space.name: space for space in (module.SPACE, *getattr(module, "SPACES", ()))}, "space", module)
    return found


def load(name: str) -> Space:
    """The space of this name; `nas.core.parts.load` gives a part of it, or one at another side.

    Raises:
        InputError: for an unknown space, naming the closest ones.
    """
    from nas.core.errors import InputError, suggest

    known = spaces()
    if name not in known:
        raise InputError(suggest("space", name, known))
    return known[name]


def spelled(space: Space) -> str:
    """How a command names a space: `hybrid`, or `hybrid --side 96` where its images are not of its family's side."""
    known, side = spaces().get(space.name, space), space.input_shape[-1]
    return space.name if side == known.input_shape[-1] else f"{space.name} --side {side}"


def presets() -> dict[str, Arch]:
    """The published models of all families, by name.

    Raises:
        InputError: two families have a preset of one name.
    """
    found: dict[str, Arch] = {}
    for name in families():
        module = family(name)
        _add(found, getattr(module, "PRESETS", {}), "preset", module)
    return found


def published() -> dict[str, Published]:
    """What is reported of every preset, by name; `Published()` of one of which a family knows nothing."""
    known: dict[str, Published] = {}
    for name in families():
        known.update(getattr(family(name), "PUBLISHED", {}))
    return {name: known.get(name, Published()) for name in presets()}


def _add(found: dict[str, Any], more: dict[str, Any], what: str, module: ModuleType) -> None:
    from nas.core.errors import InputError

    if twice := sorted(found.keys() & more.keys()):
        raise InputError(f"{module.__file__}: another family has a {what} {twice[0]!r}; give it another name")
    found.update(more)
