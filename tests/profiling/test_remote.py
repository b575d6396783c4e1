"""A bundle over ssh, against a real OpenSSH server on loopback with keys of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nas.core.errors import InputError, MeasureError
from nas.profiling.bundle import collect
from nas.profiling.remote import Remote
from tests.profiling.pico import NETWORKS, device, lines_of

SSHD = Path("/usr/sbin/sshd")
needs_sshd = pytest.mark.skipif(not SSHD.exists() or not shutil.which("ssh"), reason="no OpenSSH server or client here")
SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Server:
    """A running server: its port, and the folder with its keys and the client's configuration."""

    port: int
    folder: Path

    def know(self, key: str) -> None:
        """Write the key that the client shall know the server by; "" for none."""
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n" if key else "")


def make_key(path: Path) -> str:
    """A new pair of keys; the public one."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    make_key(folder / "host")
    make_key(folder / "user")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (folder / "sshd_config").write_text(SERVER.format(port=port, folder=folder))
    known = f"UserKnownHostsFile {folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
    (folder / "ssh_config").write_text(known)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # the server refuses to start without
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
        try:
            while b"listening" not in (folder / "log").read_bytes():
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.02)
            yield Server(port, folder)
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def server(running: Server) -> Server:
    """The server, known to the client."""
    running.know(" ".join((running.folder / "host.pub").read_text().split()[:2]))
    return running


@pytest.fixture
def board(server: Server, tmp_path: Path) -> Remote:
    """The server as a device with the stand-in for ONNX Runtime."""
    python = f"env PYTHONPATH={device(tmp_path)['PYTHONPATH']} {sys.executable}"
    return Remote(
        "127.0.0.1", server.port, server.folder / "user", python, str(tmp_path / "there"), server.folder / "ssh_config"
    )


@pytest.fixture
def bundle(pico: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pico, tmp_path / "bundle"))


@needs_sshd
def test_a_bundle_is_copied_run_and_fetched(board, bundle, tmp_path):
    seen: list[tuple[float, float, float | None, str]] = []
    board.measure(bundle, lambda *values: seen.append(values))
    texts = [text for *_, text in seen]
    assert texts[0] == "127.0.0.1: connecting"
    assert any("copying" in text for text in texts)
    assert any("pass 2 of 2: round 3" in text for text in texts)
    assert seen[-1][0] == pytest.approx(seen[-1][1])
    table = collect(bundle, output=tmp_path / "table.csv", accept_noise=True)
    assert (table.header.spaces, len(table.networks)) == (("pico",), NETWORKS)
    (there,) = (tmp_path / "there").iterdir()
    assert (there / "samples.jsonl").read_bytes() == (bundle / "samples.jsonl").read_bytes()


@needs_sshd
def test_after_a_broken_connection_the_same_call_copies_only_what_lacks_and_loses_no_round(board, bundle, tmp_path):
    def pull_the_plug(done: float, total: float, left: float | None, text: str) -> None:
        if "round 2" in text:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        board.measure(bundle, pull_the_plug)
    (there,) = (tmp_path / "there").iterdir()
    with (there / "samples.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the run ends when it next speaks
    before = lines_of(there)
    assert len(before) > 1
    (there / "graphs" / "0002.onnx").write_bytes(b"torn")
    times = {path.name: path.stat().st_mtime_ns for path in there.glob("graphs/*")}
    board.measure(bundle)
    changed = {path.name for path in there.glob("graphs/*") if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"0002.onnx"}
    assert lines_of(there)[: len(before)] == before
    assert len(collect(bundle, output=tmp_path / "table.csv", accept_noise=True).networks) == NETWORKS


@needs_sshd
def test_what_a_login_shell_prints_is_skipped(board, bundle, tmp_path):
    replace(board, python=f"echo Welcome; echo 5; {board.python}").measure(bundle)
    assert len(collect(bundle, output=tmp_path / "table.csv", accept_noise=True).networks) == NETWORKS
    with pytest.raises(MeasureError, match=r"run\.py --check answered 'Welcome.*', not with a list of files"):
        replace(board, python="echo Welcome;: ").measure(bundle)


@needs_sshd
def test_an_unknown_or_changed_host_key_is_refused(board, server, bundle, tmp_path):
    server.know("")
    with pytest.raises(MeasureError, match=r"127\.0\.0\.1: its host key is not known; connect once with ssh"):
        board.measure(bundle)
    server.know(make_key(tmp_path / "other"))
    with pytest.raises(MeasureError, match="its host key is not the one that is known, so this may be another machine"):
        board.measure(bundle)
    assert not (tmp_path / "there").exists()


@needs_sshd
def test_a_configuration_that_trusts_every_host_is_overruled(board, server, bundle, tmp_path):
    server.know("")
    config = tmp_path / "careless"
    config.write_text((server.folder / "ssh_config").read_text() + "StrictHostKeyChecking no\n")
    with pytest.raises(MeasureError, match="host key is not known"):
        replace(board, config=config).measure(bundle)


@needs_sshd
def test_what_goes_wrong_is_said_with_what_to_do(board, bundle, tmp_path):
    make_key(tmp_path / "stranger")
    with pytest.raises(MeasureError, match=r"Permission denied.* it takes a key without a password"):
        replace(board, identity=tmp_path / "stranger").measure(bundle)
    with pytest.raises(MeasureError, match="Connection refused; what was measured is on the device, the same command"):
        replace(board, port=1).measure(bundle)
    with pytest.raises(MeasureError, match="no-such-python"):
        replace(board, python="no-such-python").measure(bundle)
    lacking = f"env PYTHONPATH={tmp_path} {sys.executable} -S"
    with pytest.raises(MeasureError, match="No module named 'numpy'"):
        replace(board, python=lacking).measure(bundle)


def test_a_host_is_never_an_option():
    for host in ("-oProxyCommand=touch /tmp/x", "", "a b"):
        with pytest.raises(InputError, match="expected USER@HOST"):
            Remote(host)
