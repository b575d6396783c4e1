"""Fashion-MNIST: 70,000 grey images of clothes, 28x28, ten classes. Xiao, Rasul and Vollgraf, arXiv:1708.07747.

Read from the folder the user names, else from where Debian's package `dataset-fashion-mnist` puts it, else downloaded
by torchvision.
"""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import FashionMNIST

from nas.core.errors import InputError
from nas.evaluation.data import Data, DataRequest, Labelled, data_folder, in_memory
from nas.evaluation.datasets._idx import read_idx

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = 10


def load(request: DataRequest) -> Data:
    folder = request.folder() or _installed() or _downloaded()
    train, test = (_labelled(folder, part) for part in ("train", "t10k"))
    return in_memory(request, CLASSES, train, test, mirrors=True, class_names=FashionMNIST.classes)


def _installed() -> Path | None:
    return DEBIAN_FOLDER if DEBIAN_FOLDER.is_dir() else None


def _downloaded() -> Path:
    """Raises: InputError, saying how to get the files otherwise."""
    try:
        return Path(FashionMNIST(str(data_folder()), download=True).raw_folder)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"dataset fashion-mnist: download into {data_folder()} failed ({error}). Install Debian's package "
            f"dataset-fashion-mnist, or name a folder that holds the idx files: fashion-mnist:PATH"
        ) from error


def _labelled(folder: Path, part: str) -> Labelled:
    """Images (N, 1, h, w) and labels (N,) of one part, `train` or `t10k`.

    Raises:
        InputError: naming the file that is missing, damaged, or contradicts the other.
    """
    images_file, labels_file = _find(folder, f"{part}-images-idx3-ubyte"), _find(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels) or len(images) == 0:
        raise InputError(
            f"{images_file} has shape {tuple(images.shape)} and {labels_file} {tuple(labels.shape)}; "
            f"expected (N, height, width) and (N)"
        )
    if int(labels.max()) >= CLASSES:
        raise InputError(f"{labels_file}: label {int(labels.max())}, but the classes are 0..{CLASSES - 1}")
    return images[:, None], labels.long()


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise InputError(f"dataset fashion-mnist: {folder} lacks {name}.gz (and {name})")


DATASET = load
