"""Ctrl-C and kills, sent to real processes: what they say, their exit code, and what they leave behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nas.__main__ import CODE, STOPPED
from search_spaces import efficientformer as ef
from tests.small import fake_table

ROOT = Path(__file__).parents[2]
SLEEP = '{"sleep_us": 300}'  # each call of the fake runtime, so that a profile lasts


class Command:
    """A command of nas in a process group of its own, as a shell starts it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        environment = os.environ | {
            "NAS_FAKE": SLEEP,
            "NAS_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nas", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # a shell starts what is in its background deaf to Ctrl-C, and processes inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def wait_until(self, begun: Callable[[], bool]) -> None:
        while not begun():
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.01)

    def interrupt(self) -> None:
        """Ctrl-C, to the whole group as a terminal sends it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self) -> tuple[int, str]:
        said, _ = self.process.communicate()
        return self.process.returncode, said

    def imported(self, library: str) -> bool:
        """Whether the process has a library in its memory."""
        return library in Path(f"/proc/{self.process.pid}/maps").read_text()


def lines_of(folder: Path, pattern: str) -> int:
    """Lines of all files of this name."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))


def children_of(command: Command) -> list[str]:
    """Process numbers of those that the main thread of a command started."""
    return Path(f"/proc/{command.process.pid}/task/{command.process.pid}/children").read_text().split()


def profile(folder: Path) -> Command:
    arguments = ("efficientformer-32", "--runtime", "fake", "--table", "table.csv", "--networks", "5")
    command = Command(folder, "profile", *arguments)
    command.wait_until(lambda: lines_of(folder, "table.csv.*.samples.jsonl") > 1)
    return command


def start_search(folder: Path) -> Command:
    fake_table(ef.SMALL, networks=60, error=0.01).write(folder / "table.csv")
    arguments = ("--table", "table.csv", "--budget", "latency_ms<=1000", "--trials", "1000", "--device", "cpu")
    return Command(folder, "search", *arguments, "--workers", "2", "--epochs", "1", "--out", "run")


def search(folder: Path) -> Command:
    command = start_search(folder)
    command.wait_until(lambda: lines_of(folder / "run", "study.journal") > 20)
    return command


def train(folder: Path) -> Command:
    (folder / "arch.json").write_text(ef.SMALL.sample(random.Random(0)).to_json())
    arguments = ("--data", "digits", "--epochs", "1000", "--device", "cpu", "--threads", "1", "--out", "run")
    command = Command(folder, "train", "arch.json", *arguments)
    command.wait_until(lambda: lines_of(folder / "run", "training.csv") > 1)
    return command


def convert(folder: Path) -> Command:
    pytest.importorskip("onnxruntime")
    arguments = ("efficientformer-32", "--runtime", "onnxruntime", "--precision", "int8", "--table", "table.csv")
    command = Command(folder, "profile", *arguments)
    command.wait_until(lambda: any(command.temporary.rglob("*.onnx")))
    return command


def spaces(folder: Path) -> Command:
    command = Command(folder, "spaces")
    command.wait_until(lambda: command.imported("libtorch_cpu"))
    return command


@pytest.mark.parametrize("begin", [profile, convert, search, train, spaces])
def test_ctrl_c_says_that_the_same_command_continues(tmp_path, begin):
    command = begin(tmp_path)
    command.interrupt()
    code, said = command.ended()
    assert (code, said.splitlines()[-1:]) == (CODE, [STOPPED])
    assert "Traceback" not in said
    assert [path for path in command.temporary.iterdir() if path.name.startswith("nas-")] == []


@pytest.mark.parametrize("begin", [search, train])
def test_more_of_it_end_the_command_without_a_traceback(tmp_path, begin):
    command = begin(tmp_path)
    while command.process.poll() is None:
        command.interrupt()
        time.sleep(0.001)
    code, said = command.ended()
    assert code == CODE
    assert "Traceback" not in said
    assert said.splitlines()[-1] == STOPPED


#: what a command is busy with as it is interrupted: dataclasses and named tuples execute text when they are defined,
#: where Python then ends itself by the signal; libraries in C++ abort where something is raised as they are imported
BUSY = {
    "text": "lambda: exec('import os, signal; os.kill(os.getpid(), signal.SIGINT)\\nwhile True: pass')",
    "import": "lambda: __import__('brittle')",
}
BRITTLE = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        pass
except BaseException:
    os.abort()
"""


@pytest.mark.parametrize("busy", BUSY)
def test_the_exit_code_is_the_same_whatever_was_going_on(tmp_path, busy):
    (tmp_path / "brittle.py").write_text(BRITTLE)
    (tmp_path / "interrupted.py").write_text(
        f"import nas.commands\nfrom nas.__main__ import main\nnas.commands.main = {BUSY[busy]}\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (CODE, f"{STOPPED}\n")


def test_ctrl_c_while_workers_start_is_none_of_their_business(tmp_path):
    command = start_search(tmp_path)
    command.wait_until(lambda: len(children_of(command)) > 1)  # Python's own tracker of resources, and a worker
    command.interrupt()
    code, said = command.ended()
    assert code == CODE
    assert "Traceback" not in said


def test_a_killed_profile_leaves_nothing_in_the_temporary_folder(tmp_path):
    command = profile(tmp_path)
    children = children_of(command)
    assert children
    command.process.kill()
    command.ended()
    while any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.01)
    assert [path for path in command.temporary.iterdir() if path.name.startswith("nas-")] == []
