"""What takes long to work out and follows from code and plain keys alone, remembered on disk as plain data.

Files in the user's cache, named by a hash of the code whose results they hold, a line for each result: whatever changes
in the code, its results have another file. Many processes read and append at once without locks; a line that is torn,
damaged or not ours fails its checksum and is passed over. Only ever an optimisation: what cannot be read is worked out
again, and what cannot be written is worked out again next time.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nas.core.errors import RunError
from nas.core.files import cache_folder

LIMIT_BYTES = 2**26  # a file is read whole, so one of this size takes no more
UNUSED_SECONDS = 30 * 86400.0  # a file that nobody has read since then goes
DAY_SECONDS = 86400.0
WRITE_SECONDS = 1.0  # a kill loses what the last second has worked out


def folder() -> Path:
    """Where the files are.

    Raises:
        RunError: there is no folder for caches.
    """
    return cache_folder() / "traced"


class Remembered:
    """Text -> plain data, shared by all processes that run the same code.

    Args:
        code: names the code that makes the data, such as `source.code_of` does; None where nothing can be remembered.
    """

    def __init__(self, code: str | None) -> None:
        self.code = code
        self._lines: dict[bytes, bytes] | None = None
        self._new: dict[bytes, bytes] = {}
        self._written = time.monotonic()
        atexit.register(self.flush)

    def get(self, key: str) -> Any:
        """What was put under a key by any process, before this one first asked; None where there is nothing."""
        if self.code is None:
            return None
        if self._lines is None:
            self._lines = self._read()
        line = self._new.get(key.encode()) or self._lines.get(key.encode())
        return None if line is None else json.loads(line)

    def put(self, key: str, value: Any) -> None:
        """Remember plain data other than None; on disk within seconds, or when the process ends."""
        if self.code is None:
            return
        self._new[key.encode()] = json.dumps(value, separators=(",", ":")).encode()
        if time.monotonic() > self._written + WRITE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is new; nothing where that fails."""
        new, self._new, self._written = self._new, {}, time.monotonic()
        if not new or self.code is None:
            return
        self._lines = {**(self._lines or {}), **new}
        try:
            path = self._path()
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _remove_unused(path.parent)
            elif path.stat().st_size > LIMIT_BYTES:
                return
            with path.open("ab", buffering=0) as file:  # one write, behind whatever another process left half
                file.write(b"\n" + b"\n".join(_sealed(key, value) for key, value in new.items()) + b"\n")
        except (OSError, RunError):
            pass

    def _path(self) -> Path:
        return folder() / f"{self.code}.jsonl"

    def _read(self) -> dict[bytes, bytes]:
        content = b""
        try:
            path = self._path()
            content = path.read_bytes()
            if time.time() > path.stat().st_mtime + DAY_SECONDS:
                os.utime(path)
        except (OSError, RunError):  # nothing there, or read, though of a folder that takes no writes
            pass
        return dict(_opened(content.split(b"\n")))


remembered = functools.cache(Remembered)  # one for each code in a process


def _sealed(key: bytes, value: bytes) -> bytes:
    return b"%08x\t%b\t%b" % (zlib.crc32(b"%b\t%b" % (key, value)), key, value)


def _opened(lines: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for line in lines:
        seal, _, text = line.partition(b"\t")
        if len(seal) == 8 and b"%08x" % zlib.crc32(text) == seal:
            key, tab, value = text.partition(b"\t")
            if tab:
                yield key, value


def _remove_unused(folder: Path) -> None:
    for path in folder.glob("*.jsonl"):
        if time.time() > path.stat().st_mtime + UNUSED_SECONDS:
            path.unlink(missing_ok=True)
