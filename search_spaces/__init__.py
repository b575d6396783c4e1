"""One family a file: its blocks, its `SPACES`, its published `PRESETS`. Presence in a folder listed here registers it.

A file defines `SPACE` (the full space) and may define further spaces in `SPACES`. `NAS_SPACES`, a list of folders in
the environment, adds files outside this package.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.core.arch import Arch
    from nas.core.space import Space


def families() -> list[str]:
    """Names of all families: one for each file here and in the folders of `NAS_SPACES`."""
    outside = [path.stem for folder in _folders() for path in sorted(folder.glob("*.py"))]
    inside = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in {*inside, *outside} if not name.startswith("_"))


def _folders() -> list[Path]:
    return [Path(folder) for folder in os.environ.get("NAS_SPACES", "").split(os.pathsep) if folder]


@functools.cache
def family(name: str) -> ModuleType:
    """The module of a family.

    Raises:
        InputError: for an unknown family, naming the closest ones.
    """
    from nas.core.errors import InputError, suggest

    for folder in _folders():
        path = folder / f"{name}.py"
        if path.is_file():
            spec = importlib.util.spec_from_file_location(f"nas_outside_spaces.{name}", path)
            if spec is None or spec.loader is None:
                raise InputError(f"{path}: cannot be loaded as a Python module")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
            return module
    if name not in families():
        raise InputError(suggest("family", name, families()))
    return importlib.import_module(f"{__name__}.{name}")


def spaces() -> dict[str, Space]:
    """All spaces of all families, by name."""
    found = {}
    for name in families():
        module = family(name)
        for space in (module.SPACE, *getattr(module, "SPACES", ())):
            found[space.name] = space
    return found


def load(name: str) -> Space:
    """The space of this name.

    Raises:
        InputError: for an unknown space, naming the closest ones.
    """
    from nas.core.errors import InputError, suggest

    known = spaces()
    if name not in known:
        raise InputError(suggest("space", name, known))
    return known[name]


def presets() -> dict[str, Arch]:
    """The published models of all families, by name."""
    return {name: arch for item in families() for name, arch in getattr(family(item), "PRESETS", {}).items()}
