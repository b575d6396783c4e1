"""The journal of a profile: raw samples beside the table, a line a round, so that a kill at any moment loses one round.

The first line names the device, the runtime and its settings; others hold samples, some the networks to measure or the
peak memory of one, some say which of the samples before them do not count. A torn last line, what a kill leaves, is cut
when the journal is opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import typing
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from nas.core.errors import InputError, RunError
from nas.core.files import NO_LOCKS, writing

FORMAT = 1


@dataclass(frozen=True)
class Sample:
    """What one round says of one probe.

    Attributes:
        sentinel_us: time of the reference block, the slower of before and after.
        calls_us: times of consecutive calls.
    """

    sentinel_us: float
    calls_us: tuple[float, ...]


Samples = typing.Mapping[int, typing.Mapping[str, typing.Sequence[Sample]]]  # by pass and probe key


class Log:
    """Samples, kept in memory.

    Attributes:
        samples: by pass and probe key.
        peaks: peak memory of networks in bytes, by probe key.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.samples: dict[int, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))

    def add(self, number: int, samples: Mapping[str, Sample]) -> None:
        """Keep the samples of one round of pass `number`."""
        for key, sample in samples.items():
            self.samples[number][key].append(sample)

    def add_peak(self, key: str, peak_bytes: int) -> None:
        """Keep the peak memory of a network."""
        self.peaks[key] = peak_bytes

    def taken(self, number: int, key: str) -> Sequence[Sample]:
        """The samples of a probe in pass `number`."""
        return self.samples[number][key]

    @property
    def has_samples(self) -> bool:
        """Whether there is any sample."""
        return any(taken for by_key in self.samples.values() for taken in by_key.values())

    def forget(self, sentinel_us: float) -> None:
        """Drop the samples so far whose sentinel took longer than this."""
        for by_key in self.samples.values():
            for key, taken in by_key.items():
                by_key[key] = [sample for sample in taken if sample.sentinel_us <= sentinel_us]


class Journal(Log):
    """A log that is also a file; only one process at a time has it open.

    Args:
        path: of the file; it is created where it does not exist.

    Raises:
        RunError: where another process has it open, or it cannot be written.
        InputError: where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.header: dict[str, Any] | None = None
        self.networks: tuple[str, ...] = ()  # archs as JSON
        with contextlib.ExitStack() as opened:
            with writing(path):  # what a full disk refuses is not tried again when it closes
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = opened.enter_context(path.open("ab+", buffering=0))
            self._lock()
            self._read()
            self._opened = opened.pop_all()

    def _lock(self) -> None:
        """Be the only process that has the file open; the system frees the lock when this one ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise RunError(f"{self.path}: its disk knows no locks; measure on another disk") from error
            raise RunError(f"{self.path}: another process is measuring into it; wait for it or stop it") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.close()

    def begin(self, header: Mapping[str, Any]) -> None:
        """Write the first line."""
        self.header = dict(header)
        self._append({"format": FORMAT, "header": self.header})

    def choose(self, networks: Sequence[str]) -> None:
        """Write down which networks are measured, so that a later run measures the same."""
        self.networks = tuple(networks)
        self._append({"networks": self.networks})

    def add(self, number: int, samples: Mapping[str, Sample]) -> None:
        """Append the samples of one round of pass `number`; they are on disk when this returns."""
        data = {key: [sample.sentinel_us, *sample.calls_us] for key, sample in samples.items()}
        self._append({"pass": number, "samples": data})
        super().add(number, samples)

    def add_peak(self, key: str, peak_bytes: int) -> None:
        """Append the peak memory of a network."""
        self._append({"peak_bytes": {key: peak_bytes}})
        super().add_peak(key, peak_bytes)

    def forget(self, sentinel_us: float) -> None:
        """Drop the samples so far whose sentinel took longer than this, from now on; they stay in the file."""
        self._append({"forget_above_us": sentinel_us})
        super().forget(sentinel_us)

    def _append(self, line: Mapping[str, Any]) -> None:
        text = json.dumps(line).encode() + b"\n"
        with writing(self.path):
            while text:
                text = text[self._file.write(text) :]
            os.fsync(self._file.fileno())

    def _read(self) -> None:
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            self._file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._take_line(json.loads(line), number)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    f"{self.path}:{number}: cannot be read as a journal of samples ({error}); remove the file to "
                    "measure again"
                ) from error

    def _take_line(self, line: dict[str, Any], number: int) -> None:
        if number == 1:
            if line["format"] != FORMAT:
                raise ValueError(f"format {line['format']}, this version of nas reads {FORMAT}")
            self.header = dict(line["header"])
        elif "networks" in line:
            self.networks = tuple(map(str, line["networks"]))
        elif "forget_above_us" in line:
            super().forget(float(line["forget_above_us"]))
        elif "peak_bytes" in line:
            self.peaks.update({str(key): int(count) for key, count in line["peak_bytes"].items()})
        else:
            taken = line["samples"].items()
            super().add(
                int(line["pass"]),
                {key: Sample(float(sentinel), tuple(map(float, calls))) for key, (sentinel, *calls) in taken},
            )
