"""Converted probes on disk, by content, so that every process and every later profile finds them.

A file's name is a hash of all it depends on: the graph, the runtime and its settings, every installed package and the
source of what builds and converts models. So a file is never out of date, and one that is no longer asked for ages
away. What is in it stands in another beside it: one that was cut off or damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import site
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import nas
import search_spaces
from nas.core import plugins
from nas.core.errors import MeasureError
from nas.core.files import cache_folder, write_text, writing
from nas.profiling import backends
from nas.profiling.device.run import fingerprint
from nas.profiling.machine import this_machine
from nas.profiling.worker import WEIGHTS_SEED

if TYPE_CHECKING:
    from nas.profiling.probes import Probe
    from nas.profiling.process import RuntimeConfig

LIMIT_BYTES = 16 * 2**30  # a profile of a thousand rows has ten, and comes back for them in every pass
LIMIT_SHARE = 0.25  # of what the disk has free, files of the cache counted as free
LEAST_FREE_BYTES = 2**26  # with less, what cannot be written fails for want of room
YOUNG_SECONDS = 600.0  # a file used since then is left: some process may be about to load it
SEAL = ".seal"  # ends the name of the file that says what is in the file beside it: bytes and hash
#: of the package `nas`: what builds and converts models
SOURCES = (
    *(f"core/{name}.py" for name in ("ops", "blocks", "tracing", "arch")),
    *(
        "networks/building.py",
        "networks/export.py",
        "networks/foreign.py",
        "profiling/probes.py",
        "profiling/converter.py",
    ),
)


def seal(path: Path) -> None:
    """Write down what a file holds that is complete; without it, and where it holds something else, it is made again.

    Raises:
        RunError: it cannot be written.
    """
    write_text(_seal_of(path), json.dumps(fingerprint(path)), sync=False)


def _seal_of(path: Path) -> Path:
    return path.with_name(path.name + SEAL)


class Cache:
    """The converted probes of one config.

    Args:
        config: runtime and its settings.
        folder: where the files are; they may be of other engines too.
        limit_bytes: size of all files above which the oldest go.
    """

    def __init__(self, config: RuntimeConfig, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = (folder or cache_folder()) / "converted"
        self.limit_bytes = limit_bytes
        self._known: dict[Path, tuple[int, int]] = {}  # files that were whole when this process last read them
        with writing(f"{self.folder} (the environment variable NAS_CACHE names another)"):
            self.folder.mkdir(parents=True, exist_ok=True)
        version = backends.load_backend(config.runtime).version()
        fields = [config.runtime, config.threads, config.precision, config.variant, version]
        fields += [WEIGHTS_SEED, this_machine(config.runtime).cpu, sys.version]
        self._about = json.dumps([*fields, _installed(), _sources()])

    def path(self, probe: Probe) -> Path:
        """Where a probe's file is, or will be."""
        text = self._about + json.dumps(probe.to_data(), sort_keys=True)
        return self.folder / hashlib.sha256(text.encode()).hexdigest()

    def lacking(self, probes: Iterable[Probe]) -> list[Probe]:
        """Those without a whole file; the files of the others become young."""
        found = []
        for probe in probes:
            path = self.path(probe)
            try:
                whole = self._is_whole(path)
                os.utime(path)
            except FileNotFoundError:
                whole = False
            if not whole:
                found.append(probe)
        return found

    def _is_whole(self, path: Path) -> bool:
        """Whether a file holds what was written; all of it is read once in the life of this process."""
        found = path.stat()
        mark = (found.st_ino, found.st_size)
        if self._known.get(path) != mark:
            try:
                sealed = json.loads(_seal_of(path).read_bytes())
            except ValueError:
                return False
            if sealed != fingerprint(path):
                return False
            self._known[path] = mark
        return True

    def shrink(self) -> None:
        """Remove the oldest files as far as there are too many, but none that is young."""
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process shrinks it as well
                if path.name.endswith(SEAL) and path.with_name(path.name.removesuffix(SEAL)).exists():
                    continue  # it goes with its file
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        size = sum(count for _, count, _ in files)
        limit = min(self.limit_bytes, LIMIT_SHARE * (shutil.disk_usage(self.folder).free + size))
        for used, count, path in sorted(files):
            if size <= limit or used > time.time() - YOUNG_SECONDS:
                return
            path.unlink(missing_ok=True)
            _seal_of(path).unlink(missing_ok=True)
            size -= count

    def require_room(self) -> None:
        """Raise where the disk is full.

        Raises:
            MeasureError: naming the folder.
        """
        if shutil.disk_usage(self.folder).free < LEAST_FREE_BYTES:
            raise MeasureError(
                f"{self.folder}: the disk is full, models cannot be converted; make room or name another folder in the "
                "environment variable NAS_CACHE. What was measured before is on disk, and the same command continues"
            )


def _installed() -> list[str]:
    """Every installed package with its version."""
    folders = {Path(folder) for folder in (*sys.path, *site.getsitepackages()) if folder}
    return sorted({info.name for folder in folders if folder.is_dir() for info in folder.glob("*.dist-info")})


def _sources() -> str:
    """A hash of the source that decides what is in a converted file."""
    package = Path(nas.__file__).parent
    folders = [*search_spaces.__path__, *backends.__path__]
    files = [package / name for name in SOURCES] + plugins.sources()
    files += [file for folder in folders for file in sorted(Path(folder).glob("*.py"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
