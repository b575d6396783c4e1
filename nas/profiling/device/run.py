"""Times the graphs of a bundle on the device that it was copied to. Needs Python 3.8, NumPy and the runtime alone.

    python run.py            measure what is missing; the same command continues after any interruption
    python run.py --check    only say which files of the bundle are missing or damaged

`nas profile SPACE --bundle DIR` puts this beside the graphs with all that it needs, `nas profile --collect DIR` reads
what it writes: samples.jsonl, each round on disk before the next begins, and failures.json.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

from nas.core.errors import InputError, MeasureError, NasError
from nas.core.files import write_text
from nas.profiling.device.journal import Journal
from nas.profiling.device.loaders import version_of
from nas.profiling.device.machine import machine
from nas.profiling.device.process import Worker
from nas.profiling.device.schedule import Clock, Graphs, Item, Schedule
from nas.profiling.device.timing import Graph, Settings

FORMAT = 3  # of the bundle
MANIFEST, SAMPLES, FAILURES = "manifest.json", "samples.jsonl", "failures.json"
MEMORY_SHARE = 0.25  # of the device's memory for the weights of the graphs that are loaded together
#: header fields in which all samples of one folder agree
SAME = ("device", "cpu", "runtime_version")


def main(folder: Path) -> None:
    """The command line in a bundle's folder; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only list missing or damaged files, as JSON")
    parser.add_argument("--json", action="store_true", help="progress as JSON lines on standard output")
    options = parser.parse_args()
    try:
        manifest = read_manifest(folder)
        if options.check:
            print(json.dumps({"damaged": damaged(folder, manifest)}))
        else:
            measure(folder, manifest, _say_json if options.json else _say)
    except NasError as error:
        sys.exit(f"run.py: {error}")
    except KeyboardInterrupt:
        print("run.py: stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the progress is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What to measure, and how.

    Raises:
        InputError: where it cannot be read, or is of another format.
    """
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / MANIFEST}: cannot be read ({error}); copy the bundle again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{folder / MANIFEST}: has format {found!r:.80}, this version reads {FORMAT}; make the bundle anew, run it"
        )
    return dict(manifest)


def damaged(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files that are not there as the manifest names them, by size and SHA-256."""
    return [name for name, known in manifest["files"].items() if fingerprint(folder / name) != known]


def fingerprint(path: Path) -> list[Any] | None:
    """Size and SHA-256 of a file, None where there is none."""
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for part in iter(lambda: file.read(2**20), b""):
                digest.update(part)
        return [path.stat().st_size, digest.hexdigest()]
    except OSError:
        return None


@dataclass(frozen=True, eq=False)  # each is itself, so it can be a key
class BundledGraph:
    """A graph of a bundle: see `nas.profiling.device.timing.Graph`, and what loads it."""

    key: str
    whole: bool
    macs: int
    weight_bytes: int
    file: str
    shapes: Sequence[Sequence[int]]


class BundleSchedule(Schedule):
    """The schedule of a bundle."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any], journal: Journal) -> None:
        settings = Settings(**{field.name: manifest["settings"][field.name] for field in fields(Settings)})
        batch_bytes = int(min(settings.batch_bytes, MEMORY_SHARE * _memory()))
        self.folder, self.manifest, self.log = folder, manifest, journal
        self.settings = replace(settings, batch_bytes=batch_bytes)
        self.failures, self.deaths = dict(manifest["unconverted"]), {}
        self.graphs: Graphs = {key: BundledGraph(key=key, **data) for key, data in manifest["graphs"].items()}

    def items(self) -> list[Item]:
        """Graphs that are timed together, where all of them could be converted."""
        items = self.manifest["items"]
        known = [item for item in items if all(key in self.graphs for key, _ in item)]
        return [tuple((self.graphs[key], weight) for key, weight in item) for item in known]

    def worker(self, number: int, graphs: Sequence[Graph]) -> Worker:
        header, settings = self.manifest["header"], self.settings
        job = {
            "runtime": header["runtime"],
            "threads": header["threads"],
            "precision": header["precision"],
            "graphs": {graph.key: self._data(graph) for graph in graphs},
            "sentinel": self._data(BundledGraph(key="sentinel", **self.manifest["sentinel"])),
            "seed": self.manifest["settings"]["seed"] + number,
            "sample_us": settings.sample_us,
            "most": settings.most,
        }
        return Worker("nas.profiling.device.worker", header["threads"], settings, graphs, job)

    def _data(self, graph: Graph) -> dict[str, Any]:
        assert isinstance(graph, BundledGraph)
        file = str(self.folder / graph.file)
        return {"file": file, "shapes": graph.shapes, "least": self.settings.least_of(graph)}


def _memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return 2.0**30


def measure(folder: Path, manifest: Mapping[str, Any], say: Any) -> None:
    """Measure all that is missing, then say how to go on.

    Raises:
        InputError: where files are missing, or the samples are of another device.
        MeasureError: where the runtime is not installed.
        RunError: where another process measures here, or a file cannot be written.
    """
    names = [name for name in manifest["files"] if not (folder / name).is_file()]
    if names:
        raise MeasureError(f"{len(names)} files of the bundle are missing, first {names[0]}; copy it again")
    header = dict(manifest["header"])
    cpu, cores, name = machine()
    version = version_of(header["runtime"])
    header.update(device=name, cpu=cpu, cores=cores, runtime_version=version, date=datetime.date.today().isoformat())
    with Journal(folder / SAMPLES) as journal:
        if journal.header is None:
            journal.begin(header)
        for field in SAME:
            if (journal.header or header)[field] != header[field]:
                raise InputError(
                    f"{SAMPLES} holds samples with {field} {(journal.header or header)[field]!r}, this device has "
                    f"{header[field]!r}; they do not go into one table. Use a fresh copy of the bundle"
                )
        schedule = BundleSchedule(folder, manifest, journal)
        items = schedule.items()
        clock = Clock(schedule.seconds(items), say)
        clock.say(f"{name}: starting")
        schedule.run(items, clock)
    write_text(folder / FAILURES, json.dumps(schedule.failures, indent=1))
    say(clock.total, clock.total, 0.0, "done")
    for key, reason in schedule.failures.items():
        print(f"{key}: {reason}", file=sys.stderr)
    print(
        f"\nDone, {len(schedule.failures)} graphs failed. Copy this folder, or {SAMPLES} and {FAILURES} of it, back, "
        "then: nas profile --collect DIR",
        file=sys.stderr,
    )


def _say_json(done: float, total: float, seconds_left: float | None, text: str) -> None:
    print(json.dumps({"done": done, "total": total, "seconds_left": seconds_left, "text": text}), flush=True)


def _say(done: float, total: float, seconds_left: float | None, text: str) -> None:
    share = 100 * done / total if total else 100.0
    line = f"{share:5.1f} %  {text}, {(seconds_left or 0.0) / 60:.1f} min left"
    print(line.ljust(70), end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
