"""The command line `nas`: every module here registers its commands; a new command is a new file."""

from __future__ import annotations

import importlib

from nas.commands._app import app, main
from nas.core.plugins import files_of

__all__ = ["app", "main"]

# as a person meets them; what is not named comes behind
_ORDER = [
    "listing",
    "profile",
    "validate",
    "search",
    "slim",
    "report",
    "train",
    "evaluate",
    "export",
    "publish",
    "measure",
    "shortlist",
    "describe",
    "compare",
    "feasible",
    "judge",
    "transfer",
]
for _name in [*_ORDER, *(name for name in files_of(__name__) if name not in _ORDER)]:
    importlib.import_module(f"{__name__}.{_name}")
