"""Images to train on: what a data set gives, and `load_data`, which finds one by name.

Every data set has three parts. Candidates of a search are trained on `train` and compared on `val`, and see nothing
else; `test` is touched once, for the final figures of what the search chose. Small data sets live in memory as bytes
and become floats batch by batch, on the device; folders of images are streamed.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from nas.core.errors import InputError, suggest
from nas.core.files import cache_folder
from nas.evaluation import datasets
from nas.evaluation.sampler import PlannedBatch, in_order, shuffled

Batch = tuple[Tensor, Tensor]
Labelled = tuple[Tensor, Tensor]
ImageTransform = Callable[[Tensor], Tensor]

VAL_IMAGES_MAX = 10_000
"""Validation images that are held out at most: with so many, chance moves an accuracy by less than half a point."""

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, ITU-R BT.601."""


@dataclass(frozen=True)
class DataRequest:
    """Which data, in which form and which part of it; the same request always gives the same images in the same split.

    Attributes:
        name: a data set, one of `datasets.names()`.
        path: the folder the user named, or None.
        input_shape: (C, H, W) of the images a model takes, C is 1 or 3.
        seed: of the division into train and val, and of the draw of `limit` images.
        val_fraction: share of the training images held out as val, at most `VAL_IMAGES_MAX` images.
        limit: most images of train and val together, None for all; test is always whole.
        options: further ones of the data set, by name; "" for one that is only named.
    """

    name: str
    path: Path | None
    input_shape: tuple[int, int, int]
    seed: int
    val_fraction: float
    limit: int | None
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> str:
        """What `load_data` takes to find this data set."""
        options = [f"{name}={value}" if value else name for name, value in self.options.items()]
        return ",".join([self.name if self.path is None else f"{self.name}:{self.path}", *options])

    def folder(self) -> Path | None:
        """The folder the user named, None if none was.

        Raises:
            InputError: it is not there.
        """
        if self.path is not None and not self.path.is_dir():
            raise InputError(
                f"dataset {self.name}: no folder {str(self.path)!r}. Write {self.name}:PATH of an existing one"
            )
        return self.path

    def divide(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Choose train and val among images with these labels: two index tensors, each with the classes in proportion.

        Raises:
            InputError: one of the two would be empty.
        """
        order = stratified_order(labels, self.seed)[: self.limit]
        n_val = min(round(len(order) * self.val_fraction), VAL_IMAGES_MAX)
        if not 0 < n_val < len(order):
            raise InputError(
                f"dataset {self.name}: {len(order)} images with val_fraction {self.val_fraction} leave "
                f"{len(order) - n_val} to train on and {n_val} to validate on; ask for more images"
            )
        return order[n_val:], order[:n_val]


class Normalisation(NamedTuple):
    """How bytes become floats: (byte - mean) / std.

    Attributes:
        mean, std: of each channel, in 0..255.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> Normalisation:
    """From figures in 0..1, as published with weights; a single channel has the mean of theirs."""
    parts = (torch.tensor(part) * 255 for part in (mean, std))
    return Normalisation(*(tuple((p.mean(0, keepdim=True) if channels == 1 else p).tolist()) for p in parts))


class Split(ABC):
    """One part of a data set: labelled images in a fixed order, read in batches.

    Attributes:
        classes: number of classes; labels are 0..classes-1.
        input_shape: (C, H, W) of the images in a batch.
        crop_share: of the side of an image, the shorter one resized to it, what a crop in the centre shows; None where
            the whole image is resized, whatever its proportions.
    """

    classes: int
    input_shape: tuple[int, int, int]
    crop_share: ClassVar[float | None] = None

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def normalisation(self) -> Normalisation | None:
        """That of the C channels of a batch; None where a split does not say."""
        return None

    @property
    def class_counts(self) -> tuple[int, ...] | None:
        """How many images each class has; None where a split does not say."""
        return None

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        augment: ImageTransform | None = None,
    ) -> Iterator[Batch]:
        """Read images in batches, as `read` does.

        Without a seed all images come in order and the last batch may be smaller. With one they are shuffled by it, and
        a last incomplete batch is left out.
        """
        plan = in_order(len(self), batch_size) if seed is None else shuffled(len(self), batch_size, seed)
        return self.read(plan, device=device, seed=seed or 0, augment=augment)

    @abstractmethod
    def read(
        self,
        plan: Sequence[PlannedBatch],
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        augment: ImageTransform | None = None,
    ) -> Iterator[Batch]:
        """Yield the planned batches: normalised float32 images (N, C, H, W) and int64 labels (N,), on `device`.

        `augment` turns one uint8 image (C, H, W) into another of the same shape before normalisation; it draws from the
        global generators. `seed` is that of random crops, where the split has any.
        """

    def to(self, device: torch.device | str) -> Split:
        """The same images, kept on `device` where they live in memory."""
        return self


@dataclass(frozen=True)
class Data:
    """A data set in three parts.

    Attributes:
        request: what was asked for, resolved.
        classes: number of classes; labels are 0..classes-1.
        train: what weights are fitted on.
        val: what candidates are compared on.
        test: only for the final figures; a search must not read it.
        mirrors: whether an image seen in a mirror keeps its class (false for digits).
        class_names: of the labels, in their order; empty where nobody named them.
        notes: on what was left out or held out, in sentences.
        fingerprint: of all its images and labels, whatever their division and `limit` (`fingerprint_of`). Left empty,
            it is one of what the splits say of themselves: their sizes and the classes' shares.
    """

    request: DataRequest
    classes: int
    train: Split
    val: Split
    test: Split
    mirrors: bool
    fingerprint: str = ""
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.fingerprint:
            parts = [(len(split), split.class_counts) for split in (self.train, self.val, self.test)]
            object.__setattr__(self, "fingerprint", fingerprint_of(repr((self.classes, parts)).encode()))

    @property
    def name(self) -> str:
        return self.request.name

    @property
    def passport(self) -> dict[str, Any]:
        """What a network that learned from these images has to take along, as plain data: the names of the classes, how
        images are shown to it (mean and deviation in 0..1), and which images they were.
        """
        shown = self.train.normalisation
        return {
            "class_names": list(self.class_names),
            "mean": None if shown is None else [value / 255 for value in shown.mean],
            "std": None if shown is None else [value / 255 for value in shown.std],
            "crop_share": self.val.crop_share,
            "data": self.request.name if self.request.path is None else f"{self.name}:{self.request.path.name}",
            "data_fingerprint": self.fingerprint,
            "images": {part: len(getattr(self, part)) for part in ("train", "val", "test")},
        }

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on, as plain data."""
        sizes = {"train": len(self.train), "val": len(self.val), "fingerprint": self.fingerprint}
        asked = asdict(self.request) | {"path": None}  # a data set may move
        if not asked["options"]:
            del asked["options"]
        return asked | sizes


@dataclass(frozen=True)
class MemorySplit(Split):
    """Images held as bytes, in their own size.

    Attributes:
        images: uint8 (N, c, h, w), c is 1 or 3.
        labels: int64 (N,).
        classes: number of classes.
        input_shape: (C, H, W) of the batches; images are resized, grey is repeated and colour turned grey as needed.
        mean, std: of each channel c of the training images, in 0..255.
    """

    images: Tensor
    labels: Tensor
    classes: int
    input_shape: tuple[int, int, int]
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def normalisation(self) -> Normalisation:
        """That of the images; where colour turns grey, nearly."""
        channels, parts = self.input_shape[0], [self.mean.cpu(), self.std.cpu()]
        if channels == 1 and len(self.mean) == 3:
            parts = [(part * part.new_tensor(LUMA)).sum().reshape(1) for part in parts]
        return Normalisation(*(tuple(part.expand(channels).tolist()) for part in parts))

    @property
    def class_counts(self) -> tuple[int, ...]:
        return tuple(torch.bincount(self.labels, minlength=self.classes).tolist())

    def to(self, device: torch.device | str) -> MemorySplit:
        moved = {name: getattr(self, name).to(device) for name in ("images", "labels", "mean", "std")}
        return replace(self, **moved)

    def read(
        self,
        plan: Sequence[PlannedBatch],
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        augment: ImageTransform | None = None,
    ) -> Iterator[Batch]:
        for indices, side in plan:
            chosen = indices.to(self.labels.device)
            images, labels = self.images[chosen], self.labels[chosen]
            if augment is not None:
                images = torch.stack([augment(image) for image in images])
            yield self._fit(images.to(device), side), labels.to(device)

    def _fit(self, images: Tensor, side: int | None) -> Tensor:
        """Bytes (N, c, h, w) -> floats (N, C, H, W), about mean 0 and deviation 1."""
        channels, *own = self.input_shape
        size = own if side is None else [side, side]
        mean, std = (value.to(images.device)[:, None, None] for value in (self.mean, self.std))
        floats = (images.float() - mean) / std
        if channels == 1 and floats.shape[1] == 3:
            floats = (floats * floats.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        if list(floats.shape[2:]) != size:
            shrinks = floats.shape[2] > size[0] or floats.shape[3] > size[1]
            floats = nn.functional.interpolate(floats, size, mode="bilinear", align_corners=False, antialias=shrinks)
        return floats.expand(-1, channels, -1, -1).contiguous()


def in_memory(
    request: DataRequest,
    classes: int,
    train: Labelled,
    test: Labelled,
    *,
    mirrors: bool,
    class_names: Sequence[str] = (),
) -> Data:
    """Data of (images, labels) pairs as `MemorySplit` holds them; val is taken from `train` as `request` says."""
    images, labels = train
    for_training, for_val = request.divide(labels)
    mean, std = channel_statistics(images[for_training])

    def split(images: Tensor, labels: Tensor) -> MemorySplit:
        return MemorySplit(images, labels, classes, request.input_shape, mean, std)

    return Data(
        request,
        classes,
        train=split(images[for_training], labels[for_training]),
        val=split(images[for_val], labels[for_val]),
        test=split(*test),
        mirrors=mirrors,
        fingerprint=fingerprint_of(*(part for tensor in (*train, *test) for part in _bytes_of(tensor))),
        class_names=tuple(class_names),
    )


def fingerprint_of(*parts: bytes | memoryview) -> str:
    """What tells a data set from others, 16 hex digits: SHA-256 of what it consists of, each part with its length."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]


def _bytes_of(tensor: Tensor) -> tuple[bytes, memoryview]:
    """Shape and content."""
    return repr(tuple(tensor.shape)).encode(), tensor.contiguous().numpy().reshape(-1).view(np.uint8).data


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of uint8 images (N, c, h, w), from counts of the 256 values."""
    values = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    return mean.float(), variance.sqrt().clamp_min(1e-6).float()


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """An order of all indices, drawn from `seed`, of which every beginning holds the classes in proportion."""
    rng = np.random.default_rng(seed)
    numbers = labels.cpu().numpy()
    place = np.empty(len(numbers))
    for label in np.unique(numbers):
        members = np.flatnonzero(numbers == label)
        place[rng.permutation(members)] = (np.arange(len(members)) + rng.random()) / len(members)
    return torch.from_numpy(np.argsort(place, kind="stable"))


def shifted(images: Tensor, by: Tensor) -> Tensor:
    """Move each image (N, C, H, W) down and right by its column of `by`, pixels (2, N); its edge fills the gap."""
    n, _, height, width = images.shape
    rows = (torch.arange(height, device=by.device) - by[0, :, None]).clamp(0, height - 1)  # (N, H)
    columns = (torch.arange(width, device=by.device) - by[1, :, None]).clamp(0, width - 1)  # (N, W)
    which = torch.arange(n, device=by.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def data_folder() -> Path:
    """Where downloaded data sets are kept: `$MILLINAS_DATA`, or the folder of caches."""
    return Path(os.environ["MILLINAS_DATA"]) if os.environ.get("MILLINAS_DATA") else cache_folder()


def load_data(
    spec: str, input_shape: tuple[int, int, int], *, seed: int = 0, val_fraction: float = 0.2, limit: int | None = None
) -> Data:
    """Find a data set: `digits`, with a folder `cifar10:PATH`, with options of its own `imagefolder:PATH,skip_corrupt`.

    Args:
        spec: a comma is a part of the path where such a path exists.
        input_shape, seed, val_fraction, limit: see `DataRequest`.

    Raises:
        InputError: unknown name or option, missing folder, unreadable or contradictory files, or numbers that make no
            sense.
    """
    name, colon, path = spec.partition(":")
    if not colon:
        name, *pieces = name.split(",")
    else:
        path, pieces = _cut(path)
    if name not in datasets.names():
        raise InputError(suggest("dataset", name, datasets.names()))
    if colon and not path:
        raise InputError(f"dataset {spec!r}: a folder is expected after the colon")
    options = _options(name, pieces)
    if len(input_shape) != 3 or input_shape[0] not in (1, 3) or min(input_shape) < 1:
        raise InputError(f"dataset {name}: images are (1 or 3, height, width), not {tuple(input_shape)}")
    if not 0 < val_fraction < 1:
        raise InputError(f"dataset {name}: val_fraction is between 0 and 1, not {val_fraction}")
    if limit is not None and limit < 2:
        raise InputError(f"dataset {name}: limit is at least 2 images, not {limit}")
    folder = Path(path).expanduser() if path else None
    return load(DataRequest(name, folder, input_shape, seed, val_fraction, limit, options))


def _cut(text: str) -> tuple[str, list[str]]:
    """A path and the options behind it: the longest path that exists, else up to the first comma."""
    pieces = text.split(",")
    for count in range(len(pieces), 1, -1):
        if Path(",".join(pieces[:count])).expanduser().exists():
            return ",".join(pieces[:count]), pieces[count:]
    return pieces[0], pieces[1:]


def _options(name: str, pieces: Iterable[str]) -> dict[str, str]:
    """Options by name, each known to the data set and with a value where it takes one."""
    known = datasets.options(name)
    found = {}
    for piece in pieces:
        key, equals, value = piece.partition("=")
        if key not in known:
            raise InputError(f"dataset {name}: {suggest('option', key, known)}")
        if known[key] != bool(value) or (equals and not value):
            raise InputError(f"dataset {name}: write {key}{'=VALUE' if known[key] else ' alone'}, not {piece!r}")
        found[key] = value
    return found


def load(request: DataRequest) -> Data:
    """The data of a request that is known to make sense; raises as `load_data`."""
    return cast(Data, datasets.loader(request.name)(request))
