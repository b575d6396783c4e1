"""Files of weights and of trainings that go on later: written whole or not at all, read without executing code."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from nas.core.errors import InputError
from nas.core.files import write_bytes


def write_checkpoint(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write a state.

    Args:
        path: the file.
        identity: what must be the same for the checkpoint to fit, as two levels of plain data.
        state: tensors and plain data.

    Raises:
        RunError: it cannot be written; what was there stays.
    """
    _save(path, {"identity": json.dumps(identity), **state})


def write_weights(path: Path, model: torch.nn.Module) -> None:
    """Write the state dict of a model, on the CPU; raises as `write_checkpoint`."""
    _save(path, {key: value.cpu() for key, value in model.state_dict().items()})


PASSPORT = "millinas"  # key of the metadata of a .safetensors


def write_safetensors(path: Path, model: torch.nn.Module, passport: Mapping[str, Any]) -> None:
    """Write the weights of a model as `.safetensors`, with plain data about them in its metadata; raises as
    `write_checkpoint`.
    """
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    write_bytes(path, save(state, {PASSPORT: json.dumps(passport)}))


def read_passport(path: Path) -> dict[str, Any]:
    """What `write_safetensors` wrote about the weights; empty for a file that somebody else wrote.

    Raises:
        InputError: it is no such file.
    """
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(PASSPORT, "{}")
        found: dict[str, Any] = json.loads(text)
    except Exception as error:  # the reader's own errors are of no class that it names
        raise InputError(f"{path}: cannot be read as safetensors: {error}") from error
    return found


def _save(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch answers a full disk with an error of its own, which does not say what it is
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


def read_checkpoint(path: Path, identity: dict[str, Any] | None) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU; of whatever training where no identity is given.

    Raises:
        InputError: the file is damaged, or belongs to another training; it is not touched.
    """
    try:
        content: dict[str, Any] = _read(path)
        found = json.loads(content["identity"])
    except (InputError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}); delete it to start over") from error
    expected = found if identity is None else json.loads(json.dumps(identity))
    if found != expected:
        raise InputError(
            f"{path}: checkpoint of another training: {'; '.join(_differences(found, expected))}. "
            f"Ask for the same again, or delete it to start over"
        )
    return content


def _differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """`recipe.epochs is 10 there, 12 here` for each value that differs."""
    sections = [(name, found.get(name, {}), expected.get(name, {})) for name in sorted({*found, *expected})]
    return [
        f"{name}.{key} is {there.get(key)!r} there, {here.get(key)!r} here"
        for name, there, here in sections
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a file that `torch.save` wrote, or a `.safetensors`, without executing code in it.

    Raises:
        InputError: where the file is missing or holds anything but tensors by name.
    """
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read(path)
    except InputError as error:
        raise InputError(f"{path}: cannot be read as a file of weights: {error}") from error
    if isinstance(state, dict) and state and _is_tensors(state):
        return state
    raise InputError(f"{path}: expected a state dict (tensors by name), as nas train writes it; {_instead(state)}")


def _instead(state: Any) -> str:
    """What a file holds that is no state dict, and what to do."""
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}"
    if "identity" in state:
        return "it is the checkpoint of a training that may go on; when that has ended, weights.pt lies beside it"
    inner = [key for key, value in state.items() if isinstance(value, dict) and value and _is_tensors(value)]
    if not inner:
        return f"it holds {', '.join(map(repr, list(state)[:3])) or 'nothing'}"
    return (
        f"it holds one under {inner[0]!r} beside other things; write that alone: "
        f"torch.save(torch.load(FILE, weights_only=True)[{inner[0]!r}], OTHER)"
    )


def _is_tensors(values: dict[Any, Any]) -> bool:
    return all(isinstance(value, torch.Tensor) for value in values.values())


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """What a `.safetensors` holds.

    Raises:
        InputError: why it cannot be read.
    """
    try:
        return load_file(path, "cpu")
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error
    except Exception as error:  # the reader's own errors are of no class that it names
        raise InputError(f"it is damaged, or no safetensors: {error}") from error


def _read(path: Path) -> Any:
    """What `torch.save` wrote, tensors and plain data; no code in it is executed.

    Raises:
        InputError: why it cannot be read. PyTorch's own text is left out: it advises to execute what the file holds.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on files that are refused right after
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(error.strerror or str(error)) from error
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise InputError("it was not written by torch.save") from error
        raise InputError(
            "it holds objects of Python, not only tensors, such as a whole model; where you trust it, load it and "
            "write its weights alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # the reader fails in many ways on what is something else
        raise InputError("it is damaged, or was not written by torch.save") from error
