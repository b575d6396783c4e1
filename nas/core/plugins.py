"""One file each, in the package or outside: families, backends, data sets, evaluators, executors, metrics,
samplers, steps.

A file of a kind ends in its constant (`EVALUATOR`), and its name is the name. It lies in the package's folder of that
kind; or in a folder named in `NAS_PLUGINS` (several are separated as in `PATH`), or in a folder inside that one; or it
is a module that an installed package names in the entry point group `nas.KIND`. Files that begin with `_` are helpers,
which the others import (`from ._mine import ...`). The folders of `NAS_SPACES` hold families alone.

Files outside are the modules `nas_plugins.KIND.NAME`, also for the processes that nas starts.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.abc
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nas.core.errors import InputError, suggest

OUTSIDE = "nas_plugins"


class Kind(NamedTuple):
    """What there can be files of.

    Attributes:
        word: one of them, in messages.
        package: its folder.
        constant: what such a file ends in.
    """

    word: str
    package: str
    constant: str


KINDS = {
    "families": Kind("family", "search_spaces", "SPACE"),
    "backends": Kind("runtime", "nas.profiling.backends", "BACKEND"),
    "datasets": Kind("data set", "nas.evaluation.datasets", "DATASET"),
    "executors": Kind("executor", "nas.search.executors", "EXECUTOR"),
    "evaluators": Kind("evaluator", "nas.evaluation.evaluators", "EVALUATOR"),
    "metrics": Kind("metric", "nas.metrics", "METRIC"),
    "samplers": Kind("sampler", "nas.search.samplers", "SAMPLER"),
    "steps": Kind("step", "nas.search.steps", "STEP"),
}


class _Place(NamedTuple):
    """Where a file of a kind is: its module, and its path where it is outside."""

    module: str
    path: Path | None = None

    def __str__(self) -> str:
        return self.module if self.path is None else str(self.path)


def files_of(package: str) -> list[str]:
    """Names of the modules in a package's folder, sorted, without those that begin with `_`."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return sorted(module.name for module in found if not module.name.startswith("_"))


def names(kind: str) -> list[str]:
    """All files of a kind by name, sorted.

    Raises:
        InputError: two have one name; or a file outside cannot be read, or ends in no kind's constant.
    """
    return sorted(_places(kind))


def module(kind: str, name: str) -> ModuleType:
    """The module of a file.

    Raises:
        InputError: an unknown name, naming the closest ones; or a file outside that fails, naming it and the line.
    """
    word, _, constant = KINDS[kind]
    places = _places(kind)
    if name not in places:
        raise InputError(suggest(word, name, places))
    place = places[name]
    try:
        found = importlib.import_module(place.module)
    except Exception as error:
        if place.path is None:
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _same(frame.filename, place)]
        where = f"{place.path}:{lines[-1]}" if lines else str(place.path)
        raise InputError(f"{where}: cannot be loaded as {word}: {type(error).__name__}: {error}") from error
    if not hasattr(found, constant):
        raise InputError(f"{place}: is no {word}: it ends in no {constant}")
    return found


def load(kind: str, name: str) -> Any:
    """The constant that a file ends in; raises as `module`."""
    return getattr(module(kind, name), KINDS[kind].constant)


def sources() -> list[Path]:
    """All Python files in the folders of `NAS_PLUGINS` and `NAS_SPACES`, with what they import beside them."""
    return sorted({file for variable in ("NAS_PLUGINS", "NAS_SPACES") for file in _files(variable)})


def _same(filename: str, place: _Place) -> bool:
    return place.path is not None and Path(filename) == place.path


def _places(kind: str) -> dict[str, _Place]:
    """Every file of a kind by name."""
    word, package, _ = KINDS[kind]
    found = {name: _Place(f"{package}.{name}") for name in files_of(package)}
    outside = [(path.stem, _Place(f"{OUTSIDE}.{kind}.{path.stem}", path)) for path in _outside(kind)]
    installed = [(point.name, _Place(point.module)) for point in _entry_points(kind)]
    for name, place in (*outside, *installed):
        if name in found:
            raise InputError(
                f"{place}: the {word} {name!r} is there already, {found[name]}; give the file another name, such as "
                f"my_{name}"
            )
        found[name] = place
    return found


@functools.cache
def _entry_points(kind: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=f"nas.{kind}"))


def _outside(kind: str) -> Iterator[Path]:
    """The files of a kind in the folders that the environment names."""
    constants = {one.constant for one in KINDS.values()}
    found: set[Path] = set()
    for path in _public(_files("NAS_PLUGINS")):
        roles = constants & _defined(path, path.stat().st_mtime_ns)
        if not roles:
            raise InputError(f"{path}: ends in none of {', '.join(sorted(constants))}; helpers begin with _")
        if KINDS[kind].constant in roles:
            found.add(path)
    if kind == "families":
        found.update(_public(_files("NAS_SPACES")))
    yield from sorted(found)


def _public(files: Iterable[Path]) -> Iterator[Path]:
    """Those that are no helpers, by their own name and that of their folder."""
    return (path for path in files if not path.name.startswith("_") and not path.parent.name.startswith("_"))


def _files(variable: str) -> Iterator[Path]:
    """The Python files in the folders that a variable of the environment names, and in the folders inside them."""
    for folder in filter(None, os.environ.get(variable, "").split(os.pathsep)):
        if not Path(folder).is_dir():
            raise InputError(f"{variable}: there is no folder {folder}")
        for path in (*Path(folder).glob("*.py"), *Path(folder).glob("*/*.py")):
            yield path.resolve()


@functools.lru_cache(maxsize=1024)
def _defined(path: Path, changed: int) -> frozenset[str]:
    """The names that a file defines at its top level, without running it; `changed` is when it was last written."""
    try:
        body = ast.parse(path.read_bytes(), str(path)).body
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}: {error.msg}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as Python: {error}") from error
    found = set()
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return frozenset(found)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds files outside as modules of a package of their own, so that pickles from other processes find them, too."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, *rest = fullname.split(".")
        if package != OUTSIDE or (rest and rest[0] not in KINDS):
            return None
        if len(rest) < 2:
            return ModuleSpec(fullname, None, is_package=True)
        files = {file.stem: file for file in (*sources(), *_outside(rest[0]))}
        if len(rest) > 2 or rest[1] not in files:
            return None
        return importlib.util.spec_from_file_location(fullname, files[rest[1]])


sys.meta_path.append(_Finder())
