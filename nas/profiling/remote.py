"""A bundle on another device, by the system's ssh and scp: copy what it lacks, run it there, fetch the samples.

Host keys are always checked, and nothing ever asks for a password: the host has to be known, and a key accepted.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nas.core.errors import InputError, MeasureError
from nas.core.files import whole
from nas.profiling.device import run
from nas.profiling.device.schedule import Progress, silent

CONNECTION_FAILED = 255  # exit code of ssh for its own failures
COPIED = 100  # files in one call of scp
SHOWN = 200  # characters of an answer that is not understood
SAFE = ("BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=20", "ServerAliveInterval=15")


@dataclass(frozen=True)
class Remote:
    """A device that ssh reaches.

    Attributes:
        host: `user@board`, or a name from the configuration of ssh.
        port: of its ssh server; None for the configured one.
        identity: file of the private key; None for the configured ones.
        python: its Python 3.8 or newer, with NumPy and the runtime.
        folder: bundles go into a folder in this one, relative to the home.
        config: file of ssh's configuration; None for the user's.

    Raises:
        InputError: for a host that ssh would take for an option.
    """

    host: str
    port: int | None = None
    identity: Path | None = None
    python: str = "python3"
    folder: str = "millinas"
    config: Path | None = None

    def __post_init__(self) -> None:
        if not self.host or self.host.startswith("-") or any(letter.isspace() for letter in self.host):
            raise InputError(f"host: expected USER@HOST, got {self.host!r}")

    def measure(self, bundle: Path, progress: Progress = silent) -> None:
        """Measure a bundle on the device, and write its samples into `bundle`; the same call continues.

        Raises:
            MeasureError: where the connection fails, with what to do, or where the bundle cannot be run there.
        """
        manifest = run.read_manifest(bundle)
        name = run.fingerprint(bundle / run.MANIFEST)
        assert name is not None  # it was just read
        there = str(PurePosixPath(self.folder) / f"bundle-{name[1][:16]}")
        self._copy(bundle, manifest, there, progress)
        self._run(there, progress)
        self._fetch(bundle, there)

    def _copy(self, bundle: Path, manifest: dict[str, Any], there: str, progress: Progress) -> None:
        """Copy the files that the device lacks, by size and hash."""
        progress(0, 1, None, f"{self.host}: connecting")
        self._ssh(f"mkdir -p {shlex.quote(there)}/graphs")
        self._scp([bundle / "run.py", bundle / run.MANIFEST, bundle / "nas"], there)
        lacking = self._damaged(manifest, there)
        sizes = {name: manifest["files"][name][0] for name in lacking}
        done, total = 0, sum(sizes.values())
        for parent in sorted({PurePosixPath(name).parent for name in lacking}):
            names = [name for name in lacking if PurePosixPath(name).parent == parent]
            for start in range(0, len(names), COPIED):
                progress(done, total, None, f"{self.host}: copying {len(lacking)} files")
                part = names[start : start + COPIED]
                self._scp([bundle / name for name in part], str(PurePosixPath(there) / parent))
                done += sum(sizes[name] for name in part)

    def _damaged(self, manifest: dict[str, Any], there: str) -> list[str]:
        """The files that are missing or damaged there."""
        said = self._ssh(self._python(there, "--check"))
        for line in said.splitlines():
            if (facts := _object(line)) is not None and "damaged" in facts:
                return [name for name in manifest["files"] if name in facts["damaged"]]
        raise MeasureError(
            f"{self.host}: run.py --check answered {said.strip()[-SHOWN:]!r}, not with a list of files; see what "
            f"this prints there: {self._python(there, '--check')}"
        )

    def _run(self, there: str, progress: Progress) -> None:
        """Run the bundle, and show how far it is."""
        command = [*self._command("ssh"), "--", self.host, self._python(there, "--json")]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    if not (facts := _object(line) or {}).keys() >= {"done", "total", "seconds_left", "text"}:
                        continue  # what a login shell prints
                    progress(facts["done"], facts["total"], facts["seconds_left"], f"{self.host}: {facts['text']}")
            except BaseException:
                process.terminate()
                raise
            code = process.wait()
            errors.seek(0)
            if code:
                raise self._error(code, errors.read())

    def _fetch(self, bundle: Path, there: str) -> None:
        for name in (run.SAMPLES, run.FAILURES):
            with whole(bundle / name) as fetched:
                self._call([*self._command("scp"), "-q", "--", f"{self.host}:{there}/{name}", str(fetched)])

    def _python(self, there: str, option: str) -> str:
        return f"{self.python} {shlex.quote(there)}/run.py {option}"

    def _ssh(self, command: str) -> str:
        return self._call([*self._command("ssh"), "--", self.host, command])

    def _scp(self, files: Sequence[Path], there: str) -> None:
        self._call([*self._command("scp"), "-q", "-r", "--", *map(str, files), f"{self.host}:{there}/"])

    def _command(self, program: str) -> list[str]:
        command = [program, *(f"-o{option}" for option in SAFE)]
        command += ["-F", str(self.config)] if self.config is not None else []
        command += ["-p" if program == "ssh" else "-P", str(self.port)] if self.port is not None else []
        return command + (["-i", str(self.identity), "-oIdentitiesOnly=yes"] if self.identity is not None else [])

    def _call(self, command: Sequence[str]) -> str:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise MeasureError(f"{command[0]} is not installed here; install the OpenSSH client") from error
        if done.returncode:
            raise self._error(done.returncode, done.stderr)
        return done.stdout

    def _error(self, code: int, said: str) -> MeasureError:
        """What to raise for a command that failed, by what it said."""
        last = next(reversed(said.strip().splitlines()), f"ended with exit code {code}")
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
            return MeasureError(
                f"{self.host}: its host key is not the one that is known, so this may be another machine. Where the "
                "device was set up anew, remove the old key: ssh-keygen -R HOST; then connect once with ssh"
            )
        if "Host key verification failed" in said:
            return MeasureError(
                f"{self.host}: its host key is not known; connect once with ssh and compare the fingerprint with the "
                "device's (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub there)"
            )
        if "Permission denied" in said:
            return MeasureError(
                f"{self.host}: {last}; it takes a key without a password: ssh-copy-id, or --identity FILE"
            )
        if code == CONNECTION_FAILED:
            return MeasureError(f"{self.host}: {last}; what was measured is on the device, the same command continues")
        return MeasureError(f"{self.host}: {last}")


def _object(line: str) -> dict[str, Any] | None:
    """A line that is a JSON object; None for any other."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
