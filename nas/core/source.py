"""Which code makes a result: hashes of source files, found without importing them, for what is remembered on disk.

The package's own files count in whole groups. A module outside it, such as a family in a folder of `NAS_SPACES`, counts
with every file that it imports, and with the names and versions of all installed packages.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from nas.core import plugins

ROOT = Path(__file__).resolve().parents[2]  # of the packages `nas` and `search_spaces`
PACKAGE = ROOT / "nas" / "__init__.py"  # stands for all of it
CORE = ("nas/core/*.py", "search_spaces/*.py")
ALL = ("nas/**/*.py", "search_spaces/*.py")
DEPENDENCIES = ("torch", "fvcore", "numpy", "scipy")


@functools.cache
def code_of(*modules: str) -> str | None:
    """A hash of the code that defines blocks in these loaded modules and turns them into what they cost; None where a
    module is in no file, such as a notebook's.
    """
    outside = [name for name in modules if not _is_core(name)]
    files = [getattr(sys.modules.get(name), "__file__", None) for name in outside]
    return _hash(CORE, [Path(file) for file in files if file]) if all(files) else None


def code_of_package() -> str | None:
    """A hash of the whole package and of every file in the folders of `NAS_PLUGINS` and `NAS_SPACES`, loaded or not."""
    return _code_with(tuple(plugins.sources()))


@functools.cache
def _code_with(families: tuple[Path, ...]) -> str | None:
    return _hash(ALL, families)


def _hash(patterns: tuple[str, ...], outside: Iterable[Path]) -> str | None:
    try:
        beyond = _closure(outside)
        patterns = ALL if PACKAGE in beyond else patterns
        files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
        contents = [(path.name, path.read_bytes()) for path in (*files, *sorted(beyond))]
    except (OSError, SyntaxError, ValueError):
        return None
    versions = [*_installed(), sys.version] if beyond else [*map(_version, DEPENDENCIES), sys.version]
    found = hashlib.sha256("\0".join(versions).encode())
    for name, content in contents:
        found.update(name.encode() + hashlib.sha256(content).digest())
    return found.hexdigest()[:32]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _is_core(module: str) -> bool:
    return module.startswith(("nas.core.", "search_spaces."))


def _closure(outside: Iterable[Path]) -> set[Path]:
    """These files and all that they import, but for what is installed, the standard library and the core."""
    waiting = {path.resolve() for path in outside}
    families = {path.resolve() for path in plugins.sources()}
    waiting |= families if waiting & families else set()  # one may load another by name
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        imports = () if path == PACKAGE else _imports(path)
        waiting |= {file for name in imports for file in _files_of(name)} - seen
    return seen


def _imports(path: Path) -> Iterator[str]:
    """Dotted names that a file may import; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files_of(name: str) -> Iterator[Path]:
    """The files behind a dotted name: its packages' `__init__`, and the module itself; nothing is imported."""
    top, *rest = name.split(".")
    if top in sys.stdlib_module_names or top == "search_spaces" or _is_core(name):
        return
    if top == "nas":  # more than the core
        yield PACKAGE
        return
    spec = importlib.util.find_spec(top)
    origin = Path(spec.origin).resolve() if spec is not None and spec.has_location and spec.origin else None
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    if any(path.is_relative_to(folder) for path in (origin, *places) if path for folder in _site_folders()):
        return
    if origin is not None:
        yield origin
    for part in rest:
        found = [file for place in places for file in (place / f"{part}.py", place / part / "__init__.py")]
        yield from (file.resolve() for file in found if file.is_file())
        places = [place / part for place in places]


@functools.cache
def _site_folders() -> frozenset[Path]:
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    return frozenset(Path(folder).resolve() for folder in folders | {site.getusersitepackages()} if folder)


def _installed() -> list[str]:
    """Every installed distribution with its version, as the names of folders say."""
    return sorted({info.name for folder in _site_folders() if folder.is_dir() for info in folder.glob("*-info")})
