"""Networks that are taken along: a folder or a repository of the Hub with all that one needs, and loading it again.

Such a folder holds `model.safetensors`, `arch.json`, `model.onnx`, timm's `config.json`, by which
`timm.create_model("local-dir:DIR", pretrained=True)` gives the network after `import nas.timm_models`, and a model
card, `README.md`.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from nas.core.arch import Arch
from nas.core.errors import InputError, MeasureError, RunError
from nas.core.files import hash_of, whole, writing
from nas.core.units import show_count
from nas.evaluation.checkpoint import read_passport, read_weights
from nas.evaluation.images import as_rgb
from nas.networks.building import Network, build, cost_of, input_shape_of, load_arch, load_weights
from nas.networks.export import check_onnx, export_onnx
from nas.networks.features import stage_maps
from nas.timm_models import GENERIC

FILES = ("arch.json", "config.json", "model.onnx", "model.safetensors", "README.md")
NEEDED = ("arch.json", "config.json", "model.safetensors")  # to load a network
OF_RUN = {"best.json": "best", "arch.json": "weights"}  # of nas search, of nas train: an arch, and what its weights are
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Pretrained(Network):
    """A trained network with what its images need.

    Attributes:
        class_names: of the logits, in their order; empty where nobody named them.
        mean, std: of each channel, of values in 0..1.
        crop_share: what of the side of an image is shown, see `Split`.
    """

    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_share: float | None = None

    def prepare(self, image: Image.Image) -> Tensor:
        """An image as the network saw those that it was judged on: (1, C, H, W), normalised.

        Raises:
            InputError: nobody recorded how its images are normalised.
        """
        if self.mean is None or self.std is None:
            raise InputError("the mean and deviation of the images that this network learned from were not recorded")
        channels, *size = self.arch.input_shape
        shown = as_rgb(image)
        if channels == 1:
            shown = v2.functional.to_grayscale(shown)
        if self.crop_share is not None:
            shown = v2.functional.resize(shown, [round(max(size) / self.crop_share)])
            shown = v2.functional.center_crop(shown, size)
        values = v2.functional.pil_to_tensor(shown).float()[None] / 255
        if self.crop_share is None and list(values.shape[2:]) != size:
            shrinks = values.shape[2] > size[0] or values.shape[3] > size[1]
            values = torch.nn.functional.interpolate(
                values, size, mode="bilinear", align_corners=False, antialias=shrinks
            )
        mean, std = (torch.tensor(value)[:, None, None] for value in (self.mean, self.std))
        prepared: Tensor = (values - mean) / std
        return prepared


class Published(NamedTuple):
    """What was written.

    Attributes:
        where: the folder, or the address on the Hub.
        files: their names.
    """

    where: str
    files: tuple[str, ...]


def publish(run: Path, to: str, *, private: bool = False, note: Callable[[str], None] | None = None) -> Published:
    """Write the network of a run with all that one needs to use it.

    Args:
        run: the folder of a search (its winner) or of a training.
        to: a folder, or USER/NAME on the Hub: a name of that form of which no folder USER is here.
        private: whether a repository that is made is private.
        note: called with what is not as usual, in sentences.

    Raises:
        InputError: no such run, it is not finished, or another network is published in that folder.
        RunError: the Hub refuses, saying why; or the folder cannot be written.
    """
    source = _source(Path(run).expanduser())
    name = Path(to).name
    with tempfile.TemporaryDirectory(prefix="millinas-") as temporary:
        staged = Path(temporary)
        _stage(source, name, staged, note or (lambda text: None))
        if _is_repository(to):
            return Published(_upload(staged, to, private), FILES)
        _place(staged, Path(to).expanduser())
    return Published(str(Path(to).expanduser()), FILES)


def from_pretrained(name: str, *, revision: str | None = None) -> Pretrained:
    """A published network with its weights, in eval mode.

    Args:
        name: a folder that `publish` wrote, or USER/NAME on the Hub.
        revision: of a repository of the Hub; None for its newest.

    Returns:
        The network; it knows its classes and prepares images: `model(model.prepare(image)).softmax(1)`.

    Raises:
        InputError: there is no such network, or its files do not fit each other.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not REPOSITORY.fullmatch(name):
            raise InputError(f"{name}: there is no such folder, and a network on the Hub is USER/NAME")
        folder = _downloaded(name, revision)
    lacking = [file for file in NEEDED if not (folder / file).is_file()]
    if lacking:
        hint = "; to publish that of a run: nas publish RUN --to DIR" if (folder / "result.json").is_file() else ""
        raise InputError(f"{name}: no published network, it lacks {', '.join(lacking)}{hint}")
    arch, passport = load_arch(folder / "arch.json"), read_passport(folder / "model.safetensors")
    network = Pretrained(arch)
    load_weights(network, read_weights(folder / "model.safetensors"), str(folder / "model.safetensors"))
    network.class_names = tuple(passport.get("class_names") or ())
    network.mean, network.std = (tuple(passport[key]) if passport.get(key) else None for key in ("mean", "std"))
    network.crop_share = passport.get("crop_share")
    return network.eval()


class _Source(NamedTuple):
    """The network of a run: its arch, weights, what the run found, and what the weights say of themselves."""

    run: Path
    arch: Arch
    weights: Path
    result: Mapping[str, Any]
    passport: Mapping[str, Any]
    onnx: Path | None


def _source(run: Path) -> _Source:
    if not run.is_dir():
        raise InputError(f"{run}: there is no such folder; name that of a run (nas search, nas train)")
    found = next(((run / file, stem) for file, stem in OF_RUN.items() if (run / file).is_file()), None)
    if found is None or not (run / "result.json").is_file():
        raise InputError(f"{run}: no finished run of nas search or nas train; the command that began it finishes it")
    file, stem = found
    weights = run / f"{stem}.safetensors"
    if not weights.is_file():
        raise InputError(
            f"{run} has no {weights.name}, which names the classes and how images are shown: it is of an earlier "
            "version. The command that made it, once more, adds it and trains nothing anew"
        )
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run / 'result.json'}: cannot be read: {error}") from error
    onnx = run / "best.onnx"
    return _Source(run, load_arch(file), weights, result, read_passport(weights), onnx if onnx.is_file() else None)


def _stage(source: _Source, name: str, staged: Path, note: Callable[[str], None]) -> None:
    """Write all files of a published network into a folder."""
    arch, passport = source.arch, source.passport
    model = build(arch)
    load_weights(model, read_weights(source.weights), str(source.weights))
    shutil.copyfile(source.weights, staged / "model.safetensors")
    (staged / "arch.json").write_text(arch.to_json() + "\n", encoding="utf-8")
    if source.onnx is not None:
        shutil.copyfile(source.onnx, staged / "model.onnx")
    else:
        export_onnx(model, [input_shape_of(arch)], staged / "model.onnx")
    try:
        check_onnx(staged / "model.onnx", model)
    except MeasureError as error:
        if "pip install" not in str(error):
            raise
        note("model.onnx is NOT CHECKED against PyTorch: that needs ONNX Runtime, pip install 'millinas[onnxruntime]'")
    (staged / "config.json").write_text(json.dumps(_config(arch, passport), indent=2) + "\n", encoding="utf-8")
    (staged / "README.md").write_text(card(name, arch, source.result, passport), encoding="utf-8")


def _config(arch: Arch, passport: Mapping[str, Any]) -> dict[str, Any]:
    """The network in the form of timm's `config.json`."""
    side = max(arch.input_shape[1:])
    share = passport.get("crop_share")
    shown = {"crop_pct": 1.0, "crop_mode": "squash"}
    if share is not None:  # timm rounds down what we round to the nearest
        shown = {"crop_pct": side / (round(side / share) + 0.25), "crop_mode": "center"}
    names = passport.get("class_names")
    return {
        "architecture": GENERIC,
        "num_classes": arch.classes,
        "num_features": stage_maps(arch)[-1].channels,
        **({"label_names": names} if names else {}),
        "model_args": {"arch": arch.to_json()},
        "pretrained_cfg": {
            "input_size": list(arch.input_shape),
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "num_classes": arch.classes,
            **({key: passport[key] for key in ("mean", "std")} if passport.get("mean") else {}),
            **shown,
        },
    }


def _place(staged: Path, target: Path) -> None:
    """Put the files of a published network into a folder that is empty, new, or holds the same network."""
    there = target / "model.safetensors"
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: this is a file; name a folder to publish in")
    if there.is_file():
        if hash_of(there) != hash_of(staged / "model.safetensors"):
            raise InputError(f"{target}: another network is published there; choose another folder, or delete that one")
    elif target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target}: the folder holds other things; choose one that is empty or new")
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        with whole(target / name) as temporary:
            shutil.copyfile(staged / name, temporary)


def _is_repository(to: str) -> bool:
    return REPOSITORY.fullmatch(to) is not None and not Path(to).parent.is_dir()


def _upload(staged: Path, name: str, private: bool) -> str:
    from huggingface_hub import HfApi

    api = HfApi(library_name="millinas")
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=staged, commit_message="A network of millinas")
    except Exception as error:  # of many classes: of the Hub, of its client, of the network
        raise RunError(f"{name}: the Hub does not take it: {_of_hub(name, error)}") from error
    return str(url)


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(NEEDED)))
    except Exception as error:  # as above
        raise InputError(f"{name}: cannot be had from the Hub: {_of_hub(name, error)}") from error


def _of_hub(name: str, error: Exception) -> str:
    """What the Hub's client says, in a line, and what to do."""
    kind, text = type(error).__name__, str(error).strip().partition("\n")[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "GatedRepoError":
        return f"it is gated. Ask for access at https://huggingface.co/{name}, and log in with: hf auth login"
    if kind == "LocalTokenNotFoundError" or status in (401, 403, 404):
        user = name.partition("/")[0]
        return (
            f"{text or kind}. Log in with: hf auth login, as one who may see and write in {user}; for a folder of this "
            f"name write ./{name}"
        )
    return f"{kind}: {text}; a folder needs no internet"


def card(name: str, arch: Arch, result: Mapping[str, Any], passport: Mapping[str, Any]) -> str:
    """The model card of a network: every figure with where it comes from."""
    cost = cost_of(arch)
    accuracy = _training(result).get("test_accuracy")
    sides = "x".join(map(str, arch.input_shape))
    lines = [
        "---",
        *_metadata(name, passport, accuracy),
        "---",
        f"# {name}",
        "",
        f"An image classifier of {arch.classes} classes for images of {sides}: architecture `{arch.id}` of the family "
        f"`{arch.family}`, {_origin(result)}. {show_count(cost.params)} parameters, {show_count(cost.macs)} "
        "multiply-adds, counted on the training form.",
        "",
        "## Figures",
        "",
        "| | value | |",
        "|---|---|---|",
        *(f"| {what} | {value} | {whence} |" for what, value, whence in _figures(result, passport)),
        "",
        *(f"> {text}\n" for text in result.get("warnings", ())),
        "## Where it comes from",
        "",
        *(f"- {text}" for text in _provenance(result, passport)),
        "",
        "## How to use it",
        "",
        "```python",
        "import nas",
        "from PIL import Image",
        "",
        f'model = nas.from_pretrained("{name}")  # or USER/{name} on the Hub',
        'probabilities = model(model.prepare(Image.open("image.jpg"))).softmax(1)',
        "print(model.class_names[int(probabilities.argmax())])" if passport.get("class_names") else "",
        "```",
        "",
        "With timm:",
        "",
        "```python",
        "import nas.timm_models  # so that timm knows the architecture",
        "import timm",
        "",
        f'model = timm.create_model("local-dir:{name}", pretrained=True).eval()  # or hf-hub:USER/{name}',
        "```",
        "",
        f"`model.onnx` takes `input0`, float32 of 1x{sides}{_shown(passport)}, and gives the logits.",
        "",
        "## Architecture",
        "",
        *(f"- {arch.stage_name(number)}: {text}" for number, text in enumerate(arch.to_text().split(" | "))),
        "",
    ]
    return "\n".join(line for line in lines if line is not None)


def _metadata(name: str, passport: Mapping[str, Any], accuracy: float | None) -> list[str]:
    """The head of a card, YAML that the Hub reads."""
    head = ["library_name: timm", "pipeline_tag: image-classification", "tags:", "- millinas", "- image-classification"]
    if accuracy is None:
        return head
    return [
        *head,
        "model-index:",
        f"- name: {json.dumps(name)}",
        "  results:",
        "  - task: {type: image-classification}",
        f"    dataset: {{name: {json.dumps(passport['data'])}, type: {json.dumps(passport['data'])}}}",
        f"    metrics: [{{type: accuracy, value: {accuracy:.4f}}}]",
    ]


def _training(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of the training: of a search's winner, or the whole of a training's."""
    found: Mapping[str, Any] = result["winner"]["training"] if "winner" in result else result
    return found


def _origin(result: Mapping[str, Any]) -> str:
    if "winner" not in result:
        return "trained by itself (nas train)"
    asked = ", ".join(str(budget["asked"]) for budget in result["budgets"])
    return f"found by a search of `{result['space']}` within {asked or 'no budget'} (nas search)"


def _figures(result: Mapping[str, Any], passport: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What, how much, and whether that is measured or predicted."""
    training = _training(result)
    images = passport["images"]
    found = [
        (f"accuracy on {part}", f"{100 * training[key]:.2f} %", f"measured on {images[part]} images, {use}")
        for part, key, use in (
            ("test", "test_accuracy", "seen once, at the end"),
            ("val", "val_accuracy", "by which a search chooses"),
        )
        if training.get(key) is not None
    ]
    winner = result.get("winner")
    if winner is None:
        return [*found, ("latency", "-", "neither measured nor predicted in this training: nas measure, nas describe")]
    origin = result["provenance"]
    where = f"{origin['precision']}, {origin['threads']} thread(s), {origin['cpu']}"
    off = origin.get("table_mape_percent")
    error = "its error is not known" if off is None else f"which is {off:.1f} % off on whole networks"
    about = f"predicted from a table, {error}; {origin['runtime']}, {where}"
    found.append(("latency", f"{winner['predicted_ms']:.4g} ms", about))
    if winner.get("measured_ms") is None:
        found.append(("latency", "-", "not measured: the table is of another machine"))
    else:
        spread = winner["measured_spread_ms"]
        ms = f"{winner['measured_ms']:.4g} ms"
        found.append(("latency", ms, f"measured, spread {spread:.2g} ms; {origin['runtime_here']}, {where}"))
    for key, how in (("memory_mb", "predicted"), ("measured_memory_mb", "measured")):
        if winner.get(key) is not None:
            found.append(("memory", f"{winner[key]:.4g} MB", how))
    return found


def _provenance(result: Mapping[str, Any], passport: Mapping[str, Any]) -> list[str]:
    images, training = passport["images"], _training(result)
    origin = result.get("provenance", {})
    split = ", ".join(f"{images[part]} for {part}" for part in ("train", "val", "test"))
    seed = origin.get("seed", result.get("seed"))
    found = [
        f"Data: `{passport['data']}`, fingerprint `{passport['data_fingerprint']}`, {split}; seed {seed}.",
        f"Training: {training['epochs']} epoch(s), {training['seconds']:.0f} s.",
    ]
    if result.get("start"):
        found.append(f"Weights it started from: {_named(str(result['start']['source']))}.")
    if result.get("teacher"):
        found.append(f"Teacher: weights of hash `{result['teacher']}`.")
    if origin:
        found.append(
            f"Latency table: {origin['device']}, content hash `{origin['table_hash'][:12]}`"
            f"{', NOT the machine of the search' if origin['not_this_machine'] else ''}."
        )
        versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
        found.append(f"Versions: {versions}; begun {origin['started']}.")
    else:
        found.append(f"Version: millinas {passport['nas']}.")
    names: Sequence[str] = passport.get("class_names") or ()
    if names:
        more = f", ... ({len(names)} in all)" if len(names) > 20 else ""
        found.append(f"Classes: {', '.join(itertools.islice(names, 20))}{more}.")
    return found


def _named(source: str) -> str:
    """Where weights come from, without the folders of this machine."""
    return Path(source).name if Path(source).is_absolute() else source


def _shown(passport: Mapping[str, Any]) -> str:
    if not passport.get("mean"):
        return ""
    mean, std = ([round(value, 4) for value in passport[key]] for key in ("mean", "std"))
    share = passport.get("crop_share")
    how = "resized to that size" if share is None else f"a crop in the centre of {share:g} of the shorter side"
    return f" (values in 0..1, minus mean {mean}, over deviation {std}; {how})"
