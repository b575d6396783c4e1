"""One training run in a folder of its own: weights, log and figures on disk, continued after an interruption."""

from __future__ import annotations

import csv
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from nas.arch import Arch
from nas.building import build, input_shape_of, load_weights, with_classes
from nas.errors import InputError, suggest
from nas.evaluation.data import load_data
from nas.evaluation.recipe import Recipe
from nas.evaluation.training import TrainResult, train
from nas.export import check_onnx, export


def read_recipe(fields: Mapping[str, Any]) -> Recipe:
    """A recipe with these fields, its defaults for the rest.

    Raises:
        InputError: naming every field that is unknown or has a bad value.
    """
    for name in fields:
        if name not in Recipe.model_fields:
            raise InputError(suggest("recipe field", name, Recipe.model_fields))
    try:
        return Recipe(**fields)
    except ValidationError as error:
        problems = [f"{item['loc'][0]}: {item['msg']}, got {item['input']!r}" for item in error.errors()]
        raise InputError(f"recipe: {'; '.join(problems)}") from error


def train_arch(
    arch: Arch,
    data_name: str,
    folder: Path,
    fields: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Train an arch on a dataset into `folder`: `arch.json`, `weights.pt`, `training.csv`, `result.json`.

    Args:
        arch: its head is fitted to the dataset's classes.
        data_name: as `load_data` takes it.
        folder: a `checkpoint.pt` in it is continued.
        fields: of the recipe, where they differ from its defaults.
        device: auto, cpu, cuda or mps.
        threads: of torch on the CPU; None leaves them as they are.
        seed: of weights, order and augmentation.
        progress: called with (epochs done, epochs, seconds left, text).

    Returns:
        The figures written to `result.json`, and the paths.
    """
    recipe = read_recipe(fields or {})
    if threads is not None:
        torch.set_num_threads(threads)
    data = load_data(data_name, arch.input_shape, seed=seed)
    fitted = with_classes(arch, data.classes)
    model = build(fitted, seed=seed, drop_path=recipe.drop_path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arch.json").write_text(fitted.to_json() + "\n", encoding="utf-8")

    def show(epoch: Mapping[str, Any]) -> None:
        if progress is not None:
            done = int(epoch["epoch"])
            left = (recipe.epochs - done) * float(epoch["seconds"])
            progress(done, recipe.epochs, left, f"epoch {done} of {recipe.epochs}, loss {epoch['train_loss']:.3f}")

    checkpoint = folder / "checkpoint.pt"
    result = train(model, data, recipe, device=device, seed=seed, checkpoint=checkpoint, on_epoch=show, test=True)
    return _save(model, result, fitted, folder, data_name, recipe, seed)


def _save(
    model: torch.nn.Module, result: TrainResult, arch: Arch, folder: Path, data: str, recipe: Recipe, seed: int
) -> dict[str, Any]:
    weights = folder / "weights.pt"
    temporary = weights.with_suffix(".tmp")
    torch.save({key: value.cpu() for key, value in model.state_dict().items()}, temporary)
    temporary.replace(weights)
    write_history(result.history, folder / "training.csv")
    facts = {
        "arch": arch.id,
        "data": data,
        "seed": seed,
        "recipe": recipe.model_dump(),
        "epochs": result.epochs,
        "val_loss": result.val_loss,
        "val_accuracy": result.val_accuracy,
        "test_loss": result.test_loss,
        "test_accuracy": result.test_accuracy,
        "seconds": result.seconds,
        "images_per_second": result.images_per_second,
        "device": result.device,
        "precision": result.precision,
    }
    (folder / "result.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return facts | {
        "weights": str(weights),
        "arch_file": str(folder / "arch.json"),
        "log": str(folder / "training.csv"),
    }


def write_history(history: tuple[Mapping[str, Any], ...], path: Path) -> None:
    """The epochs of a training run as CSV, one line each; what an epoch did not measure stays empty."""
    columns = list(dict.fromkeys(key for epoch in history for key in epoch))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(history)


def export_arch(arch: Arch, target: Path, format: str = "onnx", weights: Path | None = None) -> dict[str, Any]:
    """Export a network in deployed form, and compare the file's outputs with PyTorch's.

    Args:
        arch: the architecture.
        target: the file to write.
        format: of the file.
        weights: a state dict written by `torch.save`; None for fresh weights. It is read without executing code.

    Raises:
        InputError: unknown format, or weights that do not fit the arch.
        MeasureError: where the file's outputs differ from PyTorch's.
    """
    model = build(arch)
    if weights is not None:
        load_weights(model, read_weights(weights), str(weights))
    path = export(model, [input_shape_of(arch)], target, format)
    return {
        "arch": arch.id,
        "file": str(path),
        "format": format,
        "bytes": path.stat().st_size,
        "difference": check_onnx(path, model),
        "weights": None if weights is None else str(weights),
    }


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a file, without executing code in it.

    Raises:
        InputError: where the file is missing or holds anything but tensors by name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on files that are refused right after
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a file of weights: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: expected a state dict (tensors by name), as nas train writes it")
    return state
