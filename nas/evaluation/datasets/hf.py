"""Sets of images in Hugging Face's form: a name on the Hub, a parquet file, or a folder, read by `datasets`.

`hf:NAME` with options: `image=COLUMN` and `label=COLUMN` where they are not plain, `config=NAME`, `revision=NAME`,
`train=SPLIT` and `test=SPLIT`, `skip_corrupt`. Rows are decoded when a batch needs them. Our val split is held out from
the training split; `test` is the set's test split, or its validation split where test has no labels or is missing;
where there is neither, a fifth of the images is held out. Nothing in a set is executed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from nas.core.errors import InputError, suggest
from nas.evaluation.data import Data, DataRequest, fingerprint_of
from nas.evaluation.datasets._streamed import Images, evenly, streamed

OPTIONS = {**dict.fromkeys(("image", "label", "config", "revision", "train", "test"), True), "skip_corrupt": False}
LABELS = ("label", "labels", "class", "target", "category", "fine_label")  # what plain numbers or texts are called
TESTS = ("test", "validation", "val", "valid", "dev")  # the first that has labels
SAMPLED = 512  # images whose content counts in a fingerprint
FILES = (".parquet", ".arrow", ".csv", ".json", ".jsonl")
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


def load(request: DataRequest) -> Data:
    splits = _splits(request)
    name = _train(request, splits)
    image, label = _columns(request, splits[name])
    seen = _Part(name, *_labelled(request, name, splits[name], image, label))
    parts = [seen]
    for other in _tests(request, splits, name):
        found = _Part(other, *_labelled(request, other, splits[other], image, label))
        if "test" in request.options or _has_labels(found.labels):
            parts.append(found)
            break
    classes, numbers = _numbers(request, parts, splits[name].features[label])
    images = Rows(request.spec, parts, numbers)
    n = len(seen.labels)
    test = range(n, len(images)) if len(parts) > 1 else None
    return streamed(request, images, classes, range(n), test, lacks=f"{request.spec} has no labelled split to test on")


class _Part(NamedTuple):
    """A split: the images of its rows, encoded, and the labels as they are."""

    name: str
    images: Any
    labels: list[Any]


class Rows(Images):
    """The images of splits, one behind the other."""

    def __init__(self, spec: str, parts: Sequence[_Part], labels: Sequence[int]) -> None:
        self.spec, self.labels = spec, tuple(labels)
        self.parts = [(part.name, part.images) for part in parts]

    def _row(self, index: int) -> tuple[str, int, Mapping[str, Any]]:
        """Split, row and what is there: `bytes`, or the `path` of a file."""
        for name, rows in self.parts:
            if index < len(rows):
                return name, index, rows[index]["image"] or {}
            index -= len(rows)
        raise IndexError(index)

    def name(self, index: int) -> str:
        split, row, found = self._row(index)
        file = f" ({found['path']})" if found.get("path") else ""
        return f"{self.spec.partition(',')[0]}: row {row} of {split}{file}"

    def open(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self._content(index)))

    def _content(self, index: int) -> bytes:
        _, _, found = self._row(index)
        content: bytes | None = found.get("bytes")
        if content is not None:
            return content
        if not found.get("path"):
            raise ValueError("it is empty")
        return Path(found["path"]).read_bytes()

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Of the labels of all and the content of some, spread evenly."""
        return fingerprint_of(repr([self.labels[index] for index in indices]).encode(), *self._some(indices))

    def _some(self, indices: Sequence[int]) -> Iterator[bytes]:
        for index in evenly(indices, SAMPLED):
            try:
                yield self._content(index)
            except ValueError:
                yield b""


def _splits(request: DataRequest) -> Mapping[str, Any]:
    """The splits of a set by name, rows of columns.

    Raises:
        InputError: there is no such set, or it cannot be had, saying what to do.
    """
    if request.path is None:
        raise InputError("dataset hf needs a name on the Hub, a parquet file or a folder: hf:NAME")
    try:
        import datasets
    except ImportError as error:
        raise InputError("dataset hf needs Hugging Face's datasets: pip install 'millinas[hf]'") from error
    path, where = request.path, str(request.path)
    asked = {key: request.options[key] for key in ("revision",) if key in request.options}
    if not path.exists() and (
        path.is_absolute() or where.startswith(".") or path.suffix in FILES or where.count("/") > 1
    ):
        raise InputError(
            f"dataset hf: there is no file or folder {where!r}, and a name on the Hub is USER/NAME or NAME"
        )
    try:
        if any((path / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(where)
        elif path.is_file():
            if path.suffix != ".parquet":
                raise InputError(f"dataset hf: {where} is no parquet file; name one, a folder, or a name on the Hub")
            found = datasets.load_dataset("parquet", data_files={"train": where})
        else:
            found = datasets.load_dataset(where, request.options.get("config"), **asked)
    except InputError:
        raise
    except Exception as error:  # of many classes: of datasets, of the Hub's client, of the network, of parquet
        raise InputError(f"dataset hf: {where} cannot be loaded: {_reason(where, error)}") from error
    return found if isinstance(found, datasets.DatasetDict) else {"train": found}


def _reason(name: str, error: BaseException) -> str:
    """Why a set cannot be loaded, and what to do."""
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and before not in chain:
        chain.append(before)
    text = str(error).partition("\n")[0].strip() or type(error).__name__
    if any("gated" in f"{type(each).__name__} {each}".lower() for each in chain):
        return f"it is gated. Ask for access at https://huggingface.co/datasets/{name}, and log in with: hf auth login"
    if "scripts are no longer supported" in text:
        return (
            "it is a script, which is not executed. Many sets on the Hub have a copy in parquet: "
            f"hf:{name},revision=refs/convert/parquet"
        )
    if type(error).__name__ == "DatasetNotFoundError":
        return f"there is none of this name on the Hub, or it is private; then log in with: hf auth login ({text})"
    if isinstance(error, ConnectionError):
        return f"{text}. Without internet, name a file or folder, or a set that was fetched before"
    if "Config name is missing" in text or "BuilderConfig" in text:
        return f"{' '.join(str(error).split())} Write hf:{name},config=NAME"
    if chain[-1] is not error:
        text += f" ({str(chain[-1]).partition(chr(10))[0]})"
    return text


def _train(request: DataRequest, splits: Mapping[str, Any]) -> str:
    if (asked := request.options.get("train")) is not None:
        return _known_split(request, splits, asked)
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else next(iter(splits))
    raise InputError(f"dataset {request.spec}: which split is to train on? Of {', '.join(splits)}: add ,train=SPLIT")


def _tests(request: DataRequest, splits: Mapping[str, Any], train: str) -> list[str]:
    """Splits that may be the test split, the first first."""
    if (asked := request.options.get("test")) is not None:
        if asked == train:
            raise InputError(f"dataset {request.spec}: {asked!r} is the split to train on; name another one to test on")
        return [_known_split(request, splits, asked)]
    return [name for name in TESTS if name in splits and name != train]


def _known_split(request: DataRequest, splits: Mapping[str, Any], name: str) -> str:
    if name not in splits:
        raise InputError(f"dataset {request.spec}: {suggest('split', name, splits)}")
    return name


def _columns(request: DataRequest, rows: Any) -> tuple[str, str]:
    """The columns of images and labels: those asked for, or the only ones that can be.

    Raises:
        InputError: none can be, or several, naming all columns.
    """
    import datasets

    features = rows.features
    can_be = {name: _can_be(feature) for name, feature in features.items()}
    found = []
    for option, wanted in (("image", "images"), ("label", "labels")):
        asked = request.options.get(option)
        if asked is not None and asked not in can_be:
            raise InputError(f"dataset {request.spec}: {suggest('column', asked, can_be)}")
        plain = [name for name, kinds in can_be.items() if option == "image" and "images" in kinds]
        if option == "label":
            plain = [name for name, each in features.items() if isinstance(each, datasets.ClassLabel)]
            plain = plain or [name for name in LABELS if "labels" in can_be.get(name, ())]
        fitting = plain if asked is None else [asked]
        usable = {"images": {"images", "paths"}, "labels": {"labels"}}[wanted]
        if len(fitting) != 1 or not usable & can_be[fitting[0]]:
            raise InputError(_unclear(request, rows, option, wanted, asked))
        found.append(fitting[0])
    return found[0], found[1]


def _unclear(request: DataRequest, rows: Any, option: str, wanted: str, asked: str | None) -> str:
    columns = ", ".join(f"{name} ({_described(feature)})" for name, feature in rows.features.items())
    problem = f"which column holds the {wanted}?" if asked is None else f"column {asked} holds no {wanted}."
    return f"dataset {request.spec}: {problem} There are: {columns}. Add ,{option}=COLUMN"


def _can_be(feature: Any) -> set[str]:
    """What a column can hold: images, paths of images, labels."""
    import datasets

    if isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature):
        return {"images"}
    if isinstance(feature, datasets.ClassLabel):
        return {"labels"}
    dtype = str(feature.dtype) if isinstance(feature, datasets.Value) else ""
    if "string" in dtype:
        return {"labels", "paths"}
    return {"images"} if "binary" in dtype else {"labels"} if dtype.startswith(("int", "uint", "bool")) else set()


def _described(feature: Any) -> str:
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        return f"{feature.num_classes} classes"
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _labelled(request: DataRequest, name: str, rows: Any, image: str, label: str) -> tuple[Any, list[Any]]:
    """The encoded images of a split, as column `image`, and its labels."""
    import datasets

    if lacking := [column for column in (image, label) if column not in rows.features]:
        raise InputError(
            f"dataset {request.spec}: split {name} has no column {lacking[0]}; name another one: ,test=SPLIT"
        )
    labels = list(rows.select_columns([label])[:][label])
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return (encoded if image == "image" else encoded.rename_column(image, "image")), labels


def _has_labels(labels: Sequence[Any]) -> bool:
    return not any(_is_missing(label) for label in labels)


def _is_missing(label: Any) -> bool:
    return label is None or label == -1  # what sets on the Hub write into test splits without labels


def _numbers(request: DataRequest, parts: Sequence[_Part], feature: Any) -> tuple[list[str], list[int]]:
    """The names of the classes, and the class of each row of all parts.

    Raises:
        InputError: rows without a label, or of a class that no row to train on has, where the set names none.
    """
    names: list[str] | None = getattr(feature, "names", None)
    values = list(range(len(names))) if names else sorted({each for each in parts[0].labels if not _is_missing(each)})
    number = {value: place for place, value in enumerate(values)}
    for part in parts:
        wrong = [row for row, label in enumerate(part.labels) if _is_missing(label) or label not in number]
        if wrong:
            label = part.labels[wrong[0]]
            what = "have no label" if _is_missing(label) else f"are of no class of {parts[0].name}"
            raise InputError(
                f"dataset {request.spec}: {len(wrong)} of {len(part.labels)} rows of {part.name} {what}, first row "
                f"{wrong[0]} ({label!r}); name another split (,train=SPLIT or ,test=SPLIT) or column (,label=COLUMN)"
            )
    return names or [str(value) for value in values], [number[label] for part in parts for label in part.labels]


DATASET = load
