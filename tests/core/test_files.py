"""Files written whole, locks, the folder of caches: what other processes, full disks and kills see."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from nas.core import files
from nas.core.errors import RunError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 1,000 bytes; the system says so as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_is_written_whole_with_its_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    files.write_text(path, "Kendall's τ\n")
    assert path.read_bytes() == b"Kendall's \xcf\x84\n"
    files.write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["file.txt"]


def test_what_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.whole(path) as temporary:
        temporary.write_text(f"half {1 / 0}" if temporary.write_text("half") else "")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_disk_that_takes_no_more_is_named_and_the_old_file_stays(tmp_path, small_files):
    path = tmp_path / "file"
    files.write_text(path, "old")
    with pytest.raises(RunError, match=r"file: cannot be written \(File too large\); make room") as caught:
        files.write_bytes(path, bytes(2000))
    assert "the same command continues" in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_file_and_its_name_are_on_disk_before_the_call_returns(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace

    def note(number):
        done.append(Path(os.readlink(f"/proc/self/fd/{number}")).name.split(".")[-1])
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "replace", lambda path, target: done.append("renamed") or replace(path, target))
    files.write_text(tmp_path / "file", "text")
    assert done == ["tmp", "renamed", tmp_path.name]


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    path = tmp_path / "file"
    code = (
        "import sys, time; from nas.core.files import whole\n"
        "with whole(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); print('begun', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
        files.write_text(path, "mine")
        assert len(names(tmp_path)) == 2  # that of a process that lives is left
        writer.kill()
        writer.wait()
    files.write_text(path, "mine again")
    assert names(tmp_path) == ["file"]


HOLD = (
    "import sys, time; from nas.core.files import lock\n"
    "with lock(sys.argv[1], 'the table'):\n    print('held', flush=True); time.sleep(600)"
)


def test_a_lock_names_its_holder_and_ends_with_it_however_it_ends(tmp_path):
    path = tmp_path / "folder" / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        said = rf"the table is in use by process {holder.pid} on {os.uname().nodename}\. Wait until it ends"
        with pytest.raises(RunError, match=said), files.lock(path, "the table"):
            pass
        holder.kill()
        holder.wait()
    with files.lock(path, "the table"):
        assert path.read_text().split()[0] == str(os.getpid())


def test_a_journal_that_is_its_own_lock_keeps_its_content(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text("{}\n")
    with files.lock(path, path, signed=False), pytest.raises(RunError, match="in use by another process"):
        files.lock(path, path, signed=False).__enter__()
    assert path.read_text() == "{}\n"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_called_that_and_not_in_use(tmp_path, monkeypatch, number):
    def refuse(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "_acquire", refuse)
    with pytest.raises(RunError, match=r"lock: this disk knows no file locks \(.*local disk"):
        files.lock(tmp_path / "lock", tmp_path).__enter__()


def test_a_lock_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/lock: cannot be written \(.*\); make room, see to its permissions"):
        files.lock(tmp_path / "file" / "lock", tmp_path).__enter__()


def test_caches_are_in_the_users_folder_or_the_one_named(tmp_path, monkeypatch):
    monkeypatch.delenv("NAS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "millinas"
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "here"))
    assert files.cache_folder() == tmp_path / "here"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"file \(NAS_CACHE\): cannot be written"):
        files.cache_folder()


def test_without_a_home_or_with_anothers_caches_are_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("NAS_CACHE", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spare = tmp_path / f"millinas-{os.getuid()}"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    owner = os.geteuid()
    with monkeypatch.context() as patch:  # neither the environment nor the system knows a home
        patch.delenv("HOME", raising=False)
        patch.delenv("XDG_CACHE_HOME")
        patch.setattr("pwd.getpwuid", lambda number: {}[number])
        assert files.cache_folder() == spare
        assert (spare.stat().st_mode & 0o777) == 0o700
    with monkeypatch.context() as patch:
        assert files.cache_folder() == tmp_path / "home" / "millinas"
        patch.setattr(os, "geteuid", lambda: owner + 1)
        with pytest.raises(RunError, match=r"no folder for caches: .*NAS_CACHE"):
            files.cache_folder()  # both are another's now
    (tmp_path / "home" / "millinas").chmod(0o777)  # anyone could put files there
    assert files.cache_folder() == spare
