"""One file a data set. The file is the registration: `fashion_mnist.py` is the data set `fashion-mnist`.

Such a file has one function, `load(request: DataRequest) -> Data` (`nas.evaluation.data`), which raises `InputError`
naming the file or folder when something is missing or wrong. Most end in a call of `in_memory`.
"""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """All data sets, sorted."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def module_name(name: str) -> str:
    """The module that loads the data set `name`."""
    return f"{__name__}.{name.replace('-', '_')}"
