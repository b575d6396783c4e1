"""A runtime that runs nothing: fixed times made up from multiply-adds and parameters, for tests of the whole pipeline.

`NAS_FAKE`, a JSON object in the environment, makes it behave badly: `noise` (relative, default 0.002), `sleep_us`
(really sleep at each call), `fail` (raise when preparing rows whose text contains this), `crash` (end the process while
running them), `hang` (never return from them), `hung` (a file, which then gets the number of the process), `once` (a
file: do either only where it is lacking, and make it), `slow` ([first, last]: calls of the process in between take 1.4
times as long), `version`.
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nas.core.ops import Row, Shape
from nas.core.tracing import macs_of_unit, params_of_unit, trace
from nas.profiling.backends import Backend, Session

CALL_US = 6.0  # what one inference costs outside its blocks
SLOW = 1.4


def row_us(row: Row) -> float:
    """The time of a row inside a network, in microseconds."""
    return 2.0 + macs_of_unit(row) / 2e4 + params_of_unit(row) / 1e4


class FakeSession(Session):
    """Says how long a call took, without running anything."""

    def __init__(self, backend: Fake, rows: Sequence[Row]) -> None:
        self.backend = backend
        self.us = CALL_US + sum(map(row_us, rows))
        self.text = " ".join(map(str, rows))
        self.noise = random.Random(self.text)

    def run(self) -> None:
        if self._misbehaves("crash"):
            os._exit(77)
        if self._misbehaves("hang"):
            if hung := self.backend.behaviour.get("hung"):
                Path(hung).write_text(str(os.getpid()), encoding="ascii")
            signal.pause()
        time.sleep(self.backend.behaviour.get("sleep_us", 0) / 1e6)

    def _misbehaves(self, how: str) -> bool:
        part, once = self.backend.behaviour.get(how), self.backend.behaviour.get("once")
        if not part or part not in self.text or (once and Path(once).exists()):
            return False
        if once:
            Path(once).touch()
        return True

    def timed_run(self) -> float:
        self.run()
        self.backend.calls += 1
        first, last = self.backend.behaviour.get("slow", (0, 0))
        factor = SLOW if first <= self.backend.calls < last else 1.0
        noise = 1.0 + abs(self.noise.gauss(0.0, self.backend.behaviour.get("noise", 0.002)))
        return self.us * factor * noise / 1e6


class Fake(Backend):
    """The made-up runtime."""

    name = "fake"
    distribution = "torch"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.behaviour: dict[str, Any] = json.loads(os.environ.get("NAS_FAKE", "{}"))
        self.calls = 0

    @classmethod
    def version(cls) -> str:
        return str(json.loads(os.environ.get("NAS_FAKE", "{}")).get("version", "1"))

    def prepare(self, module: nn.Module, shapes: Sequence[Shape]) -> Session:
        rows = [call.row for call in trace(copy.deepcopy(module).to("meta"), *shapes)]
        session = FakeSession(self, rows)
        fail = self.behaviour.get("fail")
        if fail and fail in session.text:
            raise RuntimeError(f"fake failure at {fail}")
        return session


BACKEND = Fake
