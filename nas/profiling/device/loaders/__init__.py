"""Runtimes that a bundle can be made for: one file each, named like its runtime.

It says what pip calls the runtime and what Python imports, the ending of its files, and `load`s one with a number of
threads and a precision. The backend of that name uses it, too.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from importlib import metadata
from typing import Any

from nas.core.errors import MeasureError


def runtimes() -> list[str]:
    """Names of all of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def loader_of(runtime: str) -> Any:
    """The module of a runtime."""
    return importlib.import_module(f"{__name__}.{runtime}")


def version_of(runtime: str) -> str:
    """The version of an installed runtime, as pip knows it, or as it says itself: a board's own build.

    Raises:
        MeasureError: where it is not installed, with what installs it.
    """
    loader = loader_of(runtime)
    try:
        return metadata.version(loader.DISTRIBUTION)
    except metadata.PackageNotFoundError:
        pass
    try:
        return str(importlib.import_module(loader.MODULE).__version__)
    except (ImportError, AttributeError) as error:
        install = f"pip install {loader.DISTRIBUTION}"
        raise MeasureError(f"{loader.DISTRIBUTION} is not installed for {sys.executable}: {install}") from error
