"""What the two CIFAR data sets share. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009."""

from __future__ import annotations

import torch
from torchvision.datasets import CIFAR10

from nas.core.errors import InputError
from nas.evaluation.data import Data, DataRequest, Labelled, data_folder, in_memory


def load_cifar(request: DataRequest, dataset: type[CIFAR10], classes: int) -> Data:
    """Read the python version of CIFAR from the user's folder, or download it once; torchvision checks its checksums.

    Raises:
        InputError: the folder lacks it or holds damaged files, or the download failed.
    """
    folder = request.folder()
    root = folder or data_folder()

    def part(train: bool) -> tuple[Labelled, list[str]]:
        read = dataset(str(root), train=train, download=folder is None)
        return (torch.from_numpy(read.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(read.targets)), read.classes

    try:
        (train, names), (test, _) = part(train=True), part(train=False)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"dataset {request.name}: {root} has no intact {dataset.base_folder} ({error}). "
            f"Unpack {dataset.url} in a folder and write {request.name}:FOLDER"
        ) from error
    return in_memory(request, classes, train, test, mirrors=True, class_names=names)
