"""Trained networks from files: weights with the architecture they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.core.files import hash_of
from nas.evaluation.checkpoint import read_weights
from nas.networks.building import Network, build, load_arch, load_weights

NAMES = ("weights", "best")  # of what a training leaves in its folder, and of what a search does


@dataclass(frozen=True)
class Trained:
    """Where a trained network is.

    Attributes:
        file: of its weights.
        arch: its architecture.
        hash: SHA-256 of the file.
    """

    file: Path
    arch: Arch
    hash: str

    def network(self) -> Network:
        """The network.

        Raises:
            InputError: the file is gone, another than it was, damaged, or does not fit the architecture.
        """
        if not self.file.is_file() or hash_of(self.file) != self.hash:
            raise InputError(f"{self.file}: gone, or not the weights that were there before; put them back")
        network = build(self.arch)
        load_weights(network, read_weights(self.file), str(self.file))
        return network


def find_trained(place: Path, arch: str | None = None) -> Trained:
    """A trained network in a file of weights, or in the folder of a training or search.

    Args:
        place: that file or folder.
        arch: a preset or a JSON file; None for the one that lies beside the weights, of the same name or `arch.json`.

    Raises:
        InputError: there is none, or its architecture is not known, saying what is expected.
    """
    file = place
    if place.is_dir():
        file = next((place / f"{name}.pt" for name in NAMES if (place / f"{name}.pt").is_file()), place)
        if file == place:
            raise InputError(
                f"{place}: no {' or '.join(f'{name}.pt' for name in NAMES)} there, as a training or search that has "
                "ended leaves it; name a file of weights"
            )
    if not file.is_file():
        raise InputError(f"{place}: no such file of weights, or folder with them")
    if arch is not None:
        return Trained(file.resolve(), load_arch(arch), hash_of(file))
    beside = [file.with_suffix(".json"), file.with_name("arch.json")]
    found = next((path for path in beside if path.is_file()), None)
    if found is None:
        raise InputError(
            f"{file}: which architecture has these weights? None of {', '.join(path.name for path in beside)} lies "
            "beside them; name a preset or a file of it (arch)"
        )
    return Trained(file.resolve(), load_arch(found), hash_of(file))
