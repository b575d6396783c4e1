"""Times the graphs of a bundle on the device that it was copied to. Needs Python 3.8, NumPy and the runtime alone.

    python run.py            measure what is missing; the same command continues after any interruption
    python run.py --check    only say which files of the bundle are missing or damaged

`nas profile SPACE --bundle DIR` copies this file into DIR as run.py, `nas profile --collect DIR` reads what it writes:
samples.jsonl, each round on disk before the next begins, and failures.json. It measures as `nas profile` does: fresh
processes, rounds in random order, a reference block before and after every sample.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import mmap
import os
import platform
import random
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator  # noqa: UP035  Python 3.8 cannot subscript others

import numpy as np

FORMAT = 2  # of the bundle
JOURNAL_FORMAT = 1  # of samples.jsonl: nas.profiling.samples
MANIFEST, SAMPLES, FAILURES = "manifest.json", "samples.jsonl", "failures.json"
SENTINEL_CALLS = 12  # nas.profiling.worker
WARM_UP_CALLS = 3
GATE, REFERENCE = 1.10, 10.0  # nas.profiling.protocol: which samples lie in slow spells
MEMORY_SHARE = 0.25  # of the device's memory for the weights of the graphs that are loaded together
GRAPH_SECONDS = 0.05  # to load and warm a graph, for estimates
PROCESS_SECONDS = 1.0
MACS_PER_US = 1e4
#: header fields in which all samples of one folder agree
SAME = ("device", "cpu", "runtime_version")
#: instruction sets that change what a runtime's kernels reach, from common to rare
VECTOR_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "neon", "asimd", "asimddp", "sve")


class Failure(Exception):  # noqa: N818  this file has no tree of errors
    """What stops the run; its text says what to do next."""


def main() -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only list missing or damaged files, as JSON")
    parser.add_argument("--json", action="store_true", help="progress as JSON lines on standard output")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = Path(__file__).resolve().parent
    try:
        manifest = read_manifest(folder)
        if options.child:
            serve(folder, manifest)
        elif options.check:
            print(json.dumps({"damaged": damaged(folder, manifest)}))
        else:
            measure(folder, manifest, Progress(options.json))
    except Failure as failure:
        sys.exit(f"run.py: {failure}")
    except KeyboardInterrupt:
        sys.exit("run.py: stopped; the same command continues")
    except BrokenPipeError:  # whoever reads the progress is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What to measure, and how."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"{MANIFEST} cannot be read ({error}); copy the bundle again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise Failure(f"{MANIFEST} has format {found}, this run.py reads {FORMAT}; make the bundle anew")
    return manifest


def damaged(folder: Path, manifest: dict[str, Any]) -> list[str]:
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


# The device


def machine() -> tuple[str, int, str]:
    """The processor with what tells apart processors of one name, its logical cores, and a short name for folders."""
    blocks = _cpuinfo()
    first = blocks[0] if blocks else {}
    known = {key: value for block in reversed(blocks) for key, value in block.items()}
    model = first.get("model name") or _board() or known.get("Hardware") or platform.processor() or "unknown cpu"
    flags = set((first.get("flags") or first.get("Features") or "").split())
    parts = sorted({block["CPU part"] for block in blocks if "CPU part" in block})
    details = [f"{key} {first[key]}" for key in ("cpu family", "model") if key in first]
    details += [f"parts {' '.join(parts)}" if parts else "", " ".join(name for name in VECTOR_SETS if name in flags)]
    cpu = f"{model} ({', '.join(filter(None, details))})" if any(details) else model
    return cpu, os.cpu_count() or 1, slug(model)


def slug(model: str) -> str:
    """A folder name for a processor: architecture and model, without trade marks and clock."""
    plain = re.sub(r"\((r|tm|c)\)|@.*|\bcpu\b", " ", model, flags=re.IGNORECASE)
    words = re.findall(r"[a-z0-9]+", plain.lower())
    return "-".join([platform.machine().lower() or "unknown", *words])


def _cpuinfo() -> list[dict[str, str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    blocks = ([line.partition(":") for line in block.splitlines()] for block in text.split("\n\n") if block.strip())
    return [{key.strip(): value.strip() for key, _, value in block} for block in blocks]


def _board() -> str:
    """The name that the system gives a board, phone or Mac; "" where it gives none."""
    with contextlib.suppress(OSError):
        return Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    brand = ["sysctl", "-n", "machdep.cpu.brand_string"]
    for command in [brand] if platform.system() == "Darwin" else [["getprop", "ro.product.model"]]:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ""


# Runtimes: each returns what runs one inference. They do what nas.profiling.backends does.


def load_onnxruntime(path: Path, shapes: list[list[int]], manifest: dict[str, Any]) -> Callable[[], Any]:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = manifest["header"]["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {entry.name for entry in session.get_inputs()}
    feeds = {name: array for name, array in _arrays(shapes, "input").items() if name in used}
    return lambda: session.run(None, feeds)


def load_openvino(path: Path, shapes: list[list[int]], manifest: dict[str, Any]) -> Callable[[], Any]:
    """An ONNX file in OpenVINO."""
    blocked: Any = sys.modules
    blocked.setdefault("openvino_telemetry", None)  # it would send usage data, from a fork of what is timed
    import openvino

    hint = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}[manifest["header"]["precision"]]
    core = openvino.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": manifest["header"]["threads"],
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(str(path)), "CPU", properties)
    request = compiled.create_infer_request()
    used = {name for entry in compiled.inputs for name in entry.names}
    for name, array in _arrays(shapes, "input").items():
        if name in used:
            request.set_tensor(name, openvino.Tensor(array))
    return request.infer  # type: ignore[no-any-return]


def load_litert(path: Path, shapes: list[list[int]], manifest: dict[str, Any]) -> Callable[[], Any]:
    """A .tflite file in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=manifest["header"]["threads"])
    interpreter.allocate_tensors()
    entries = interpreter.get_signature_runner().get_input_details()
    arrays = _arrays(shapes, "args_")
    inputs = [(entry["index"], arrays[name]) for name, entry in entries.items()]

    def run() -> None:
        for number, array in inputs:
            interpreter.set_tensor(number, array)
        interpreter.invoke()

    return run


#: by name: what is imported, what pip calls it, what loads a file
RUNTIMES = {
    "onnxruntime": ("onnxruntime", "onnxruntime", load_onnxruntime),
    "openvino": ("openvino", "openvino", load_openvino),
    "litert": ("ai_edge_litert", "ai-edge-litert", load_litert),
}


def _arrays(shapes: list[list[int]], prefix: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(tuple(shape), dtype=np.float32) for shape in shapes]
    return {f"{prefix}{number}": array for number, array in enumerate(arrays)}


def runtime_version(runtime: str) -> str:
    """The version of an installed runtime, as pip knows it."""
    from importlib import metadata

    module, distribution, _ = RUNTIMES[runtime]
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        pass
    try:  # such as onnxruntime-gpu, or a board's own build
        return str(__import__(module).__version__)
    except (ImportError, AttributeError) as error:
        raise Failure(f"{distribution} is not installed for {sys.executable}: pip install {distribution}") from error


# The process that times: a child of the run, fresh for each batch and pass


def serve(folder: Path, manifest: dict[str, Any]) -> None:
    """Load the graphs that the first line of standard input names, then answer each further line with a round."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints is no answer
    with contextlib.suppress(OSError):
        os.nice(-20)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("-20", encoding="ascii")
    job = json.loads(sys.stdin.readline())
    with (folder / ".busy").open("r+b") as file, mmap.mmap(file.fileno(), 8) as busy:
        bench = Bench(folder, manifest, job, busy)
        print(json.dumps({"failures": bench.prepare(job["keys"])}), file=output, flush=True)
        for line in sys.stdin:
            print(json.dumps({"samples": bench.round(json.loads(line))}), file=output, flush=True)


class Bench:
    """The graphs of one batch, loaded, and the sentinel."""

    def __init__(self, folder: Path, manifest: dict[str, Any], job: dict[str, Any], busy: mmap.mmap) -> None:
        self.folder, self.manifest, self.busy = folder, manifest, busy
        self.load = RUNTIMES[manifest["header"]["runtime"]][2]
        self.random = random.Random(job["seed"])
        self.numbers = {key: number for number, key in enumerate(job["keys"])}
        self.runs: dict[str, Callable[[], Any]] = {}
        self.calls: dict[str, int] = {}
        self.sentinel = self._open(manifest["sentinel"])

    def prepare(self, keys: list[str]) -> dict[str, str]:
        """Load and warm every graph; why those that cannot be loaded fail, by key."""
        failures = {}
        settings = self.manifest["settings"]
        for key in keys:
            struct.pack_into("q", self.busy, 0, self.numbers[key])
            graph = self.manifest["graphs"][key]
            try:
                run = self._open(graph)
                us = min(_us_of(run) for _ in range(WARM_UP_CALLS))
            except Exception as error:  # whatever a runtime raises belongs to this graph alone
                failures[key] = f"{type(error).__name__}: {error}"
                continue
            self.runs[key] = run
            self.calls[key] = _calls(us, graph, settings)
        return failures

    def round(self, keys: list[str]) -> dict[str, list[float]]:
        """A sample of each graph, in random order: the slower sentinel of before and after, then the calls; in us."""
        self.random.shuffle(keys)
        samples = {}
        before = self._sentinel_us()
        for key in keys:
            struct.pack_into("q", self.busy, 0, self.numbers[key])
            run = self.runs[key]
            calls = [round(_us_of(run), 2) for _ in range(self.calls[key])]
            after = self._sentinel_us()
            samples[key] = [max(before, after), *calls]
            before = after
        return samples

    def _open(self, graph: dict[str, Any]) -> Callable[[], Any]:
        return self.load(self.folder / graph["file"], graph["shapes"], self.manifest)

    def _sentinel_us(self) -> float:
        return round(min(_us_of(self.sentinel) for _ in range(SENTINEL_CALLS)), 2)


def _us_of(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - start)


def _calls(us: float, graph: dict[str, Any], settings: dict[str, Any]) -> int:
    """The calls of a sample; whole networks have a `least` of their own."""
    return int(min(max(round(settings["sample_us"] / us), graph["least"]), settings["most"]))


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what to do where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise Failure(
            f"{path.name} cannot be written ({error.strerror or error}); make room, or see to its permissions; the "
            "same command continues"
        ) from error


class Died(Exception):  # noqa: N818
    """A child ended by itself, over graph `key`."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


class Child:
    """A fresh process with these graphs loaded."""

    def __init__(self, folder: Path, manifest: dict[str, Any], keys: list[str], seed: int) -> None:
        self.keys, self.busy = keys, folder / ".busy"
        with _writing(self.busy):
            self.busy.write_bytes(struct.pack("q", -1))
        with _writing(folder / ".stderr"):
            self.errors = (folder / ".stderr").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            universal_newlines=True,
            start_new_session=True,
            env=dict(os.environ, OMP_NUM_THREADS=str(manifest["header"]["threads"])),
        )
        try:
            self.failures: dict[str, str] = self.ask({"keys": keys, "seed": seed})["failures"]
        except BaseException:
            self.stop()
            raise

    def ask(self, request: Any) -> dict[str, Any]:
        """Send a line, and read the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _death(self) -> Exception:
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        reason = f"the process ended with {'signal' if code < 0 else 'exit code'} {abs(code)}"
        reason += f": {said[-1]}" if said else ""
        (number,) = struct.unpack("q", self.busy.read_bytes())
        return Died(self.keys[number], reason) if number >= 0 else Failure(reason)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


# The run


class Journal:
    """samples.jsonl: the facts of the device, then a line a round; only one process at a time has it open.

    A torn last line, what a kill leaves, is cut.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.taken: dict[tuple[int, str], list[float]] = {}  # sentinels of the samples, by pass and key
        with _writing(path):
            self.file = path.open("ab+", buffering=0)
        _lock(self.file, path)
        self.file.seek(0)
        text = self.file.read()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            self.file.truncate(len(whole))
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines:
            self._append({"format": JOURNAL_FORMAT, "header": header})
        for name in SAME if lines else ():
            if lines[0]["header"][name] != header[name]:
                raise Failure(
                    f"{path.name} holds samples with {name} {lines[0]['header'][name]!r}, this device has "
                    f"{header[name]!r}; they do not go into one table. Use a fresh copy of the bundle"
                )
        for line in lines[1:]:
            self._keep(line["pass"], line["samples"])

    def add(self, number: int, samples: dict[str, list[float]]) -> None:
        """Append a round of pass `number`; it is on disk when this returns."""
        self._append({"pass": number, "samples": samples})
        self._keep(number, samples)

    def lacks(self, number: int, key: str, settings: dict[str, Any], reference: float) -> bool:
        """Whether a graph needs another round in pass `number`; one in slow spells gets more than others."""
        sentinels = self.taken.get((number, key), [])
        if len(sentinels) < settings["rounds"]:
            return True
        good = sum(sentinel <= GATE * reference for sentinel in sentinels)
        return bool(good < settings["enough"] and len(sentinels) < settings["limit"])

    def reference(self) -> float:
        """The sentinel's time outside slow spells, in microseconds."""
        sentinels = [sentinel for taken in self.taken.values() for sentinel in taken]
        return float(np.percentile(sentinels, REFERENCE)) if sentinels else 0.0

    def _keep(self, number: int, samples: dict[str, list[float]]) -> None:
        for key, sample in samples.items():
            self.taken.setdefault((number, key), []).append(sample[0])

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line).encode() + b"\n"
        with _writing(Path(SAMPLES)):
            while text:
                text = text[self.file.write(text) :]
            os.fsync(self.file.fileno())


def _lock(file: Any, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Failure(f"{path}: another process is measuring here; wait for it or stop it") from error


class Progress:
    """Work done in estimated seconds, as text on standard error or JSON lines on standard output."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.total = self.done = 0.0
        self.start = time.monotonic()

    def add(self, seconds: float, text: str) -> None:
        """Work done, in estimated seconds, and what is going on."""
        self.done = min(self.done + seconds, self.total)
        passed = time.monotonic() - self.start
        left = (self.total - self.done) * (passed / self.done if self.done else 1.0)
        if self.as_json:
            facts = {"done": self.done, "total": self.total, "seconds_left": left, "text": text}
            print(json.dumps(facts), flush=True)
            return
        share = 100 * self.done / self.total if self.total else 100.0
        line = f"{share:5.1f} %  {text}, {left / 60:.1f} min left"
        end = "\r" if sys.stderr.isatty() else "\n"
        print(line.ljust(70), end=end, file=sys.stderr, flush=True)


def measure(folder: Path, manifest: dict[str, Any], progress: Progress) -> None:
    """Measure all that is missing, then say how to go on."""
    names = [name for name in manifest["files"] if not (folder / name).is_file()]
    if names:
        raise Failure(f"{len(names)} files of the bundle are missing, first {names[0]}; copy it again")
    header = dict(manifest["header"])
    cpu, cores, name = machine()
    version = runtime_version(header["runtime"])
    header.update(device=name, cpu=cpu, cores=cores, runtime_version=version, date=datetime.date.today().isoformat())
    journal = Journal(folder / SAMPLES, header)
    failures: dict[str, str] = dict(manifest["unconverted"])
    passes = range(manifest["settings"]["passes"])
    for number in passes:
        missing = missing_items(manifest, journal, number, failures)
        progress.total += PROCESS_SECONDS * len(list(batches(manifest, missing)))
        progress.total += sum(_seconds(manifest, journal, number, key) for key in {k for item in missing for k in item})
    progress.add(0, f"{name}: starting")
    for number in passes:
        for batch in batches(manifest, missing_items(manifest, journal, number, failures)):
            run_batch(folder, manifest, journal, number, batch, failures, progress)
    temporary = folder / (FAILURES + ".tmp")
    with _writing(folder / FAILURES):
        temporary.write_text(json.dumps(failures, indent=1), encoding="utf-8")
        temporary.replace(folder / FAILURES)
    for key, reason in failures.items():
        print(f"{key}: {reason}", file=sys.stderr)
    print(
        f"\nDone, {len(failures)} graphs failed. Copy this folder, or {SAMPLES} and {FAILURES} of it, back, then: "
        "nas profile --collect DIR",
        file=sys.stderr,
    )


def missing_items(manifest: dict[str, Any], journal: Journal, number: int, failures: dict[str, str]) -> list[list[str]]:
    """Graphs that belong to one row, where one of them needs another round in pass `number` and none failed."""
    reference = journal.reference()
    settings = manifest["settings"]
    return [
        item
        for item in manifest["items"]
        if not any(key in failures for key in item)
        and any(journal.lacks(number, key, settings, reference) for key in item)
    ]


def batches(manifest: dict[str, Any], items: list[list[str]]) -> Iterator[list[list[str]]]:
    """Items whose graphs are loaded together, by their number and the memory of this device."""
    settings = manifest["settings"]
    limit = min(settings["batch_bytes"], _memory() * MEMORY_SHARE)
    batch: list[list[str]] = []
    size = 0
    for item in items:
        extra = sum(manifest["graphs"][key]["weight_bytes"] for key in item)
        if batch and (len(batch) >= settings["batch_rows"] or size + extra > limit):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += extra
    if batch:
        yield batch


def _memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return 2.0**30


def _seconds(manifest: dict[str, Any], journal: Journal, number: int, key: str) -> float:
    rounds = max(manifest["settings"]["rounds"] - len(journal.taken.get((number, key), [])), 1)
    return float(GRAPH_SECONDS + rounds * _sample_seconds(manifest, key))


def _sample_seconds(manifest: dict[str, Any], key: str) -> float:
    graph = manifest["graphs"][key]
    us: float = 10 + graph["macs"] / MACS_PER_US
    return us * _calls(us, graph, manifest["settings"]) / 1e6


def run_batch(
    folder: Path,
    manifest: dict[str, Any],
    journal: Journal,
    number: int,
    batch: list[list[str]],
    failures: dict[str, str],
    progress: Progress,
) -> None:
    """Measure a batch in a fresh process; where a graph takes it down, go on without that graph."""
    settings = manifest["settings"]
    text = f"pass {number + 1} of {settings['passes']}"
    while True:
        batch = [item for item in batch if not any(key in failures for key in item)]
        keys = list(dict.fromkeys(key for item in batch for key in item))
        open_keys = [key for key in keys if journal.lacks(number, key, settings, journal.reference())]
        if not open_keys:
            return
        child = None
        try:
            child = Child(folder, manifest, open_keys, settings["seed"] + number)
            failures.update(child.failures)
            progress.add(PROCESS_SECONDS + GRAPH_SECONDS * len(open_keys), f"{text}: {len(open_keys)} graphs loaded")
            while True:
                reference = journal.reference()
                wanted = [
                    key for key in open_keys if key not in failures and journal.lacks(number, key, settings, reference)
                ]
                if not wanted:
                    return
                done = min(len(journal.taken.get((number, key), [])) for key in wanted)
                samples = child.ask(wanted)["samples"]
                new = [key for key in wanted if len(journal.taken.get((number, key), [])) < settings["rounds"]]
                journal.add(number, samples)
                progress.add(sum(_sample_seconds(manifest, key) for key in new), f"{text}: round {done + 1}")
        except Died as death:
            failures[death.key] = str(death)
        finally:
            if child is not None:
                child.stop()


if __name__ == "__main__":
    main()
