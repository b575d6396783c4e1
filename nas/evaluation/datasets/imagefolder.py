"""A folder of images in ImageNet's layout: PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, streamed from disk.

Our val split is held out from train/; the folder val/ is our test split, as papers report on it. Training crops are
`RandomResizedCrop`; others are resized to 8/7 of the input and cropped in the centre, as usual for ImageNet.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import UnidentifiedImageError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from nas.errors import InputError
from nas.evaluation.data import Batch, Data, DataRequest, ImageTransform, Split

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

    def batches(
        self,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        seed: int | None = None,
        augment: ImageTransform | None = None,
    ) -> Iterator[Batch]:
        steps = [*self._crop(), v2.PILToTensor(), *([augment] if augment is not None else [])]
        loader = DataLoader(
            _Files(self.samples, v2.Compose(steps), seed or 0),
            batch_size,
            shuffle=seed is not None,
            drop_last=seed is not None,
            num_workers=_loaders(),
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator().manual_seed(seed or 0),
        )
        channels = self.input_shape[0]
        mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN) * 255, torch.tensor(IMAGENET_DEFAULT_STD) * 255
        if channels == 1:
            mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
        mean, std = (value.to(device)[:, None, None] for value in (mean, std))
        for images, labels in loader:
            floats = images.to(device, non_blocking=True).float()
            yield (floats - mean) / std, labels.to(device, non_blocking=True)

    def _crop(self) -> list[torch.nn.Module]:
        channels, height, width = self.input_shape
        grey = [v2.Grayscale(1)] if channels == 1 else []
        if self.training:
            return [*grey, v2.RandomResizedCrop((height, width))]
        return [*grey, v2.Resize(round(max(height, width) / CROP_SHARE)), v2.CenterCrop((height, width))]


class _Files(Dataset[tuple[Tensor, int]]):
    """Decoded, transformed files. What is drawn for an image depends on `seed` and its index, not on who loads it."""

    def __init__(self, samples: tuple[tuple[str, int], ...], transform: ImageTransform, seed: int) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        try:
            image = default_loader(path)
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{path}: not a readable image ({error}); remove it or fetch it again") from error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed * len(self) + index)
            return self.transform(image), label


def _loaders() -> int:
    """Processes that decode images: one a core, up to a limit; none in a daemonic process, which may not start any."""
    return 0 if multiprocessing.current_process().daemon else min(LOADERS_MAX, os.cpu_count() or 1)
