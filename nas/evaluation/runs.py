"""One training run in a folder of its own: weights, log and figures on disk, continued after an interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from nas import __version__
from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.core.files import lock, write_text
from nas.evaluation.checkpoint import read_weights as read_weights
from nas.evaluation.checkpoint import write_safetensors, write_weights
from nas.evaluation.data import Data, load_data
from nas.evaluation.devices import cpu_threads
from nas.evaluation.distributed import joined, own_process
from nas.evaluation.log import write_history as write_history
from nas.evaluation.pretrained import load_pretrained
from nas.evaluation.recipe import Recipe
from nas.evaluation.recipes import read_recipe
from nas.evaluation.teacher import Teacher, load_teacher
from nas.evaluation.training import TrainResult, train
from nas.networks.building import build, load_arch, with_classes

BATCHES = 3  # that show how long an epoch takes


def train_arch(
    arch: Arch,
    data_name: str,
    folder: Path | None = None,
    fields: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    recipe: str | None = None,
    weights: str | None = None,
    teacher: str | None = None,
    teacher_weights: str | None = None,
    device: str = "auto",
    threads: int | None = 1,
    seed: int = 0,
    limit: int | None = None,
    val_fraction: float = 0.2,
    run: Path | None = None,
    progress: Callable[..., None] | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train an arch on a dataset into `folder`.

    That has `arch.json`, `weights.pt`, `weights.safetensors` (which names the classes and says how images are shown),
    `training.csv` and `result.json`.

    Processes that torchrun started train together; the first one writes.

    Args:
        arch: its head is fitted to the dataset's classes.
        data_name: as `load_data` takes it.
        folder: a `checkpoint.pt` in it is continued; None for `default_folder`. Only one process at a time trains here.
        fields: of the recipe, where they differ from those of `recipe`.
        name: of the arch, in that folder's name; None for its id.
        recipe: a name in `nas.evaluation.recipes`; None for the defaults.
        weights: to start from, as `load_pretrained` takes them; None for fresh ones.
        teacher: a preset, a file of an arch, or a model of timm.
        teacher_weights: its own, as `load_pretrained` takes them; None for those that timm publishes.
        device: auto, cpu, cuda or mps.
        threads: of torch on the CPU, None for as many as torch takes. Where other processes compute as well, several
            wait for each other (10 times slower than one was measured), and only one gives the same weights to the bit.
        seed: of weights, order, augmentation and the division of the images.
        limit: most images to train and validate on together; None for all.
        val_fraction: share of them to validate on.
        run: folder of the search that this training belongs to, where `folder` is in it.
        progress: called with (epochs done, epochs, seconds left, text).
        note: called with what of `weights` was not taken as it is, and with what the data set left out, in sentences.

    Returns:
        The figures written to `result.json`, and the paths.

    Raises:
        InputError: `folder` is that of another architecture or in that of a search, or something does not fit; see
            `train` as well.
        RunError: another process trains in `folder`, naming it; or that cannot be written.
    """
    settings = read_recipe(fields or {}, recipe)
    data = load_data(data_name, arch.input_shape, seed=seed, val_fraction=val_fraction, limit=limit)
    fitted = with_classes(arch, data.classes)
    folder = default_folder(name or fitted.id, data) if folder is None else folder
    _check_folder(folder, fitted, run)
    model = build(fitted, seed=seed, drop_path=settings.drop_path)
    if weights is not None and settings.start == "teacher":
        raise InputError(
            f"weights {weights}: the recipe starts from the teacher's (start=teacher); name one of the two"
        )
    start = None if weights is None else load_pretrained(model, weights)
    if note is not None:
        for text in (*(start.notes if start else ()), *data.notes):
            note(text)
    guide = teacher_for(data, teacher, teacher_weights)

    def show(epoch: Mapping[str, Any]) -> None:
        if progress is not None:
            done = int(epoch["epoch"])
            left = (settings.epochs - done) * float(epoch["seconds"])
            progress(done, settings.epochs, left, f"epoch {done} of {settings.epochs}, loss {epoch['train_loss']:.3f}")

    with contextlib.ExitStack() as held:
        where = held.enter_context(joined(device))
        held.enter_context(cpu_threads(threads))
        first = own_process()[0] == 0
        if first:
            held.enter_context(lock(folder / "training.lock", folder))
            _check_folder(folder, fitted, run)  # it may have come since
            write_text(folder / "arch.json", fitted.to_json() + "\n")
        result = train(
            model,
            data,
            settings,
            device=where,
            seed=seed,
            teacher=guide,
            start=start.id if start else None,
            checkpoint=folder / "checkpoint.pt",
            log=folder,
            on_epoch=show,
            test=True,
        )
        facts = _facts(result, fitted, data_name, settings, seed)
        facts |= {"data_fingerprint": data.fingerprint, "train_images": len(data.train), "limit": limit}
        facts |= {"class_names": list(data.class_names), "data_notes": list(data.notes)}
        facts |= {"start": start._asdict() if start else None}
        facts |= {"teacher": guide.id if guide else None, "threads": torch.get_num_threads()}
        if first:
            _save(model, result, facts, folder)
            write_safetensors(folder / "weights.safetensors", model, passport_of(fitted, data))
    return facts | {
        "first_process": first,
        "weights": str(folder / "weights.pt"),
        "arch_file": str(folder / "arch.json"),
        "log": str(folder / "training.csv"),
    }


def passport_of(arch: Arch, data: Data) -> dict[str, Any]:
    """What the weights of a network that learned from these images say of themselves, as plain data."""
    return {"nas": __version__, "arch": json.loads(arch.to_json())} | data.passport


def teacher_for(data: Data, name: str | None, weights: str | None) -> Teacher | None:
    """A teacher of networks that learn from these images, None where none is named; raises as `load_teacher`."""
    if name is None:
        return None
    return load_teacher(name, weights, data.train.input_shape, data.classes, data.train.normalisation)


def epoch_seconds(
    arch: Arch,
    data: Data,
    fields: Mapping[str, Any],
    *,
    teacher: Teacher | None = None,
    device: str = "auto",
    threads: int | None = 1,
) -> float:
    """About how long an epoch of a training takes: a few of its batches are trained on, and the result thrown away."""
    settings = read_recipe(dict(fields) | {"epochs": 1})
    request = data.request
    most = math.ceil(BATCHES * settings.batch_size / (1 - request.val_fraction)) + 1
    few = load_data(
        request.spec,
        request.input_shape,
        seed=request.seed,
        val_fraction=request.val_fraction,
        limit=min(most, request.limit or most),
    )
    with cpu_threads(threads):
        found = train(build(with_classes(arch, data.classes)), few, settings, device=device, teacher=teacher)
    return found.seconds * len(data.train) / len(few.train)


def default_folder(name: str, data: Data, kind: str = "train") -> Path:
    """`runs/KIND-NAME-DATA`; a data set that lies in a folder of the user's adds its name and its fingerprint."""
    path = data.request.path
    place = "" if path is None else f"-{path.resolve().name}-{data.fingerprint[:8]}"
    return Path("runs") / f"{kind}-{name}-{data.name}{place}"


def _check_folder(folder: Path, arch: Arch, whose: Path | None = None) -> None:
    """Raise where something else is kept in a folder; in that of a search, only its own run trains."""
    above = [path for path in folder.resolve().parents if (path / "steps.json").exists()]  # a search's records
    for place in (folder, *above):
        if (place / "request.yaml").exists() and (whose is None or place != whose.resolve()):
            raise InputError(
                f"{folder}: there is the run of a search{'' if place == folder else f', {place}'}, which writes over "
                "and deletes files in its folder, as a training would in it; choose another folder (--out)"
            )
    path = folder / "arch.json"
    there = load_arch(path) if path.exists() else arch
    if there != arch:
        raise InputError(
            f"{folder}: there is a training of another architecture, {there.family} {there.id}, and this is "
            f"{arch.family} {arch.id}; choose another folder (--out), or delete that one"
        )


def _facts(result: TrainResult, arch: Arch, data: str, recipe: Recipe, seed: int) -> dict[str, Any]:
    figures = {
        field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "history"
    }
    return {"arch": arch.id, "data": data, "seed": seed, "recipe": recipe.model_dump(), **figures}


def _save(model: torch.nn.Module, result: TrainResult, facts: dict[str, Any], folder: Path) -> None:
    write_weights(folder / "weights.pt", model)
    write_history(result.history, folder / "training.csv")
    write_text(folder / "result.json", json.dumps(facts, indent=2) + "\n")
