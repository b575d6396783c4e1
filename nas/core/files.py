"""What nas leaves on disk: files written whole, locks that die with their holder, and the folder of caches."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from nas.core.errors import RunError

#: what is said of a disk that takes nothing more
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
#: what a network disk says that knows no locks
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


def unwritable(path: str | os.PathLike[str], error: OSError) -> RunError:
    """What to raise where a file or folder cannot be written, such as on a full disk."""
    return RunError(
        f"{path}: cannot be written ({error.strerror or error}); make room, see to its permissions, or name another "
        "place. What was done before is on disk, and the same command continues from there"
    )


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], only: Collection[int] | None = None) -> Iterator[None]:
    """Say which path could not be written, and what to do, where the block cannot write it.

    Args:
        path: what is said.
        only: these error numbers, such as `FULL`, for a block that does other things, too; None for all.

    Raises:
        RunError: in place of what the file system says.
    """
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        raise unwritable(path, error) from error


@contextlib.contextmanager
def whole(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """A temporary file for the block to write, which then becomes `path`: readers see the old file or the new one.

    It lies in the same folder, which is made where it is missing, and is on disk before it gets its name; where the
    block fails it goes. What a killed process left there goes, too.

    Args:
        path: the file.
        sync: wait for the disk, so that not even a power cut leaves half a file; not for one that is checked when it
            is read and can be made again.

    Raises:
        RunError: it cannot be written; `path` is as it was.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in _left_over(target.parent, f".{target.name}.{_host()}."):
            if left.name.endswith(".tmp"):
                left.unlink(missing_ok=True)
        try:
            yield temporary
            if sync:
                _sync(temporary)
            temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if sync:
            _sync(target.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview, *, sync: bool = True) -> None:
    """Write a file whole; see `whole`."""
    with whole(path, sync=sync) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = True) -> None:
    """Write a file of text whole, in UTF-8; see `whole`."""
    write_bytes(path, text.encode(), sync=sync)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network disks sync no folder
            raise
    finally:
        os.close(number)


def scratch(what: str) -> tempfile.TemporaryDirectory[str]:
    """A new folder of temporary files, which goes with the block or by `cleanup`, or after a kill by `sweep`."""
    sweep()
    return tempfile.TemporaryDirectory(prefix=f"nas-{_host()}.{os.getpid()}.{what}-")


def sweep() -> None:
    """Remove the folders of temporary files that killed processes left."""
    for left in _left_over(Path(tempfile.gettempdir()), f"nas-{_host()}."):
        shutil.rmtree(left, ignore_errors=True)


def _left_over(folder: Path, begin: str) -> list[Path]:
    """What a folder holds whose name begins so and goes on with a process of this machine that is dead."""
    with os.scandir(folder) as entries:
        named = {Path(entry.path): entry.name[len(begin) :] for entry in entries if entry.name.startswith(begin)}
    processes = {path: rest.partition(".")[0] for path, rest in named.items()}
    return [path for path, number in processes.items() if number.isdigit() and not _is_alive(int(number))]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        return True
    return True


@functools.lru_cache(maxsize=None)
def _host() -> str:
    return os.uname().nodename.replace("/", "-").replace(".", "-") or "host"


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], what: str | os.PathLike[str], *, signed: bool = True) -> Iterator[None]:
    """Keep other processes from what a lock file stands for, as long as the block lasts.

    The system frees the lock when its holder dies, however it dies; the file stays.

    Args:
        path: the lock file; it and its folder are made where they are missing.
        what: it stands for.
        signed: the file names its holder; not where its content is something else, such as a journal's.

    Raises:
        RunError: another process holds it, naming that one where it is known; the disk knows no locks; or the file
            cannot be written.
    """
    import filelock

    target = Path(path).resolve()
    held = filelock.FileLock(target, blocking=False, fallback_to_soft=False)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except filelock.Timeout as error:
        holder = _holder(target) if signed else "another process"
        raise RunError(
            f"{what} is in use by {holder}. Wait until it ends, or stop it; the same command then continues"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise unwritable(path, error) from error
        raise RunError(
            f"{path}: this disk knows no file locks ({error.strerror}), so two processes could write over each other "
            "here. Name a folder on a local disk, or have the network disk mounted with locks"
        ) from error
    try:
        if signed:
            with writing(path):
                target.write_text(f"{os.getpid()} {os.uname().nodename}\n", encoding="utf-8")
        yield
    finally:
        held.release()


def _holder(path: Path) -> str:
    try:
        process, _, host = path.read_text(encoding="utf-8").strip().partition(" ")
    except (OSError, UnicodeDecodeError):
        return "another process"
    return f"process {process} on {host}" if process.isdigit() and host else "another process"


def lock_of(file: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    """The lock of a file that processes write in turn, such as a table: `NAME.lock` beside it; see `lock`."""
    path = Path(file)
    return lock(path.with_name(f"{path.name}.lock"), path)


def cache_folder() -> Path:
    """The folder of everything that can be made again: `$NAS_CACHE`, or `millinas` in the user's cache folder.

    Where the user has none that is theirs and can be written (no home, or another user's), it is one of their own in
    the folder of temporary files.

    Raises:
        RunError: `$NAS_CACHE`, or that last folder, cannot be written or is another user's.
    """
    import platformdirs

    if chosen := os.environ.get("NAS_CACHE"):
        with writing(f"{chosen} (NAS_CACHE)"):
            Path(chosen).mkdir(parents=True, exist_ok=True)
        return Path(chosen)
    usual = Path("~/.cache/millinas")  # the name that remains where nobody knows a home
    with contextlib.suppress(RuntimeError):
        usual = platformdirs.user_cache_path("millinas", appauthor=False)
    if usual.is_absolute() and _is_ours(usual):
        return usual
    spare = Path(tempfile.gettempdir()) / f"millinas-{os.getuid()}"
    if not _is_ours(spare):
        raise RunError(
            f"no folder for caches: {usual} and {spare} cannot be written by this user or are another's; name a folder "
            "in the environment variable NAS_CACHE"
        )
    return spare


def _is_ours(folder: Path) -> bool:
    """Whether a folder is this user's and can be written; it is made where it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return False
    private = not found.st_mode & stat.S_IWOTH
    return found.st_uid == os.geteuid() and private and os.access(folder, os.W_OK | os.X_OK)
