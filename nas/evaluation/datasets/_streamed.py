"""Images that are decoded while they are read, from files or rows: what data sets of such have in common.

Training crops are `RandomResizedCrop`; others are resized to 8/7 of the input and cropped in the centre, as usual for
ImageNet, whose mean and deviation they are normalised by.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import PIL
import torch
from PIL import Image, UnidentifiedImageError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms import v2

from nas.core.errors import InputError
from nas.core.remembered import remembered
from nas.evaluation.data import (
    VAL_IMAGES_MAX,
    Batch,
    Data,
    DataRequest,
    ImageTransform,
    Normalisation,
    Split,
    fingerprint_of,
    normalisation,
    stratified_order,
)
from nas.evaluation.devices import seeded
from nas.evaluation.images import as_rgb
from nas.evaluation.sampler import PlannedBatch

CROP_SHARE = 0.875
LOADERS_MAX = 8
TEST_SHARE, TEST_SEED = 0.2, 0  # of what is held out where a data set has no test images of its own
CHECKED = 10_000  # images that are looked at to say how many cannot be read
NAMED = 3  # of those


class Images(ABC):
    """Encoded images in a fixed order, each with a label.

    Attributes:
        labels: of each, 0..classes-1.
    """

    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Where one is, for messages."""

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """One of them, as Pillow opens it; raises what decoders raise."""

    @abstractmethod
    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of these images with their labels, wherever they lie; raises OSError naming one that is not there."""


def streamed(
    request: DataRequest,
    images: Images,
    class_names: Sequence[str],
    seen: Sequence[int],
    test: Sequence[int] | None,
    *,
    lacks: str,
) -> Data:
    """Data of encoded images.

    Args:
        request: with the option `skip_corrupt`, all images are decoded once to find those that cannot be, which are
            left out; what was found is remembered.
        images: all of them.
        class_names: of the labels.
        seen: those to train and validate on.
        test: the others; None where there are none, and a part of `seen` is held out: always the same images.
        lacks: what is said of that, such as "PATH has no val/".

    Raises:
        InputError: there is one class, a class has no image that can be read, or a file is not there.
    """
    if len(class_names) < 2:
        raise InputError(f"dataset {request.spec}: its images are of one class, {class_names[0]}; expected two or more")
    labels, notes = torch.tensor(images.labels), []
    if "skip_corrupt" in request.options:
        wrong = _unreadable(images, [*seen, *(test or ())])
        if wrong:
            notes.append(f"{_counted(images, wrong, len(images))}, and left out")
        whole, seen = seen, [index for index in seen if index not in wrong]
        test = None if test is None else [index for index in test if index not in wrong]
        lost = sorted({*labels[list(whole)].tolist()} - {*labels[seen].tolist()})
        if lost:
            raise InputError(f"dataset {request.spec}: none of the images of {class_names[lost[0]]} can be read")
    everything = [*seen, *(test or ())]
    if test is None:
        order = stratified_order(labels[list(seen)], TEST_SEED).tolist()
        count = min(round(len(order) * TEST_SHARE), VAL_IMAGES_MAX)
        if not 0 < count < len(order):
            raise InputError(f"dataset {request.name}: {lacks}, and {len(order)} images are too few to hold some out")
        notes.append(
            f"{lacks}: {count} of its {len(order)} images, each class in proportion (seed {TEST_SEED}, whatever the "
            "request's), are held out as test"
        )
        seen, test = [seen[i] for i in order[count:]], [seen[i] for i in order[:count]]
    try:
        fingerprint = images.fingerprint(everything)
    except OSError as error:  # such as a link to nowhere
        raise _refused(request, images, str(error.filename), error.strerror or str(error)) from error
    for_training, for_val = request.divide(labels[list(seen)])

    def split(indices: Sequence[int], training: bool) -> StreamedSplit:
        return StreamedSplit(images, tuple(indices), len(class_names), request.input_shape, training, request)

    return Data(
        request,
        len(class_names),
        train=split([seen[i] for i in for_training.tolist()], training=True),
        val=split([seen[i] for i in for_val.tolist()], training=False),
        test=split(test, training=False),
        mirrors=True,
        fingerprint=fingerprint,
        class_names=tuple(class_names),
        notes=tuple(notes),
    )


def _unreadable(images: Images, indices: Sequence[int]) -> set[int]:
    """Those of the images that cannot be decoded; remembered, since to find out takes as long as an epoch."""
    memory = remembered(fingerprint_of(b"unreadable images", PIL.__version__.encode()))
    try:
        key = images.fingerprint(indices)
    except OSError:  # one is not there, and may come
        return _undecoded(images, indices)
    places = memory.get(key)
    if places is None:
        wrong = _undecoded(images, indices)
        places = [place for place, index in enumerate(indices) if index in wrong]
        memory.put(key, places)
        memory.flush()
    return {indices[place] for place in places}


def _undecoded(images: Images, indices: Sequence[int]) -> set[int]:
    def fails(index: int) -> bool:
        return isinstance(_read(images, index), Unreadable)

    with ThreadPoolExecutor(_cores()) as pool:
        return {index for index, wrong in zip(indices, pool.map(fails, indices), strict=True) if wrong}


def _read(images: Images, index: int) -> Image.Image | Unreadable:
    try:
        return as_rgb(images.open(index))
    except MemoryError:
        raise
    except UnidentifiedImageError:  # its text is that of an object in memory
        return Unreadable(index, "of no known format")
    except Exception as error:  # decoders fail in many ways: OSError, SyntaxError, ValueError, struct.error, ...
        return Unreadable(index, str(error))


def _counted(images: Images, wrong: set[int], of: int) -> str:
    """`2 of 28 images cannot be read: a.png, b.png`."""
    listed = ", ".join(images.name(index) for index in sorted(wrong)[:NAMED])
    return f"{len(wrong)} of {of} images cannot be read: {listed}{', ...' if len(wrong) > NAMED else ''}"


def _refused(request: DataRequest, images: Images, name: str, reason: str) -> InputError:
    """What to raise for an image that cannot be read: how many others cannot, too."""
    looked = range(min(len(images), CHECKED))
    wrong = _undecoded(images, looked)
    others = any(images.name(index) != name for index in wrong)
    counted, them = (f"; {_counted(images, wrong, len(looked))}", "them") if others else ("", "it")
    without = replace(request, options={**request.options, "skip_corrupt": ""}).spec
    return InputError(
        f"{name}: not a readable image ({reason}){counted}; remove {them} or fetch {them} again, or leave out what "
        f"cannot be read: {without}"
    )


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class StreamedSplit(Split):
    """Some of the images, in an order.

    Attributes:
        images: all images of the data set.
        indices: of those of this split.
        classes: number of classes.
        input_shape: (C, H, W) of the batches.
        training: whether crops are drawn.
        request: that of the data set.
    """

    images: Images
    indices: tuple[int, ...]
    classes: int
    input_shape: tuple[int, int, int]
    training: bool
    request: DataRequest
    crop_share: ClassVar[float | None] = CROP_SHARE

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def normalisation(self) -> Normalisation:
        return normalisation(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, self.input_shape[0])

    @property
    def class_counts(self) -> tuple[int, ...]:
        labels = torch.tensor([self.images.labels[index] for index in self.indices], dtype=torch.int64)
        return tuple(torch.bincount(labels, minlength=self.classes).tolist())

    def read(
        self,
        plan: Sequence[PlannedBatch],
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        augment: ImageTransform | None = None,
    ) -> Iterator[Batch]:
        loader = DataLoader(
            _Decoded(self, augment, seed),
            batch_sampler=[[(index, side) for index in indices.tolist()] for indices, side in plan],
            num_workers=_loaders(),
            collate_fn=_collated,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # else it draws from the global one
        )
        mean, std = (torch.tensor(value).to(device)[:, None, None] for value in self.normalisation)
        for batch in loader:
            if isinstance(batch, Unreadable):
                raise _refused(self.request, self.images, self.images.name(batch.index), batch.reason)
            images, labels = batch
            floats = images.to(device, non_blocking=True).float()
            yield (floats - mean) / std, labels.to(device, non_blocking=True)

    def cropped(self, image: Image.Image, side: int | None) -> Tensor:
        """The part of an image that is shown, as bytes (C, side, side); None is the split's own size."""
        channels, *own = self.input_shape
        size = own if side is None else [side, side]
        shown = v2.functional.to_grayscale(image) if channels == 1 else image
        if self.training:
            return cast(Tensor, v2.functional.pil_to_tensor(v2.RandomResizedCrop(size)(shown)))
        resized = v2.functional.resize(shown, [round(max(size) / CROP_SHARE)])
        return cast(Tensor, v2.functional.pil_to_tensor(v2.functional.center_crop(resized, size)))


Item = tuple[Tensor, int] | Unreadable
"""An image with its label, or why it cannot be read."""


class _Decoded(Dataset[Item]):
    """Decoded, transformed images. What is drawn for one depends on `seed` and its place, not on who loads it."""

    def __init__(self, split: StreamedSplit, augment: ImageTransform | None, seed: int) -> None:
        self.split, self.augment, self.seed = split, augment, seed

    def __getitem__(self, item: tuple[int, int | None]) -> Item:
        place, side = item
        index = self.split.indices[place]
        image = _read(self.split.images, index)
        if isinstance(image, Unreadable):
            return image
        with seeded(self.seed * len(self.split) + place):
            shown = self.split.cropped(image, side)
            return shown if self.augment is None else self.augment(shown), self.split.images.labels[index]


def _collated(items: list[Item]) -> Any:
    """A batch of items, or what is wrong with the first that is none: an error raised in a process that decodes would
    arrive as the text of its traceback.
    """
    return next((item for item in items if isinstance(item, Unreadable)), None) or default_collate(items)


def evenly(indices: Sequence[int], most: int) -> Sequence[int]:
    """At most so many of them, spread evenly."""
    return indices[:: max(1, math.ceil(len(indices) / most))]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _loaders() -> int:
    """Processes that decode images: one for each core that is ours, up to a limit; none in a daemon, which may not."""
    return 0 if multiprocessing.current_process().daemon else min(LOADERS_MAX, _cores())
