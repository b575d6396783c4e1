"""One file a data set. The file is the registration: `fashion_mnist.py` is the data set `fashion-mnist`.

Such a file ends in `DATASET`, a function `(request: DataRequest) -> Data` (`nas.evaluation.data`), which raises
`InputError` naming the file or folder when something is missing or wrong. Most end in a call of `in_memory`. One with
options (`imagefolder:PATH,skip_corrupt`) lists them in `OPTIONS`: by name, whether it takes a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.core import plugins


def names() -> list[str]:
    """All data sets, sorted; see `nas.core.plugins` for where they are found."""
    return sorted(name.replace("_", "-") for name in plugins.names("datasets"))


def loader(name: str) -> Any:
    """The function that loads the data set `name`.

    Raises:
        InputError: a file outside that cannot be loaded, naming it.
    """
    return plugins.load("datasets", name.replace("-", "_"))


def options(name: str) -> Mapping[str, bool]:
    """The options that a data set takes, and whether each has a value; raises as `loader`."""
    found: Mapping[str, bool] = getattr(plugins.module("datasets", name.replace("-", "_")), "OPTIONS", {})
    return found
