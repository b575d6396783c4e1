"""A space of few rows in a file outside the package, its bundle, and a stand-in for ONNX Runtime that takes no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import search_spaces
from nas.profiling.bundle import make

SOURCE = """
from nas.core.ops import one_of
from nas.core.space import Repeat, Space
from search_spaces.efficientformer import HEAD, MB4D, Embedding, Stem

SPACE = Space(
    name="pico",
    input_shape=(3, 32, 32),
    classes=10,
    stages=(
        Repeat(Stem(convs=1), MB4D(2), width=16, depth=one_of(1, 2)),
        Repeat(Embedding(), MB4D(2), width=48, depth=one_of(1, 2)),
    ),
    head=HEAD,
)
"""
#: what a device has not; the runner must not ask for it
ABSENT = ("nas", "search_spaces", "torch", "onnx", "scipy", "pandas")
#: an inference takes as long as the file's name says; `CRASH` names a file that takes the process down
RUNTIME = """
import os, time

class SessionOptions: ...
class ExecutionMode: ORT_SEQUENTIAL = 0
class GraphOptimizationLevel: ORT_ENABLE_ALL = 0

class InferenceSession:
    def __init__(self, path, options, providers):
        self.name = os.path.basename(path)
        if self.name == os.environ.get("REFUSED"):
            raise RuntimeError("not supported")
    def get_inputs(self):
        return []
    def run(self, names, feeds):
        if self.name == os.environ.get("CRASH"):
            os._exit(77)
        until = time.perf_counter() + 2e-5 * (1 + int(self.name[:4]))
        while time.perf_counter() < until:
            pass
"""
SETTINGS: dict[str, Any] = {"passes": 2, "rounds": 3, "networks": 5}
NETWORKS = 4  # all that the space has


def make_pico(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Write the space's file and its bundle."""
    spaces = folder / "spaces"
    spaces.mkdir()
    (spaces / "pico.py").write_text(SOURCE)
    patch.setenv("NAS_SPACES", str(spaces))
    patch.setenv("NAS_CACHE", str(folder / "cache"))
    return make(search_spaces.load("pico"), folder=folder / "bundle", **SETTINGS)


def device(folder: Path, runtime: bool = True) -> dict[str, str]:
    """The environment of a device: it lacks what only this machine has; with the stand-in for the runtime."""
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    for name in ABSENT:
        (stubs / f"{name}.py").write_text(f"raise ImportError('no {name} on the device')\n")
    if runtime:
        (stubs / "onnxruntime.py").write_text(RUNTIME)
    return os.environ | {"PYTHONPATH": str(stubs)}


def run(bundle: Path, environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run a bundle to its end."""
    command = [sys.executable, "run.py", *options]
    return subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True)


def lines_of(bundle: Path) -> list[dict[str, Any]]:
    """What stands in its journal."""
    return [json.loads(line) for line in (bundle / "samples.jsonl").read_text().splitlines()]
