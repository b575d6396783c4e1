"""A folder of images in ImageNet's layout: PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, streamed from disk.

Our val split is held out from train/; the folder val/ is our test split, as papers report on it. Training crops are
`RandomResizedCrop`; others are resized to 8/7 of the input and cropped in the centre, as usual for ImageNet.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL.Image import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from nas.core.errors import InputError
from nas.evaluation.data import (
    Batch,
    Data,
    DataRequest,
    ImageTransform,
    Normalisation,
    Split,
    fingerprint_of,
    normalisation,
)
from nas.evaluation.devices import seeded
from nas.evaluation.sampler import PlannedBatch

CROP_SHARE = 0.875
LOADERS_MAX = 8
READ_AT_ONCE = 16
SAMPLED, SAMPLED_BYTES = 512, 2**14  # files whose content counts in a fingerprint, and how much of each
REMEDY = "remove it or fetch it again"


def load(request: DataRequest) -> Data:
    root = request.folder()
    if root is None:
        raise InputError("dataset imagefolder needs a folder with train/ and val/ in it: imagefolder:PATH")
    seen, final = _listed(root / "train"), _listed(root / "val")
    if seen.classes != final.classes:
        odd = sorted(set(seen.classes) ^ set(final.classes))
        raise InputError(
            f"{root}: train/ has {len(seen.classes)} classes and val/ {len(final.classes)}; "
            f"in only one of them: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}"
        )
    for_training, for_val = request.divide(torch.tensor(seen.targets))

    def split(samples: list[tuple[str, int]], training: bool) -> FolderSplit:
        return FolderSplit(tuple(samples), len(seen.classes), request.input_shape, training)

    return Data(
        request,
        len(seen.classes),
        train=split([seen.samples[i] for i in for_training.tolist()], training=True),
        val=split([seen.samples[i] for i in for_val.tolist()], training=False),
        test=split(final.samples, training=False),
        mirrors=True,
        fingerprint=_fingerprint(root, [*seen.samples, *final.samples]),
    )


def _fingerprint(root: Path, samples: Sequence[tuple[str, int]]) -> str:
    """Of the names below `root`, sizes and labels of all files, and of the content of some, spread evenly: images that
    are not compressed all have one size.
    """
    paths, labels = zip(*samples, strict=True)
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:  # a network disk takes its time for each
        try:
            sizes = list(pool.map(os.path.getsize, paths))
            contents = list(pool.map(_content, paths[:: math.ceil(len(paths) / SAMPLED)]))
        except OSError as error:  # such as a link to nowhere
            raise InputError(f"{error.filename}: not a readable image ({error.strerror}); {REMEDY}") from error
    lines = [
        os.fsencode(f"{label} {size} {path.removeprefix(str(root))}")
        for path, label, size in zip(paths, labels, sizes, strict=True)
    ]
    return fingerprint_of(*lines, *contents)


def _content(path: str) -> bytes:
    """The end of a file: the beginning of many formats is all header."""
    with open(path, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - SAMPLED_BYTES, 0))
        return file.read(SAMPLED_BYTES)


def _listed(folder: Path) -> ImageFolder:
    try:
        return ImageFolder(str(folder))
    except FileNotFoundError as error:  # no folder, no class in it, or a class without images
        raise InputError(f"dataset imagefolder: {folder} should hold one folder of images a class ({error})") from error


@dataclass(frozen=True)
class FolderSplit(Split):
    """Image files with labels, normalised by ImageNet's mean and deviation; `training` says which crop is taken."""

    samples: tuple[tuple[str, int], ...]
    classes: int
    input_shape: tuple[int, int, int]
    training: bool

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def normalisation(self) -> Normalisation:
        return normalisation(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, self.input_shape[0])

    @property
    def class_counts(self) -> tuple[int, ...]:
        labels = torch.tensor([label for _, label in self.samples])
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
            _Files(self, augment, seed),
            batch_sampler=[[(index, side) for index in indices.tolist()] for indices, side in plan],
            num_workers=_loaders(),
            collate_fn=_collated,
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # else it draws from the global one
        )
        mean, std = (torch.tensor(value).to(device)[:, None, None] for value in self.normalisation)
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            images, labels = batch
            floats = images.to(device, non_blocking=True).float()
            yield (floats - mean) / std, labels.to(device, non_blocking=True)

    def cropped(self, image: Image, side: int | None) -> Tensor:
        """The part of an image that is shown, as bytes (C, side, side); None is the split's own size."""
        channels, *own = self.input_shape
        size = own if side is None else [side, side]
        shown = v2.functional.to_grayscale(image) if channels == 1 else image
        if self.training:
            return cast(Tensor, v2.functional.pil_to_tensor(v2.RandomResizedCrop(size)(shown)))
        resized = v2.functional.resize(shown, [round(max(size) / CROP_SHARE)])
        return cast(Tensor, v2.functional.pil_to_tensor(v2.functional.center_crop(resized, size)))


Item = tuple[Tensor, int] | InputError
"""An image with its label, or why it cannot be read."""


class _Files(Dataset[Item]):
    """Decoded, transformed files. What is drawn for an image depends on `seed` and its index, not on who loads it."""

    def __init__(self, split: FolderSplit, augment: ImageTransform | None, seed: int) -> None:
        self.split, self.augment, self.seed = split, augment, seed

    def __getitem__(self, item: tuple[int, int | None]) -> Item:
        index, side = item
        path, label = self.split.samples[index]
        try:
            image = default_loader(path)
        except MemoryError:
            raise
        except Exception as error:  # decoders fail in many ways: OSError, SyntaxError, ValueError, struct.error, ...
            return InputError(f"{path}: not a readable image ({error}); {REMEDY}")
        with seeded(self.seed * len(self.split) + index):
            shown = self.split.cropped(image, side)
            return shown if self.augment is None else self.augment(shown), label


def _collated(items: list[Item]) -> Any:
    """A batch of items, or what is wrong with the first that is none: an error raised in a process that decodes would
    arrive as the text of its traceback.
    """
    return next((item for item in items if isinstance(item, InputError)), None) or default_collate(items)


def _loaders() -> int:
    """Processes that decode images: one for each core that is ours, up to a limit; none in a daemon, which may not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if multiprocessing.current_process().daemon else min(LOADERS_MAX, cores)


DATASET = load
