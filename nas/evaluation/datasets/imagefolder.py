"""A folder of images, a folder each class, streamed from disk: PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg.

Our val split is held out from train/; the folder val/ is our test split, as papers report on ImageNet's, and where it
is missing test/ is. Where there is neither, or the classes lie in PATH itself, a fifth of the images is held out as
test, always the same ones. With `imagefolder:PATH,skip_corrupt` images that cannot be read are left out.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from torchvision.datasets import ImageFolder

from nas.core.errors import InputError
from nas.evaluation.data import Data, DataRequest, fingerprint_of
from nas.evaluation.datasets._streamed import Images, evenly, streamed

READ_AT_ONCE = 16
SAMPLED, SAMPLED_BYTES = 512, 2**14  # files whose content counts in a fingerprint, and how much of each
OPTIONS = {"skip_corrupt": False}
TESTS = ("val", "test")  # the first that there is


def load(request: DataRequest) -> Data:
    root = request.folder()
    if root is None:
        raise InputError("dataset imagefolder needs a folder, with train/ and val/ or classes in it: imagefolder:PATH")
    if not (root / "train").is_dir() and any((root / name).is_dir() for name in TESTS):
        raise InputError(f"dataset imagefolder: {root} has no train/ beside the images to test on")
    seen = _listed(root / "train" if (root / "train").is_dir() else root)
    name = next((name for name in TESTS if (root / name).is_dir()), None)
    final = _listed(root / name) if name else None
    if final is not None and seen.classes != final.classes:
        odd = sorted(set(seen.classes) ^ set(final.classes))
        raise InputError(
            f"{root}: train/ has {len(seen.classes)} classes and {name}/ {len(final.classes)}; "
            f"in only one of them: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}"
        )
    n = len(seen.samples)
    images = Files(root, [*seen.samples, *(final.samples if final else ())])
    test = range(n, len(images)) if final else None
    return streamed(request, images, seen.classes, range(n), test, lacks=f"{root} has neither val/ nor test/")


class Files(Images):
    """Image files below a folder, with their labels."""

    def __init__(self, root: Path, samples: Sequence[tuple[str, int]]) -> None:
        self.root = root
        self.paths = tuple(path for path, _ in samples)
        self.labels = tuple(label for _, label in samples)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(Path(self.paths[index]).read_bytes()))

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of the names below the folder, sizes and labels of all, and of the content of some, spread evenly: images
        that are not compressed all have one size.
        """
        paths = [self.paths[index] for index in indices]
        with ThreadPoolExecutor(READ_AT_ONCE) as pool:  # a network disk takes its time for each
            sizes = list(pool.map(os.path.getsize, paths))
            contents = list(pool.map(_content, (self.paths[index] for index in evenly(indices, SAMPLED))))
        return fingerprint_of(*self._lines(indices, sizes), *contents)

    def _lines(self, indices: Sequence[int], sizes: Sequence[int]) -> Iterator[bytes]:
        for index, size in zip(indices, sizes, strict=True):
            below = self.paths[index].removeprefix(str(self.root))
            yield os.fsencode(f"{self.labels[index]} {size} {below}")


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


DATASET = load
