"""millinas: hardware-aware neural architecture search for mobile hybrid vision transformers.

Everything the command line does is here as a function, loaded on first use: `import nas` alone loads neither torch nor
a runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.core.arch import Arch, calls_of
    from nas.core.errors import NasError
    from nas.core.parts import load as load_space
    from nas.core.space import Space
    from nas.evaluation.deployment import evaluate_arch
    from nas.evaluation.exporting import export_arch
    from nas.evaluation.publishing import from_pretrained, publish
    from nas.evaluation.runs import train_arch
    from nas.networks.building import build, cost_of, fuse
    from nas.profiling.bundle import collect as collect_bundle
    from nas.profiling.bundle import make as make_bundle
    from nas.profiling.profiler import measure, profile
    from nas.profiling.transfer import transfer_table
    from nas.profiling.validation import validate
    from nas.report.explore import explore
    from nas.report.facts import describe, estimate
    from nas.report.page import write_report
    from nas.search.archs import load_arch
    from nas.search.comparing import compare
    from nas.search.overview import feasible
    from nas.search.request import Request
    from nas.search.run import run_search
    from nas.search.shortlist import shortlist
    from nas.search.slimming import slim
    from nas.tables.importing import import_table
    from nas.tables.table import Table

__version__ = "0.1.0"

_WHERE = {
    "Arch": ("nas.core.arch", "Arch"),
    "NasError": ("nas.core.errors", "NasError"),
    "Request": ("nas.search.request", "Request"),
    "Space": ("nas.core.space", "Space"),
    "Table": ("nas.tables.table", "Table"),
    "build": ("nas.networks.building", "build"),
    "calls_of": ("nas.core.arch", "calls_of"),
    "collect_bundle": ("nas.profiling.bundle", "collect"),
    "compare": ("nas.search.comparing", "compare"),
    "cost_of": ("nas.networks.building", "cost_of"),
    "describe": ("nas.report.facts", "describe"),
    "estimate": ("nas.report.facts", "estimate"),
    "evaluate_arch": ("nas.evaluation.deployment", "evaluate_arch"),
    "explore": ("nas.report.explore", "explore"),
    "export_arch": ("nas.evaluation.exporting", "export_arch"),
    "feasible": ("nas.search.overview", "feasible"),
    "from_pretrained": ("nas.evaluation.publishing", "from_pretrained"),
    "fuse": ("nas.networks.building", "fuse"),
    "import_table": ("nas.tables.importing", "import_table"),
    "load_arch": ("nas.search.archs", "load_arch"),
    "load_space": ("nas.core.parts", "load"),
    "make_bundle": ("nas.profiling.bundle", "make"),
    "measure": ("nas.profiling.profiler", "measure"),
    "profile": ("nas.profiling.profiler", "profile"),
    "publish": ("nas.evaluation.publishing", "publish"),
    "run_search": ("nas.search.run", "run_search"),
    "shortlist": ("nas.search.shortlist", "shortlist"),
    "slim": ("nas.search.slimming", "slim"),
    "train_arch": ("nas.evaluation.runs", "train_arch"),
    "transfer_table": ("nas.profiling.transfer", "transfer_table"),
    "validate": ("nas.profiling.validation", "validate"),
    "write_report": ("nas.report.page", "write_report"),
}
__all__ = [
    "Arch",
    "NasError",
    "Request",
    "Space",
    "Table",
    "build",
    "calls_of",
    "collect_bundle",
    "compare",
    "cost_of",
    "describe",
    "estimate",
    "evaluate_arch",
    "explore",
    "export_arch",
    "feasible",
    "from_pretrained",
    "fuse",
    "import_table",
    "load_arch",
    "load_space",
    "make_bundle",
    "measure",
    "profile",
    "publish",
    "run_search",
    "shortlist",
    "slim",
    "train_arch",
    "transfer_table",
    "validate",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
