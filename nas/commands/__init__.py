"""The command line `nas`: every module here registers its commands; a new command is a new file."""

from __future__ import annotations

import importlib
import pkgutil

from nas.commands._app import app, main

__all__ = ["app", "main"]

# as a person meets them; what is not named comes behind
_ORDER = ["describe", "measure", "profile", "transfer", "search", "validate", "train", "export", "report", "listing"]
_found = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
for _name in [*_ORDER, *(name for name in _found if name not in _ORDER)]:
    importlib.import_module(f"{__name__}.{_name}")
