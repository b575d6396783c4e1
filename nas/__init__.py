"""millinas: hardware-aware neural architecture search for mobile hybrid vision transformers.

Everything the command line does is here as a function, loaded on first use: `import nas` alone loads neither torch nor
a runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.arch import Arch, calls_of
    from nas.building import build, cost_of, fuse, load_arch
    from nas.errors import NasError
    from nas.latency import Table
    from nas.space import Space

__version__ = "0.1.0"

_WHERE = {
    "Arch": "nas.arch",
    "NasError": "nas.errors",
    "Space": "nas.space",
    "Table": "nas.latency",
    "build": "nas.building",
    "calls_of": "nas.arch",
    "cost_of": "nas.building",
    "fuse": "nas.building",
    "load_arch": "nas.building",
}
__all__ = [
    "Arch",
    "NasError",
    "Space",
    "Table",
    "build",
    "calls_of",
    "cost_of",
    "fuse",
    "load_arch",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
