"""Sets in Hugging Face's form, made here and read offline."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas.core.errors import InputError
from nas.evaluation.data import load_data
from nas.evaluation.datasets import _streamed
from nas.evaluation.runs import train_arch
from tests.small import TINY

datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed: millinas[hf]")

SHAPE = (3, 32, 32)
NAMES = ["cat", "dog", "eel"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, a cache of one's own, decoding in-process."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(_streamed, "_loaders", lambda: 0)
    datasets.disable_progress_bars()


def noise(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(count)]


def made(count: int = 30, labels=None, seed: int = 0, **columns):
    """A set of noise with three classes in turn; `columns` are further ones."""
    labels = [number % 3 for number in range(count)] if labels is None else labels
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    features |= {name: datasets.Value("string") for name in columns}
    values = {"image": noise(count, seed), "label": labels, **columns}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def parquet(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path)
    return path


def all_of(split) -> tuple[torch.Tensor, list[int]]:
    found = list(split.batches(8))
    return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found]).tolist()


def test_a_parquet_file_has_its_pixels_labels_and_class_names(tmp_path):
    data = load_data(f"hf:{parquet(tmp_path / 'x.parquet', made())}", SHAPE)
    assert data.classes == 3
    assert data.class_names == tuple(NAMES)
    assert [len(split) for split in (data.train, data.val, data.test)] == [19, 5, 6]
    assert data.notes[0].startswith(f"hf:{tmp_path}/x.parquet has no labelled split to test on: 6 of its 30 images")
    expected = noise(30)
    for split in (data.train, data.val, data.test):
        for index in split.indices:
            assert np.array_equal(np.asarray(split.images.open(index)), np.asarray(expected[index]))
            assert split.images.labels[index] == index % 3


def test_a_set_and_the_folder_of_images_that_it_was_made_of_give_the_same_batches(tmp_path):
    """Whatever form it has: folder of images, parquet in a folder, what save_to_disk leaves."""
    for part, count, seed in (("train", 12, 1), ("test", 6, 2)):
        for number, image in enumerate(noise(count, seed)):
            path = tmp_path / "plain" / part / NAMES[number * 3 // count] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    parts = {
        part: made(count, [number * 3 // count for number in range(count)], seed)
        for part, count, seed in (("train", 12, 1), ("test", 6, 2))
    }
    for part, rows in parts.items():
        parquet(tmp_path / "folder" / "data" / f"{part}-00000-of-00001.parquet", rows)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    expected = load_data(f"imagefolder:{tmp_path / 'plain'}", SHAPE, seed=3)
    prints = set()
    for form in ("plain", "folder", "saved"):
        data = load_data(f"hf:{tmp_path / form}", SHAPE, seed=3)
        assert data.notes == ()
        prints.add(data.fingerprint)
        for name in ("train", "val", "test"):
            images, labels = all_of(getattr(data, name))
            theirs, their_labels = all_of(getattr(expected, name))
            assert torch.equal(images, theirs)
            assert labels == their_labels
    assert len(prints) == 1


def test_no_image_is_decoded_before_it_is_needed(tmp_path, monkeypatch):
    file, opened = parquet(tmp_path / "x.parquet", made()), []
    usual = Image.open
    monkeypatch.setattr(Image, "open", lambda *given: opened.append(given) or usual(*given))
    data = load_data(f"hf:{file}", SHAPE)
    assert opened == []
    next(data.train.batches(4))
    assert 4 <= len(opened) < len(data.train)


def test_the_fingerprint_tells_labels_and_images_apart_and_not_where_they_lie(tmp_path):
    def fingerprint(name: str, rows) -> str:
        return load_data(f"hf:{parquet(tmp_path / name / 'x.parquet', rows)}", SHAPE).fingerprint

    first = fingerprint("a", made())
    assert fingerprint("b", made()) == first
    assert len({first, fingerprint("c", made(seed=5)), fingerprint("d", made(labels=[2, 1, 0] * 10))}) == 3


@pytest.mark.parametrize("kind", ["texts", "numbers", "bytes", "struct"])
def test_columns_without_the_types_of_datasets_are_found_by_their_names(tmp_path, kind):
    import pyarrow
    import pyarrow.parquet

    encoded = [row["image"]["bytes"] for row in made().cast_column("image", datasets.Image(decode=False))]
    labels = [["fox", "owl"][i % 2] if kind == "texts" else [3, 7][i % 2] for i in range(30)]
    images = [{"bytes": each, "path": None} for each in encoded] if kind == "struct" else encoded
    table = pyarrow.table({"id": list(range(30)), "picture": images, "target": labels})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    data = load_data(f"hf:{tmp_path}/x.parquet", SHAPE)
    assert data.class_names == (("fox", "owl") if kind == "texts" else ("3", "7"))
    assert data.train.images.labels[:4] == (0, 1, 0, 1)
    assert all_of(data.test)[0].shape == (6, 3, 32, 32)


def test_columns_that_could_be_either_are_named_and_asked_for(tmp_path):
    rows = made(labels=[0, 1, 2] * 10).add_column("other", ["x", "y"] * 15)
    rows = rows.add_column("coarse", [0, 1] * 15).cast_column("coarse", datasets.ClassLabel(names=["a", "b"]))
    spec = f"hf:{parquet(tmp_path / 'x.parquet', rows)}"
    with pytest.raises(InputError) as caught:
        load_data(spec, SHAPE)
    assert str(caught.value) == (
        f"dataset {spec}: which column holds the labels? There are: image (Image), label (3 classes), other (string), "
        "coarse (2 classes). Add ,label=COLUMN"
    ).replace("Image", "PIL.Image.Image")
    assert load_data(f"{spec},label=coarse", SHAPE).class_names == ("a", "b")
    data = load_data(f"{spec},label=other", SHAPE)
    assert data.class_names == ("x", "y")
    assert load_data(data.request.spec, SHAPE).request == data.request


def test_a_test_split_without_labels_gives_way_to_the_validation_split(tmp_path):
    parts = {"train": made(), "test": made(4, [-1] * 4), "validation": made(6, seed=3)}
    for part, rows in parts.items():
        parquet(tmp_path / "set" / f"{part}.parquet", rows)
    assert len(load_data(f"hf:{tmp_path}/set", SHAPE).test) == 6
    with pytest.raises(InputError, match=r"4 of 4 rows of test have no label, first row 0 \(-1\)"):
        load_data(f"hf:{tmp_path}/set,test=test", SHAPE)
    swapped = load_data(f"hf:{tmp_path}/set,train=validation,test=train", SHAPE)
    assert [len(swapped.train) + len(swapped.val), len(swapped.test)] == [6, 30]


def test_an_image_that_cannot_be_decoded_is_named_and_left_out_on_request(tmp_path):
    images = [{"bytes": b"nothing", "path": "bad.jpg"} if i in (4, 9) else image for i, image in enumerate(noise(30))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2] * 10}, features=features)
    spec = f"hf:{parquet(tmp_path / 'x.parquet', rows)}"
    whole = load_data(spec, SHAPE)
    split = next(each for each in (whole.train, whole.val, whole.test) if {4, 9} & {*each.indices})
    with pytest.raises(InputError, match=r"row [49] of train \(bad\.jpg\): not a readable image .*2 of 30 images"):
        all_of(split)
    data = load_data(f"{spec},skip_corrupt", SHAPE)
    assert len(data.train) + len(data.val) + len(data.test) == 28
    assert data.notes[0].startswith("2 of 30 images cannot be read: ")


def test_a_network_is_trained_on_a_set(tmp_path):
    parquet(tmp_path / "x.parquet", made())
    notes = []
    found = train_arch(
        TINY.sample(random.Random(0)),
        f"hf:{tmp_path}/x.parquet",
        tmp_path / "run",
        {"epochs": 1, "batch_size": 8},
        note=notes.append,
    )
    assert notes == found["data_notes"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["class_names"] == NAMES


def a_script(folder: Path) -> None:
    (folder / f"{folder.name}.py").write_text("raise SystemExit('executed')")


def two_configs(folder: Path) -> None:
    parquet(folder / "a" / "train.parquet", made())
    parquet(folder / "b" / "train.parquet", made())
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in "ab")
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")


def no_parquet(folder: Path) -> None:
    (folder / "train.parquet").write_bytes(b"PAR1 nothing")


def one_class(folder: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    rows = datasets.Dataset.from_dict({"image": noise(4), "label": [0] * 4}, features=features)
    parquet(folder / "train.parquet", rows)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (a_script, "", "a script, which is not executed"),
        (two_configs, "", r"Config name is missing.*Write hf:.*,config=NAME"),
        (no_parquet, "", "cannot be loaded"),
        (lambda folder: None, "", "cannot be loaded"),
        (one_class, "", "of one class, a"),
        (one_class, ",image=img", "unknown column 'img'"),
        (one_class, ",image=label", "column label holds no images"),
        (one_class, ",label=image", "column image holds no labels"),
        (one_class, ",test=tset", "unknown split 'tset'"),
        (one_class, ",test=train", "the split to train on"),
        (one_class, ",lable=x", "did you mean 'label'"),
        (one_class, ",label", "write label=VALUE"),
    ],
)
def test_what_is_no_set_is_explained(tmp_path, make, options, message):
    folder = tmp_path / "made"
    folder.mkdir()
    make(folder)
    with pytest.raises(InputError, match=message):
        load_data(f"hf:{folder}{options}", SHAPE)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("Dataset 'u/n' is a gated dataset on the Hub.", r"gated.*huggingface.co/datasets/u/n.*hf auth login"),
        ("Dataset 'u/n' doesn't exist on the Hub or cannot be accessed.", "none of this name.*hf auth login"),
    ],
)
def test_sets_that_are_gated_or_private_name_the_command_that_logs_in(monkeypatch, error, message):
    def refuse(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError(error)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match=message):
        load_data("hf:u/n", SHAPE)


def test_without_internet_a_name_on_the_hub_is_explained(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'u/n' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(InputError, match="Without internet, name a file or folder"):
        load_data("hf:u/n", SHAPE)


@pytest.mark.parametrize("name", ["/no/such/file.parquet", "nothing.parquet", "a/b/c"])
def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(InputError, match="there is no file or folder"):
        load_data(f"hf:{name}", SHAPE)
