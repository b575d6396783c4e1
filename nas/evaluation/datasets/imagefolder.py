"""A folder of images in ImageNet's layout: PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, streamed from disk.

Our val split is held out from train/; the folder val/ is our test split, as papers report on it. Training crops are
`RandomResizedCrop`; others are resized to 8/7 of the input and cropped in the centre, as usual for ImageNet.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from PIL import UnidentifiedImageError
from PIL.Image import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from nas.core.errors import InputError
from nas.evaluation.data import Batch, Data, DataRequest, ImageTransform, Normalisation, Split, normalisation
from nas.evaluation.devices import seeded
from nas.evaluation.sampler import PlannedBatch

CROP_SHARE = 0.875
LOADERS_MAX = 8


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
    )


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
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # else it draws from the global one
        )
        mean, std = (torch.tensor(value).to(device)[:, None, None] for value in self.normalisation)
        for images, labels in loader:
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


class _Files(Dataset[tuple[Tensor, int]]):
    """Decoded, transformed files. What is drawn for an image depends on `seed` and its index, not on who loads it."""

    def __init__(self, split: FolderSplit, augment: ImageTransform | None, seed: int) -> None:
        self.split, self.augment, self.seed = split, augment, seed

    def __getitem__(self, item: tuple[int, int | None]) -> tuple[Tensor, int]:
        index, side = item
        path, label = self.split.samples[index]
        try:
            image = default_loader(path)
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{path}: not a readable image ({error}); remove it or fetch it again") from error
        with seeded(self.seed * len(self.split) + index):
            shown = self.split.cropped(image, side)
            return shown if self.augment is None else self.augment(shown), label


def _loaders() -> int:
    """Processes that decode images: one for each core that is ours, up to a limit; none in a daemon, which may not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if multiprocessing.current_process().daemon else min(LOADERS_MAX, cores)


DATASET = load
