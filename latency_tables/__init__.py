"""Latency tables that ship with the package: `<device>/<runtime>-<precision>-<threads>t[-<space>][-op].csv`."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent


def names() -> list[str]:
    """Names of the shipped tables, as `find` takes them."""
    return sorted(str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.glob("*/*.csv"))


def find(name: str | os.PathLike[str]) -> Path:
    """The file of a table, from its path or from the name of a shipped one.

    Raises:
        InputError: where neither exists, naming the closest shipped ones.
    """
    from nas.core.errors import InputError, suggest

    for path in (Path(name), ROOT / f"{name}.csv", ROOT / str(name)):
        if path.is_file():
            return path
    raise InputError(
        f"{suggest('table', str(name), names())} It is no file; nas tables lists them all, nas profile makes one."
    )
