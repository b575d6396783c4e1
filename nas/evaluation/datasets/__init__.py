"""One file a data set. The file is the registration: `fashion_mnist.py` is the data set `fashion-mnist`.

Such a file ends in `DATASET`, a function `(request: DataRequest) -> Data` (`nas.evaluation.data`), which raises
`InputError` naming the file or folder when something is missing or wrong. Most end in a call of `in_memory`.
"""

from __future__ import annotations

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
