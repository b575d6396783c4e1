"""What a network reaches in the form in which it is deployed: in a runtime's file and precision, on held-out images.

int8 is made by the runtime's own tools, with images of the training split to see the ranges of activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.core.arch import Arch
from nas.core.errors import InputError, MeasureError
from nas.core.files import scratch
from nas.core.ops import Shape
from nas.core.units import to_ms
from nas.evaluation.data import Data, Split, load_data
from nas.evaluation.metrics import EVAL_BATCH, check_classes
from nas.evaluation.pretrained import load_pretrained
from nas.evaluation.sampler import in_order
from nas.networks.building import Network, build, with_classes
from nas.networks.export import deployed
from nas.profiling import profiler
from nas.profiling.backends import Calibration, FileBackend, Session, load_backend
from nas.profiling.machine import this_machine

CALIBRATION_IMAGES = 128
SPLITS = ("val", "test")
INT8 = "int8"


@dataclass(frozen=True)
class Deployed:
    """A network as a runtime runs it, beside PyTorch in fp32, on the same images.

    Attributes:
        runtime: with its version.
        precision: of weights and activations.
        images: how many were looked at.
        accuracy: share of right answers, 0..1.
        fp32_accuracy: PyTorch's, in fp32.
        agreement: share of images of which both say the same class.
        difference: of an output from PyTorch's, over its largest; the mean over images.
        bytes: of the runtime's file; None where it has none.
        calibration_images: that int8 was made with; None for other precisions.
        kept: kinds of ops that int8 left in fp32.
    """

    runtime: str
    precision: str
    images: int
    accuracy: float
    fp32_accuracy: float
    agreement: float
    difference: float
    bytes: int | None
    calibration_images: int | None
    kept: tuple[str, ...] = ()

    @property
    def drop(self) -> float:
        """How much accuracy the form costs."""
        return self.fp32_accuracy - self.accuracy


class Deployment:
    """A network and the images it is judged on; PyTorch's answers are computed once.

    Args:
        network: with its weights; it is left as it is.
        data: its classes are the network's.
        split: val or test.
        images: how many of its first ones; None for all.
        calibration_images: how many of the first ones of the training split int8 is made with.

    Raises:
        InputError: no such split, counts that make no sense, or another number of classes.
    """

    def __init__(
        self,
        network: Network,
        data: Data,
        *,
        split: str = "val",
        images: int | None = None,
        calibration_images: int = CALIBRATION_IMAGES,
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"split: expected {' or '.join(SPLITS)}, got {split!r}")
        for name, count in (("images", images), ("calibration images", calibration_images)):
            if count is not None and count < 1:
                raise InputError(f"{name}: expected at least 1, got {count}")
        self.model, self.data = deployed(network), data
        self.shapes = (Shape(1, *network.arch.input_shape),)
        if data.val.input_shape != network.arch.input_shape:
            raise InputError(
                f"the network takes images {network.arch.input_shape}, the data gives {data.val.input_shape}: load the "
                "data for the network's input_shape"
            )
        self.split: Split = getattr(data, split)
        self.images = min(images or len(self.split), len(self.split))
        self.calibration_images = min(calibration_images, len(data.train))
        self.labels, self.expected = self._answers()

    def judge(
        self,
        runtime: str,
        precision: str = "fp32",
        *,
        threads: int = 1,
        kept: Sequence[str] = (),
        file: Path | None = None,
    ) -> Deployed:
        """Convert the network and compare what the runtime says of the images.

        Args:
            runtime: name of a backend.
            precision: one that it has.
            threads: inside one inference.
            kept: kinds of ops that int8 leaves in fp32.
            file: where what was converted is kept, for a runtime with files; None for nowhere.

        Raises:
            InputError: for an unknown runtime or precision, naming those there are, or kinds that are not quantized.
            MeasureError: where the runtime is not installed or cannot run the network, or its outputs are no numbers.
        """
        quantized = precision == INT8
        backend = load_backend(runtime)(threads, precision, None, self.calibration(kept) if quantized else None)
        backend.require_machine()
        if kept and not quantized:
            raise InputError(f"kept in fp32: {', '.join(kept)}, but the precision is {precision}; only int8 is mixed")
        if kept:
            self.require_kinds(runtime, kept)
        with scratch("deployed") as folder:
            if isinstance(backend, FileBackend):
                path = file or Path(folder) / "model"
                backend.convert(self.model, self.shapes, path)
                session, size = backend.load(path, self.shapes), path.stat().st_size
            else:
                session, size = backend.prepare(self.model, self.shapes), None
            outputs = self._outputs(session, f"{runtime} {precision}")
        scale = np.abs(self.expected).max(1).clip(1e-12)
        said, wanted = outputs.argmax(1), self.expected.argmax(1)
        return Deployed(
            runtime=f"{runtime} {backend.version()}",
            precision=precision,
            images=self.images,
            accuracy=float((said == self.labels).mean()),
            fp32_accuracy=float((wanted == self.labels).mean()),
            agreement=float((said == wanted).mean()),
            difference=float((np.abs(outputs - self.expected).max(1) / scale).mean()),
            bytes=size,
            calibration_images=self.calibration_images if quantized else None,
            kept=tuple(kept),
        )

    def sensitive(
        self, runtime: str, *, threads: int = 1, progress: Callable[[int, int, str], None] | None = None
    ) -> dict[str, Deployed]:
        """int8 with one kind of ops after the other left in fp32, by kind, what helps most first.

        Args:
            runtime, threads: as in `judge`.
            progress: called with (kinds done, kinds, kind).

        Raises:
            MeasureError: as `judge`, or where the runtime quantizes all or nothing.
        """
        kinds = self.kinds(runtime)
        found = {}
        for number, kind in enumerate(kinds):
            if progress is not None:
                progress(number, len(kinds), kind)
            found[kind] = self.judge(runtime, INT8, threads=threads, kept=(kind,))
        return dict(sorted(found.items(), key=lambda item: (-item[1].accuracy, item[1].difference)))

    def kinds(self, runtime: str) -> tuple[str, ...]:
        """The kinds of ops that int8 reaches in this network and that can be left in fp32; none for some runtimes."""
        kind = load_backend(runtime)
        backend = kind(1, INT8)
        return backend.kinds_quantized(self.model, self.shapes) if isinstance(backend, FileBackend) else ()

    def require_kinds(self, runtime: str, kept: Sequence[str]) -> None:
        """Raises: InputError, where int8 cannot leave these kinds in fp32."""
        known = self.kinds(runtime)
        if unknown := [kind for kind in kept if kind not in known]:
            legal = ", ".join(known) or f"none, {runtime} quantizes all or nothing"
            raise InputError(f"kept in fp32: {', '.join(unknown)}: not among what int8 reaches here: {legal}")

    def calibration(self, kept: Sequence[str] = ()) -> Calibration:
        images = self._read(self.data.train, self.calibration_images)
        return Calibration([(image[None].numpy(),) for batch, _ in images for image in batch], tuple(kept))

    def _answers(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels (N,) and PyTorch's outputs (N, classes)."""
        labels, outputs = [], []
        with torch.no_grad():
            for images, truth in self._read(self.split, self.images):
                logits = self.model(images)
                check_classes(logits, self.data.classes)
                labels.append(truth.numpy())
                outputs.append(logits.numpy())
        return np.concatenate(labels), np.concatenate(outputs)

    def _outputs(self, session: Session, what: str) -> np.ndarray:
        """A runtime's outputs (N, classes), image by image.

        Raises:
            MeasureError: some are no numbers.
        """
        outputs = []
        for images, _ in self._read(self.split, self.images):
            for image in images:
                session.feed((image[None].contiguous().numpy(),))
                outputs.append(session.outputs()[0][0].copy())
        found = np.stack(outputs)
        if not np.isfinite(found).all():
            raise MeasureError(f"{what}: outputs are not finite on {(~np.isfinite(found)).any(1).sum()} images")
        return found

    def _read(self, split: Split, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return split.read(in_order(count, EVAL_BATCH))


def sensitivity_text(whole: Deployed, kinds: dict[str, Deployed]) -> str:
    """In words, which kinds of ops cost int8 its accuracy; `kinds` as `Deployment.sensitive` gives them."""
    if not kinds:
        return "which ops are sensitive is not known: this runtime quantizes all or nothing"
    helps = [(kind, each.accuracy - whole.accuracy) for kind, each in kinds.items() if each.accuracy > whole.accuracy]
    if not helps:
        return "no single kind of ops kept in fp32 brings accuracy back"
    told = ", ".join(f"{kind} {gain:+.2%}" for kind, gain in helps[:3])
    return f"most sensitive (accuracy with this kind alone kept in fp32): {told}"


def evaluate_arch(
    arch: Arch,
    weights: str,
    data_name: str,
    *,
    runtime: str = "onnxruntime",
    precision: str = "fp32",
    threads: int = 1,
    split: str = "val",
    images: int | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    kept: Sequence[str] = (),
    sensitivity: bool = False,
    latency: bool = True,
    seed: int = 0,
    limit: int | None = None,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Judge a trained network in the form in which it is deployed: accuracy, agreement with PyTorch, latency, size.

    Args:
        arch: its head is fitted to the data's classes.
        weights: as `load_pretrained` takes them.
        data_name: as `load_data` takes it.
        runtime: name of a backend.
        precision: one that it has.
        threads: inside one inference.
        split: val, or test for final figures.
        images: most images to look at; None for all.
        calibration_images: of the training split, for int8.
        kept: kinds of ops that int8 leaves in fp32.
        sensitivity: also tell what accuracy each kind of ops costs, for int8; as many conversions as there are kinds.
        latency: also time the network on this machine, in fresh processes: the same graph, with random weights.
        seed, limit: of the division of the images, as when the weights were trained: else images that they were
            trained on are among those of the split.
        progress: called with (done, of how many, seconds left, text).

    Raises:
        InputError: weights that do not fit the arch or the data, or a name or number that makes no sense.
        MeasureError: where the runtime cannot run it, saying why.
    """
    load_backend(runtime)(threads, precision).require_machine()  # before what takes long
    if sensitivity and precision != INT8:
        raise InputError(f"sensitivity: of int8 only, the precision is {precision}")
    data = load_data(data_name, arch.input_shape, seed=seed, limit=limit)
    fitted = with_classes(arch, data.classes)
    network = build(fitted)
    loaded = load_pretrained(network, weights, whole=True)
    deployment = Deployment(network, data, split=split, images=images, calibration_images=calibration_images)
    found = deployment.judge(runtime, precision, threads=threads, kept=kept)
    facts: dict[str, Any] = {"arch": fitted.id, "weights": loaded.source, "device": this_machine(runtime).slug}
    facts |= {"threads": threads, "data": data_name, "data_fingerprint": data.fingerprint, "split": split, "seed": seed}
    facts |= asdict(found) | {"kept": list(kept), "drop": found.drop}
    if sensitivity:

        def tell(done: int, kinds: int, kind: str) -> None:
            if progress is not None:
                progress(done, kinds, None, f"int8 with {kind} in fp32")

        kinds = deployment.sensitive(runtime, threads=threads, progress=tell)
        facts["sensitivity"] = {kind: {"accuracy": each.accuracy, "drop": each.drop} for kind, each in kinds.items()}
        facts["sensitivity_text"] = sensitivity_text(found, kinds)
    if latency:
        timed = profiler.measure(fitted, runtime=runtime, threads=threads, precision=precision, **_shown(progress))
        facts |= {"latency_ms": to_ms(timed.us), "latency_spread_ms": to_ms(timed.spread_us)}
        facts |= {"latency_noise": timed.text, "latency_disturbed": timed.disturbed}
    return facts


def _shown(progress: Callable[..., None] | None) -> dict[str, Any]:
    return {} if progress is None else {"progress": progress}
