"""Bundles: a profile in a folder, for a device that has Python, NumPy and a runtime but neither PyTorch nor `nas`.

`make` converts every graph and puts `nas.profiling.device` beside them; run.py there writes samples, of which `collect`
makes the table that a profile on the device would have made. Large weights are no part of a graph's file: they are
random anyway, so all graphs read them from a few files of random numbers, one for each power of two that standard
deviations are near to. The weights of one graph follow each other there, so copies of a block stay apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nas
from nas.core.arch import Arch
from nas.core.errors import InputError, MeasureError, NasError, suggest
from nas.core.files import lock_of, write_text, writing
from nas.core.ops import Row, Shape, parse_unit
from nas.core.space import Space
from nas.core.tracing import macs_of_unit
from nas.profiling.backends import FileBackend, load_backend, runtimes
from nas.profiling.bench import Bench, Progress, silent
from nas.profiling.device import run
from nas.profiling.device.journal import Log
from nas.profiling.device.timing import MOST_NOISE, Settings
from nas.profiling.job import DEFAULT, Job
from nas.profiling.probes import Probe
from nas.profiling.process import RuntimeConfig
from nas.profiling.profiler import table_name
from nas.profiling.returned import read_failures, read_samples
from nas.profiling.selection import varied
from nas.profiling.sentinel import sentinel
from nas.profiling.shared_weights import SharedWeights
from nas.tables.table import Header, Table, scope_of, space_of

GRAPHS = "graphs"
CONVERTED = 32  # graphs that one request converts
#: of the package, what a bundle carries; with run.py, which begins there
CODE = (
    *("core/__init__.py", "core/errors.py", "core/files.py", "profiling/__init__.py", "profiling/device/**/*.py"),
    "profiling/backends/__init__.py",
)
RUN = "from pathlib import Path\n\nfrom nas.profiling.device.run import main\n\nmain(Path(__file__).resolve().parent)\n"


def make(
    space: Space,
    *,
    folder: Path,
    runtime: str = "onnxruntime",
    threads: int = 1,
    level: str = "block",
    precision: str = "fp32",
    passes: int = 2,
    rounds: int = 8,
    networks: int = DEFAULT.networks,
    patience_seconds: float = DEFAULT.patience_seconds,
    seed: int = 0,
    rows: Iterable[Row] | None = None,
    progress: Progress = silent,
) -> Path:
    """Write a bundle; where `folder` holds it already, only return it. See `nas.profiling.profiler.profile`.

    Networks are chosen by multiply-adds, since no row is measured yet.

    Returns:
        The folder; copied to a device, `python run.py` there measures.

    Raises:
        InputError: for a runtime that cannot be bundled, a space that cannot be loaded by its name, or a folder that
            holds something else.
        MeasureError: where the runtime is not installed, or the reference block cannot be converted.
        RunError: where the folder cannot be written, such as on a full disk.
    """
    if not suffix_of(runtime):
        known = [name for name in runtimes() if suffix_of(name)]
        raise InputError(f"bundles: {suggest('runtime', runtime, known)}")
    if space_of(scope_of(space)) != space:
        raise InputError(
            f"space {space.name!r} is not the one that is known by this name; put its file into a folder of NAS_PLUGINS"
        )
    only = None if rows is None else tuple(rows)
    job = _Bundled(
        space,
        folder / "table.csv",
        RuntimeConfig(runtime, threads, precision),
        level,
        Settings(rounds, passes, networks, patience_seconds=patience_seconds),
        seed,
        only,
    )
    plan = _plan(job)
    if (folder / run.MANIFEST).exists():
        _require_same(folder, plan)
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files and no bundle; name a new folder")
    whole = folder.absolute()
    begun = whole.with_name(f"{whole.name}.begun")  # what an interrupted call leaves is made anew
    shutil.rmtree(begun, ignore_errors=True)
    graphs, failures = _write_graphs(job, begun / GRAPHS, progress)
    with writing(whole):
        _write_code(begun, runtime)
    names = sorted(path.relative_to(begun).as_posix() for path in begun.rglob("*") if path.is_file())
    manifest = plan | {
        "header": asdict(_header(job)),
        "sentinel": graphs.pop(sentinel().key),
        "graphs": graphs,
        "unconverted": failures,
        "files": {name: run.fingerprint(begun / name) for name in names},
    }
    write_text(begun / run.MANIFEST, json.dumps(manifest, indent=1))
    with writing(whole):
        begun.replace(whole)
    return folder


def suffix_of(runtime: str) -> str:
    """The ending of a runtime's files in a bundle; "" where there is no bundle for it."""
    backend = load_backend(runtime)
    return backend.suffix if issubclass(backend, FileBackend) else ""


def _write_code(folder: Path, runtime: str) -> None:
    """Write run.py and the part of this package that it needs, with the runtime's own file where that is outside."""
    package = Path(nas.__file__).parent
    for path in [found for pattern in CODE for found in package.glob(pattern)]:
        target = folder / "nas" / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    own = folder / "nas" / "profiling" / "device" / "loaders" / f"{runtime}.py"
    if not own.is_file():
        source = sys.modules[load_backend(runtime).__module__].__file__
        assert source is not None, "a backend comes from a file"
        shutil.copyfile(source, own)
    (folder / "nas" / "__init__.py").write_text('"""The part of millinas that a bundle needs."""\n', encoding="utf-8")
    (folder / "run.py").write_text(f'"""python run.py: see nas/profiling/device/run.py."""\n\n{RUN}', encoding="utf-8")


def _plan(job: Job) -> dict[str, Any]:
    """The part of a manifest that follows from what was asked for."""
    rows = None if job.only is None else [_row_data(row) for row in job.only]
    archs = _networks(job)
    settings = asdict(job.settings) | {"seed": job.seed}
    asked = {"space": scope_of(job.space), "rows": rows, "level": job.level} | asdict(job.config)
    networks = [arch.to_json() for arch in archs]
    items = [[(probe.key, weight) for probe, weight in item] for item in job.items(archs)]
    plan = {"format": run.FORMAT, "asked": asked, "settings": settings, "networks": networks, "items": items}
    data: dict[str, Any] = json.loads(json.dumps(plan))
    return data


def _networks(job: Job) -> tuple[Arch, ...]:
    if not job.lacks_networks:
        return ()
    return varied(job.space, job.lacks_networks, random.Random(job.seed), macs_of_unit)


def _header(job: Job) -> Header:
    """That of the table, but for the device, which run.py fills in."""
    header = job.header("default")
    return dataclasses.replace(header, device="", cpu="", cores=0, protocol=f"{header.protocol}, in a bundle")


def _require_same(folder: Path, plan: Mapping[str, Any]) -> None:
    found = _read_manifest(folder)
    for name in ("asked", "settings"):
        for key, value in plan[name].items():
            if found[name].get(key) != value:
                raise InputError(
                    f"{folder}: holds a bundle with {key} {found[name].get(key)!r}, asked for is {value!r}; "
                    "name another folder"
                )
    if any(found[name] != plan[name] for name in plan):
        raise InputError(f"{folder}: holds a bundle of another version of nas; name another folder")


def _write_graphs(job: Job, folder: Path, progress: Progress) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Convert the sentinel and all graphs; what a manifest says of each by key, and why others failed."""
    with writing(folder):
        folder.mkdir(parents=True)
    items = job.items(_networks(job))
    probes = list(dict.fromkeys([sentinel(), *(probe for item in items for probe, _ in item)]))
    suffix, shared = suffix_of(job.config.runtime), SharedWeights()
    graphs = {}
    with Bench(job.config, job.settings, Log(), job.seed, (job.space.name,)) as bench:
        for start in range(0, len(probes), CONVERTED):
            progress(start, len(probes), None, f"converting graph {start + 1} of {len(probes)}")
            batch = probes[start : start + CONVERTED]
            files = bench.convert(batch)
            for number, probe in enumerate(batch, start):
                if probe.key in bench.failures:
                    continue
                path = folder / f"{number:04}{suffix}"
                with writing(path):
                    if suffix == ".onnx":
                        path.write_bytes(shared.without_weights(files[probe.key]))
                    else:
                        shutil.copyfile(files[probe.key], path)
                graphs[probe.key] = _graph_data(probe, f"{GRAPHS}/{path.name}")
    with writing(folder):
        shared.write(folder)
    return graphs, bench.failures


def _graph_data(probe: Probe, file: str) -> dict[str, Any]:
    return {
        "file": file,
        "shapes": [list(shape) for shape in probe.shapes()],
        "weight_bytes": probe.weight_bytes,
        "macs": probe.macs,
        "whole": probe.whole,
    }


@dataclass(frozen=True)
class _Bundled(Job):
    """A job for another device: what runs the precision there may be missing here."""

    elsewhere = True


@dataclass(frozen=True)
class _Taken(_Bundled):
    """A job whose samples another device took.

    Attributes:
        facts: what their header says.
    """

    facts: Header | None = None

    def header(self, variant: str = "") -> Header:
        assert self.facts is not None
        return self.facts


def collect(folder: Path, *, output: Path | None = None, partial: bool = False, accept_noise: bool = False) -> Table:
    """The table of a bundle that was run on its device, written to `output`.

    Args:
        folder: the bundle, or of it the manifest and what run.py wrote.
        output: the table; None for the usual place of one of that device. One that is there is completed.
        partial: also take what is not complete.
        accept_noise: write a table even where the device was too disturbed to believe it; the table says so.

    Raises:
        InputError: for a folder that holds no bundle of this format, was not run, lacks samples, or does not belong
            into the table at `output`.
        MeasureError: where the device was too disturbed, or could not measure rows, naming each and why; the table
            holds the others.
        RunError: where another process writes the table, or it cannot be written.
    """
    manifest = _read_manifest(folder)
    if not (folder / run.SAMPLES).exists():
        raise InputError(f"{folder}: has no {run.SAMPLES}; copy the folder to the device and there: python run.py")
    with _as_made(folder / run.MANIFEST):
        said, log = read_samples(folder / run.SAMPLES, manifest)
        if not log.has_samples:
            raise InputError(f"{folder / run.SAMPLES}: holds no samples; on the device: python run.py")
        failures = manifest["unconverted"] | read_failures(folder / run.FAILURES, manifest["graphs"])
        archs = tuple(map(Arch.from_json, manifest["networks"]))
        job = _job(folder, manifest, Header(**said | {"spaces": ()}), output)
        lacking = _lacking(manifest, log, failures)
    if lacking and not partial:
        raise InputError(
            f"{folder}: {lacking} of {len(manifest['graphs'])} graphs lack samples; go on with python run.py on "
            "the device, or take what is there with --partial"
        )
    noise = job.noise(log, archs)
    if noise.is_too_much and not accept_noise:
        raise MeasureError(
            f"{folder}: the device was too disturbed to be believed: {noise}, at most {MOST_NOISE:.0%} may be. "
            f"Close other programs there, let it cool, remove {run.SAMPLES} and run python run.py again; "
            "--accept-noise takes the samples as they are"
        )
    with lock_of(job.path):
        job = dataclasses.replace(job)  # what others have written until now counts
        table = job.result(log, "default", archs)
        if table.entries:
            table.write(job.path)
    _raise_failures(folder, job, failures)
    return Table.read(job.path)


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not (folder / run.MANIFEST).is_file():
        raise InputError(f"{folder}: holds no bundle; make one with nas profile SPACE --bundle {folder}")
    return run.read_manifest(folder)


@contextlib.contextmanager
def _as_made(path: Path) -> Iterator[None]:
    """Say so where a manifest lacks what `make` has written, or holds something else."""
    try:
        yield
    except NasError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: is not as nas has made it ({what}); make the bundle anew and run it") from error


def _job(folder: Path, manifest: Mapping[str, Any], facts: Header, output: Path | None) -> _Taken:
    """The job of a bundle, which says what its graphs are for.

    Raises:
        InputError: where the manifest is not as `make` writes it, or as this version would.
    """
    asked = manifest["asked"]
    settings = {field.name: manifest["settings"][field.name] for field in dataclasses.fields(Settings)}
    space, seed = space_of(asked["space"]), manifest["settings"]["seed"]
    only = None if asked["rows"] is None else tuple(map(_row_of, asked["rows"]))
    config = RuntimeConfig(asked["runtime"], asked["threads"], asked["precision"])
    name = table_name(space, config.runtime, config.threads, asked["level"], config.precision)
    path = output or Path("latency_tables") / facts.device / name
    job = _Taken(space, path, config, asked["level"], Settings(**settings), seed, only, facts=facts)
    known = {key for item in manifest["items"] for key, _ in item}
    if not all(probe.key in known for formula in job.formulas for probe in formula.probes):
        raise InputError(f"{folder}: the bundle is of another version of nas or its spaces; make it anew and run it")
    return job


def _lacking(manifest: Mapping[str, Any], log: Log, failures: Mapping[str, str]) -> int:
    """The number of graphs with too few samples, without those that a failed one stands in a row with."""
    settings = manifest["settings"]
    wanted = {key for item in manifest["items"] if not any(key in failures for key, _ in item) for key, _ in item}
    return sum(
        any(len(log.taken(number, key)) < settings["rounds"] for number in range(settings["passes"])) for key in wanted
    )


def _raise_failures(folder: Path, job: Job, failures: Mapping[str, str]) -> None:
    lines = []
    for formula in job.formulas:
        reasons = dict.fromkeys(failures[probe.key] for probe in formula.probes if probe.key in failures)
        lines += [f"  {formula.row}: {reason}" for reason in reasons]
    lines += [f"  {key}: {reason}" for key, reason in failures.items() if key.startswith("network ")]
    if lines:
        raise MeasureError(
            f"{folder}: {len(lines)} rows or networks could not be measured on the device; {job.path} holds the "
            "others, python run.py on the device tries these again:\n" + "\n".join(lines)
        )


def _row_data(row: Row) -> list[Any]:
    return [*str(row.unit).partition(" ")[::2], [str(shape) for shape in row.inputs]]


def _row_of(data: Sequence[Any]) -> Row:
    name, fields, shapes = data
    return Row(parse_unit(name, fields), tuple(map(Shape.parse, shapes)))
