"""Data sets: what every one of them gives, and what is said when files are not as they should be."""

import gzip
import hashlib
import itertools
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor
from torchvision.transforms import v2

from nas.core.errors import InputError
from nas.evaluation import datasets
from nas.evaluation.data import Data, MemorySplit, channel_statistics, load_data, shifted, stratified_order
from nas.evaluation.datasets import _streamed, fashion_mnist
from nas.evaluation.datasets._idx import read_idx

SHAPE = (3, 32, 32)


def write_idx(path: Path, values: np.ndarray) -> None:
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def fashion_folder(tmp_path):
    """60 training and 10 test images of noise in the files of Fashion-MNIST, the labels uncompressed."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("t10k", 10)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(n) % 10)
    return tmp_path


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """50 training and 10 test images of noise in the format of CIFAR-10, with checksums that torchvision accepts."""
    base = tmp_path / torchvision.datasets.CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    parts = {
        name: write(
            name, {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(n)]}
        )
        for name, n in (("data_batch_1", 50), ("test_batch", 10))
    }
    filename, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", [parts["data_batch_1"]])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [parts["test_batch"]])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", {"filename": filename, "key": "label_names", "md5": md5})
    return tmp_path


@pytest.fixture
def image_folder(tmp_path, monkeypatch):
    """Ten training and four test images of 40x30 pixels in each of two classes, black and white, decoded in-process."""
    monkeypatch.setattr(_streamed, "_loaders", lambda: 0)
    for part, n in (("train", 10), ("val", 4)):
        for name, shade in (("dark", 0), ("light", 255)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("L", (40, 30), shade).save(folder / f"{i}.png")
    return tmp_path


def all_labels(split) -> list[int]:
    return [int(label) for _, labels in split.batches(7) for label in labels]


def images_of(split, **options) -> torch.Tensor:
    return torch.cat([images for images, _ in split.batches(8, **options)])


def test_the_shipped_data_sets_are_registered_by_their_files():
    assert datasets.names() == ["cifar10", "cifar100", "digits", "fashion-mnist", "hf", "imagefolder"]


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10", "imagefolder"])
def test_every_data_set_gives_normalised_batches_of_the_shape_asked_for(name, request):
    folders = {"fashion-mnist": "fashion_folder", "cifar10": "cifar_folder", "imagefolder": "image_folder"}
    spec = f"{name}:{request.getfixturevalue(folders[name])}" if name in folders else name
    for shape in ((3, 32, 32), (1, 24, 40)):
        data = load_data(spec, shape, seed=1)
        assert data.name == name
        for split in (data.train, data.val, data.test):
            images, labels = next(split.batches(4))
            assert images.shape == (4, *shape)
            assert images.dtype == torch.float32
            assert labels.dtype == torch.int64
            assert sorted(set(all_labels(split))) == list(range(data.classes))
            assert len(all_labels(split)) == len(split)
            assert split.classes == data.classes


def test_digits_are_those_of_scikit_learn_each_in_one_split():
    values, labels = load_digits(return_X_y=True)
    expected = sorted(
        (tuple(np.round(row * 255 / 16).astype(int)), int(y)) for row, y in zip(values, labels, strict=True)
    )
    data = load_data("digits", SHAPE)
    found = [
        (tuple(image.flatten().tolist()), int(label))
        for split in (data.train, data.val, data.test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    assert sorted(found) == expected
    assert (len(data.train), len(data.val), len(data.test)) == (1150, 287, 360)


def test_the_division_depends_on_the_seed_and_the_test_split_does_not():
    first, again, other = (load_data("digits", SHAPE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.val.images, again.val.images)
    assert not torch.equal(first.val.images, other.val.images)
    assert torch.equal(first.test.images, other.test.images)


def test_limit_bounds_train_and_val_together_and_leaves_test_whole():
    data = load_data("digits", SHAPE, limit=100, val_fraction=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (75, 25, 360)


def test_every_beginning_of_a_stratified_order_holds_the_classes_in_proportion():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified_order(labels, seed=3)
    assert sorted(order.tolist()) == list(range(100))
    for n in (10, 37, 80):
        counts = torch.bincount(labels[order[:n]], minlength=3)
        assert (counts - n * torch.tensor([0.6, 0.3, 0.1])).abs().max() <= 1
    assert order.tolist() != stratified_order(labels, seed=4).tolist()


def test_channel_statistics_equal_those_computed_in_float64():
    images = torch.randint(0, 256, (50, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(images)
    values = images.double().transpose(0, 1).reshape(3, -1)
    torch.testing.assert_close(mean, values.mean(1).float())
    torch.testing.assert_close(std, values.std(1, unbiased=False).float())


def test_a_training_split_has_mean_zero_and_deviation_one_in_its_own_size():
    data = load_data("digits", (1, 8, 8))
    images = images_of(data.train)
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-4


def test_grey_images_are_repeated_and_upsampled_as_torchvision_does():
    images, labels = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64)
    split = MemorySplit(images, labels, 1, SHAPE, torch.zeros(1), torch.ones(1))
    expected = v2.functional.resize(images.float(), [32, 32]).expand(-1, 3, -1, -1)
    torch.testing.assert_close(images_of(split), expected)


def test_a_seed_shuffles_without_loss_and_leaves_out_the_incomplete_batch():
    split = load_data("digits", SHAPE, limit=100).train
    batches = [labels for _, labels in split.batches(32, seed=5)]
    assert [len(labels) for labels in batches] == [32, 32]
    assert torch.equal(torch.cat(batches), torch.cat([labels for _, labels in split.batches(32, seed=5)]))
    assert not torch.equal(torch.cat(batches), torch.cat([labels for _, labels in split.batches(32, seed=6)]))
    once_each = images_of(split, seed=5)
    assert len(torch.unique(once_each.flatten(1), dim=0)) == len(once_each)


def test_augment_sees_each_image_as_bytes():
    split = load_data("digits", SHAPE, limit=20).train
    seen = []
    black = images_of(split, augment=lambda image: seen.append((image.dtype, image.shape)) or torch.zeros_like(image))
    assert seen == [(torch.uint8, (1, 8, 8))] * len(split)
    torch.testing.assert_close(black, (-split.mean / split.std).expand(len(split), *SHAPE))


def test_shifted_images_are_rolled_but_for_the_edge_that_fills_the_gap():
    images = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    down, right = shifted(images, torch.tensor([[1, 0], [0, 2]]))
    assert torch.equal(down[:, 1:], images[0, :, :-1])
    assert torch.equal(down[:, 0], images[0, :, 0])
    assert torch.equal(right[:, :, 2:], images[1, :, :, :-2])
    assert torch.equal(right[:, :, 0], images[1, :, :, 0])


def test_idx_files_are_read_as_torchvision_reads_them(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 4, 3))
    for name in ("plain", "packed.gz"):
        write_idx(tmp_path / name, values)
        assert read_idx(tmp_path / name).tolist() == values.tolist()
    assert torch.equal(read_idx(tmp_path / "plain"), read_sn3_pascalvincent_tensor(str(tmp_path / "plain")))


@pytest.mark.skipif(not fashion_mnist.DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_installed_fashion_mnist_has_its_published_counts():
    data = load_data("fashion-mnist", SHAPE)
    labels = torch.cat([data.train.labels, data.val.labels])
    assert torch.bincount(labels).tolist() == [6000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    everything = torch.cat([data.train.images, data.val.images]).double() / 255
    assert float(everything.mean()) == pytest.approx(0.2860, abs=5e-5)  # widely used figures of the training images
    assert float(everything.std()) == pytest.approx(0.3530, abs=5e-5)


IMAGES = "train-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "cannot be read"),
        (lambda path: path.write_bytes(b"not gzip"), "cannot be read"),
        (
            lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1])),
            "header promises 47056",
        ),
        (lambda path: path.write_bytes(gzip.compress(b"")), "starts with nothing"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0")), "6 bytes"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x0d\x01\0\0\0\0")), "not an idx file of bytes"),
        (lambda path: write_idx(path, np.zeros((59, 28, 28))), "shape"),
        (lambda path: path.unlink(), "lacks"),
    ],
)
def test_a_damaged_idx_file_is_named_with_the_reason(fashion_folder, spoil, reason):
    spoil(fashion_folder / IMAGES)
    with pytest.raises(InputError, match=IMAGES) as caught:
        load_data(f"fashion-mnist:{fashion_folder}", SHAPE)
    assert reason in str(caught.value)


def test_a_label_beyond_the_classes_is_refused(fashion_folder):
    write_idx(fashion_folder / "t10k-labels-idx1-ubyte", np.arange(10) + 1)
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte: label 10"):
        load_data(f"fashion-mnist:{fashion_folder}", SHAPE)


def test_a_failed_download_says_how_to_get_the_files(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("MILLINAS_DATA", str(tmp_path))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "absent")
    monkeypatch.setattr(fashion_mnist, "FashionMNIST", refuse)
    with pytest.raises(InputError, match=r"no route to host.*dataset-fashion-mnist.*fashion-mnist:PATH"):
        load_data("fashion-mnist", SHAPE)


def test_cifar_images_keep_their_colours(cifar_folder):
    data = load_data(f"cifar10:{cifar_folder}", SHAPE)
    raw = pickle.loads((cifar_folder / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert torch.equal(data.test.images, torch.from_numpy(raw["data"]).view(10, 3, 32, 32))
    assert data.test.labels.tolist() == raw["labels"]


def test_damaged_cifar_files_are_refused(cifar_folder):
    path = cifar_folder / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="has no intact cifar-10-batches-py"):
        load_data(f"cifar10:{cifar_folder}", SHAPE)


def test_streamed_images_have_the_pixels_and_labels_of_their_files(image_folder):
    test = load_data(f"imagefolder:{image_folder}", SHAPE).test
    for image, label in zip(images_of(test), all_labels(test), strict=True):
        shade = label * torch.ones(3, 1, 1)  # dark 0, light 1; ImageNet's published mean and deviation
        expected = (shade - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
            [0.229, 0.224, 0.225]
        ).view(3, 1, 1)
        torch.testing.assert_close(image, expected.expand(3, 32, 32))


@pytest.fixture
def noise_folder(image_folder):
    """The same files with noise in them, so that no image equals another."""
    rng = np.random.default_rng(0)
    for path in image_folder.rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return image_folder


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than one core
def test_streamed_crops_depend_on_the_seed_and_not_on_the_processes_that_decode(noise_folder, monkeypatch):
    train = load_data(f"imagefolder:{noise_folder}", SHAPE).train
    here, again, other = (images_of(train, seed=seed) for seed in (1, 1, 2))
    monkeypatch.setattr(_streamed, "_loaders", lambda: 2)
    assert torch.equal(here, again)
    assert torch.equal(here, images_of(train, seed=1))
    assert not any(torch.equal(a, b) for a in here for b in other)


def test_streamed_images_are_shuffled_by_the_seed(noise_folder):
    test = load_data(f"imagefolder:{noise_folder}", SHAPE).test
    in_order, shuffled, other = images_of(test), images_of(test, seed=1), images_of(test, seed=2)
    assert sorted(shuffled.sum((1, 2, 3)).tolist()) == sorted(in_order.sum((1, 2, 3)).tolist())
    assert not torch.equal(shuffled, in_order)
    assert not torch.equal(shuffled, other)


@pytest.mark.parametrize(("kept", "why"), [(0, "of no known format"), (20, ""), (50, "truncated")])
def test_a_truncated_image_is_named(image_folder, kept, why):
    path = image_folder / "val" / "dark" / "2.png"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=rf"dark/2\.png: not a readable image \(.*{why}"):
        all_labels(load_data(f"imagefolder:{image_folder}", SHAPE).test)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than one core
@pytest.mark.parametrize("loaders", [0, 1])
def test_an_unreadable_image_is_named_in_one_line_whoever_decodes_it(image_folder, monkeypatch, loaders):
    path = image_folder / "val" / "dark" / "2.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)  # Pillow raises a SyntaxError
    monkeypatch.setattr(_streamed, "_loaders", lambda: loaders)
    with pytest.raises(InputError) as caught:
        all_labels(load_data(f"imagefolder:{image_folder}", SHAPE).test)
    assert str(caught.value).startswith(f"{path}: not a readable image (")
    assert str(caught.value).endswith(
        f"; remove it or fetch it again, or leave out what cannot be read: imagefolder:{image_folder},skip_corrupt"
    )
    assert "\n" not in str(caught.value)


def test_a_link_to_nowhere_is_named(image_folder):
    path = image_folder / "train" / "dark" / "11.png"
    path.symlink_to(image_folder / "gone.png")
    with pytest.raises(InputError, match=r"dark/11\.png: not a readable image \(No such file"):
        load_data(f"imagefolder:{image_folder}", SHAPE)


def change_content(folder: Path) -> None:
    content = bytearray(gzip.decompress((folder / IMAGES).read_bytes()))
    content[-1] ^= 1
    (folder / IMAGES).write_bytes(gzip.compress(bytes(content)))


def change_label(folder: Path) -> None:
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


@pytest.mark.parametrize("change", [change_content, change_label])
def test_the_fingerprint_in_memory_is_that_of_every_byte_and_of_nothing_else(fashion_folder, change):
    def fingerprint(shape=SHAPE, **options) -> str:
        return load_data(f"fashion-mnist:{fashion_folder}", shape, **options).fingerprint

    before = fingerprint()
    assert len(before) == 16
    assert fingerprint((1, 16, 16), seed=3, limit=30, val_fraction=0.5) == before
    change(fashion_folder)
    assert fingerprint() != before


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "train" / "dark" / "3.png").rename(root / "train" / "dark" / "30.png"),
        lambda root: (root / "val" / "dark" / "3.png").rename(root / "val" / "light" / "13.png"),
        lambda root: Image.new("L", (400, 300), 0).save(root / "val" / "dark" / "3.png"),
        lambda root: (root / "train" / "dark" / "3.png").unlink(),
    ],
)
def test_the_fingerprint_of_a_folder_tells_names_labels_and_sizes_and_not_where_it_lies(image_folder, change):
    def fingerprint(root: Path, **options) -> str:
        return load_data(f"imagefolder:{root}", SHAPE, **options).fingerprint

    before = fingerprint(image_folder)
    moved = image_folder / "moved"
    moved.mkdir()
    for part in ("train", "val"):
        (image_folder / part).rename(moved / part)
    assert fingerprint(moved, seed=5, limit=12) == before
    change(moved)
    assert fingerprint(moved) != before


def test_two_folders_of_images_of_equal_names_and_sizes_have_two_fingerprints(tmp_path):
    """Images that are not compressed."""
    found = set()
    for root, shade in ((tmp_path / "a", 10), (tmp_path / "b", 20)):
        for part, name, number in itertools.product(("train", "val"), ("dark", "light"), range(6)):
            path = root / part / name / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 30), shade + (200 if name == "light" else 0)).save(path)
        found.add(load_data(f"imagefolder:{root}", SHAPE).fingerprint)
    assert len({path.stat().st_size for path in tmp_path.rglob("*.bmp")}) == 1
    assert len(found) == 2


def test_a_data_set_that_tells_no_fingerprint_has_one_of_what_its_splits_say():
    data = load_data("digits", SHAPE)
    plain, smaller = (
        Data(data.request, 10, train, data.val, data.test, mirrors=False)
        for train in (data.train, load_data("digits", SHAPE, limit=200).train)
    )
    assert len(plain.fingerprint) == 16
    assert plain.fingerprint != smaller.fingerprint


def test_classes_that_only_one_part_has_are_named(image_folder):
    (image_folder / "val" / "light").rename(image_folder / "val" / "lihgt")
    with pytest.raises(InputError, match="lihgt"):
        load_data(f"imagefolder:{image_folder}", SHAPE)


@pytest.mark.parametrize("empty", ["train", "val/dark"])
def test_a_folder_without_images_is_named(image_folder, empty):
    for path in (image_folder / empty).rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=str(image_folder / empty.split("/")[0])):
        load_data(f"imagefolder:{image_folder}", SHAPE)


def spoil(root: Path) -> None:
    """Three files that cannot be read, each in another way; 25 of 28 images stay."""
    (root / "train" / "dark" / "1.png").write_bytes(b"")
    (root / "train" / "light" / "7.png").write_text("<html>not found</html>")
    path = root / "val" / "light" / "0.png"
    path.write_bytes(path.read_bytes()[:50])


def test_unreadable_images_are_named_and_counted(image_folder):
    spoil(image_folder)
    with pytest.raises(InputError) as caught:
        all_labels(load_data(f"imagefolder:{image_folder}", SHAPE).test)
    text = str(caught.value)
    assert text.startswith(f"{image_folder}/val/light/0.png: not a readable image (")
    assert " object at 0x" not in text
    assert "; 3 of 28 images cannot be read: " in text
    assert all(f"{image_folder}/{name}" in text for name in ("train/dark/1.png", "train/light/7.png"))
    assert text.endswith(f"fetch them again, or leave out what cannot be read: imagefolder:{image_folder},skip_corrupt")


def test_images_that_cannot_be_read_are_left_out_where_that_is_asked_for(noise_folder):
    """What remains is what the folder without them is."""
    spoil(noise_folder)
    (noise_folder / "train" / "dark" / "11.png").symlink_to(noise_folder / "gone.png")
    found = load_data(f"imagefolder:{noise_folder},skip_corrupt", SHAPE)
    assert found.notes[0].startswith("4 of 29 images cannot be read: ")
    assert found.notes[0].endswith(", ..., and left out")
    for name in ("train/dark/1.png", "train/dark/11.png", "train/light/7.png", "val/light/0.png"):
        (noise_folder / name).unlink()
    clean = load_data(f"imagefolder:{noise_folder}", SHAPE)
    assert clean.notes == ()
    assert found.fingerprint == clean.fingerprint
    for name in ("train", "val", "test"):
        assert torch.equal(images_of(getattr(found, name)), images_of(getattr(clean, name)))
        assert all_labels(getattr(found, name)) == all_labels(getattr(clean, name))
    assert found.identity == clean.identity | {"options": {"skip_corrupt": ""}}
    assert "options" not in clean.identity  # checkpoints from before there were any go on


def test_which_images_cannot_be_read_is_found_out_once(image_folder, monkeypatch):
    spoil(image_folder)
    (image_folder / "train" / "dark" / "0.png").write_bytes(b"no image")  # so that the set is this test's own
    spec, opened = f"imagefolder:{image_folder},skip_corrupt", []
    read = _streamed._read
    monkeypatch.setattr(_streamed, "_read", lambda images, index: opened.append(index) or read(images, index))
    first = load_data(spec, SHAPE)
    assert sorted(opened) == list(range(28))
    assert load_data(spec, SHAPE).notes == first.notes
    assert len(opened) == 28


def test_a_class_that_loses_all_its_images_is_named(image_folder):
    for path in (image_folder / "train" / "dark").glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of the images of dark can be read"):
        load_data(f"imagefolder:{image_folder},skip_corrupt", SHAPE)


@pytest.mark.parametrize("layout", ["flat", "train", "test"])
def test_a_folder_that_is_not_divided_is_divided_the_same_way_for_every_seed(noise_folder, layout):
    root = noise_folder
    if layout == "test":
        (root / "val").rename(root / "test")
    else:
        (root / "val").rename(root.parent / f"{root.name}-val")
    if layout == "flat":
        root = root / "train"
    first, other = (load_data(f"imagefolder:{root}", SHAPE, seed=seed) for seed in (1, 2))
    assert first.class_names == ("dark", "light")
    assert first.fingerprint == other.fingerprint
    assert torch.equal(images_of(first.test), images_of(other.test))
    if layout == "test":
        assert first.notes == ()
        return
    assert [len(split) for split in (first.train, first.val, first.test)] == [13, 3, 4]
    assert first.test.class_counts == (2, 2)
    paths = [first.train.images.name(i) for split in (first.train, first.val, first.test) for i in split.indices]
    assert sorted(paths) == sorted(str(path) for path in root.rglob("*.png"))
    assert first.notes == (
        f"{root} has neither val/ nor test/: 4 of its 20 images, each class in proportion (seed 0, whatever the "
        "request's), are held out as test",
    )


def test_images_of_every_kind_are_shown_as_a_page_shows_them(image_folder):
    """Grey, grey of 16 bits, palettes, transparent ones: each of known colour, or transparent before white."""
    red, half = (255, 0, 0), (255, 128, 128)
    rgba = Image.new("RGBA", (40, 30), (*red, 128))
    palette = Image.new("P", (40, 30), 1)
    palette.putpalette([0, 0, 0, *red])
    clear = palette.copy()
    clear.info["transparency"] = 1
    deep = Image.fromarray(np.full((30, 40), 100 * 256 + 7, dtype=np.uint16))
    kinds = {
        "grey": (Image.new("L", (40, 30), 90), (90, 90, 90)),
        "grey-alpha": (Image.new("LA", (40, 30), (0, 0)), (255, 255, 255)),
        "deep": (deep, (100, 100, 100)),
        "bits": (Image.new("1", (40, 30), 1), (255, 255, 255)),
        "rgba": (rgba, half),
        "palette": (palette, red),
        "clear": (clear, (255, 255, 255)),
        "cmyk": (Image.new("CMYK", (40, 30), (0, 255, 255, 0)), red),
    }
    for path in (image_folder / "val" / "dark").glob("*.png"):
        path.unlink()
    for name, (image, _) in kinds.items():
        image.save(image_folder / "val" / "dark" / f"{name}.{'tif' if name == 'cmyk' else 'png'}")
    test = load_data(f"imagefolder:{image_folder}", SHAPE).test
    found = {
        Path(test.images.name(i)).stem: test.cropped(_streamed.as_rgb(test.images.open(i)), None) for i in range(20, 28)
    }
    assert found.keys() == kinds.keys()
    for name, (_, colour) in kinds.items():
        off = (found[name].int() - torch.tensor(colour)[:, None, None]).abs().max()
        assert off <= 1, name
    grey = load_data(f"imagefolder:{image_folder}", (1, 32, 32)).test
    assert images_of(grey).shape == (12, 1, 32, 32)


def test_a_folder_whose_name_has_a_comma_is_found(image_folder):
    other = image_folder.parent / f"{image_folder.name},skip_corrupt"
    image_folder.rename(other)
    assert load_data(f"imagefolder:{other}", SHAPE).request.options == {}
    data = load_data(f"imagefolder:{other},skip_corrupt", SHAPE)
    assert data.request.options == {"skip_corrupt": ""}
    assert load_data(data.request.spec, SHAPE).request == data.request


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (",skip_corupt", "unknown option 'skip_corupt', did you mean 'skip_corrupt'"),
        (",skip_corrupt=yes", "write skip_corrupt alone, not 'skip_corrupt=yes'"),
        (",", "unknown option ''"),
        ("/val", "no train/|one class"),
        ("/train/dark", "should hold one folder of images a class"),
    ],
)
def test_what_a_folder_cannot_be_is_explained(image_folder, spec, message):
    for path in (image_folder / "val" / "light").glob("*.png"):
        path.unlink()
    (image_folder / "val" / "light").rmdir()
    with pytest.raises(InputError, match=message):
        load_data(f"imagefolder:{image_folder}{spec}", SHAPE)


def test_images_to_test_on_without_any_to_train_on_are_refused(image_folder):
    (image_folder / "train").rename(image_folder / "other")
    with pytest.raises(InputError, match="has no train/ beside"):
        load_data(f"imagefolder:{image_folder}", SHAPE)


def test_without_hugging_faces_datasets_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'millinas\[hf\]'"):
        load_data(f"hf:{tmp_path}", SHAPE)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("digits,skip_corrupt", {}, "unknown option 'skip_corrupt'"),
        ("digts", {}, "did you mean 'digits'"),
        ("fashion_mnist", {}, "did you mean 'fashion-mnist'"),
        ("digits:/tmp", {}, "takes no folder"),
        ("imagefolder", {}, "imagefolder:PATH"),
        ("hf", {}, "hf:NAME"),
        ("cifar10:", {}, "folder is expected"),
        ("cifar10:/no/such/folder", {}, "/no/such/folder"),
        ("imagefolder:/no/such/folder", {}, "/no/such/folder"),
        ("digits", {"input_shape": (2, 32, 32)}, "1 or 3"),
        ("digits", {"input_shape": (3, 32, 0)}, "1 or 3"),
        ("digits", {"val_fraction": 1.0}, "between 0 and 1"),
        ("digits", {"limit": 1}, "at least 2"),
        ("digits", {"limit": 3, "val_fraction": 0.1}, "0 to validate on"),
    ],
)
def test_what_cannot_be_loaded_is_explained(spec, options, message):
    with pytest.raises(InputError, match=message):
        load_data(spec, **{"input_shape": SHAPE} | options)
