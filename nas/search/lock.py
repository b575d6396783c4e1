"""One process owns a run: a lock that the system releases when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from nas.core.errors import RunError


class RunLock:
    """Hold the run directory while the block runs; the file names the process that holds it.

    Args:
        run_dir: made where it is missing; its file `lock` stays, the lock on it does not.

    Raises:
        RunError: on entering, when another process holds it, naming that process.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "lock"
        self._file = -1

    def __enter__(self) -> RunLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 32).decode(errors="replace").strip()
            os.close(self._file)
            raise RunError(
                f"{self._path.parent} is in use by process {holder or '(unknown)'}. Wait until it ends, or stop it; "
                "the same command then continues the run"
            ) from error
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)
