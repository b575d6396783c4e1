"""What was trained, by name: a run of `nas search`, the folder of `nas train`, or an architecture with weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.networks import building
from nas.search.archs import load_arch
from nas.search.request import Request


@dataclass(frozen=True)
class Trained:
    """A network, and what it was trained on where a folder says so.

    Attributes:
        arch: the architecture.
        weights: as `load_pretrained` takes them; None where nothing names any.
        data: as `load_data` takes it; None likewise.
        seed, limit: of the division of the data's images.
    """

    arch: Arch
    weights: str | None = None
    data: str | None = None
    seed: int = 0
    limit: int | None = None


def load_trained(name: str, weights: str | None = None, data: str | None = None) -> Trained:
    """Find a network by name; a run and the folder of a training say its weights and its data, too.

    Args:
        name: as `load_arch` takes it, or the folder of a training.
        weights, data: in place of those that the folder says.

    Raises:
        InputError: as `load_arch`, or a folder whose record cannot be read.
    """
    folder = Path(name)
    if (folder / "request.yaml").is_file():
        request = Request.read(folder / "request.yaml")
        found = Trained(load_arch(name), str(folder), request.dataset, request.seed, request.limit)
    elif (folder / "arch.json").is_file():
        arch = building.load_arch(folder / "arch.json")
        try:
            record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            found = Trained(arch, str(folder), record["data"], record["seed"], record.get("limit"))
        except (OSError, ValueError, LookupError) as error:
            raise InputError(
                f"{folder}: this training is not finished, or its result.json cannot be read ({error}); give the same "
                f"nas train again, or name {folder / 'arch.json'} with --weights and --data"
            ) from error
    else:
        found = Trained(load_arch(name))
    changes = {key: value for key, value in (("weights", weights), ("data", data)) if value is not None}
    return Trained(**{**vars(found), **changes})
