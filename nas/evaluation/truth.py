"""Networks really trained, by which scores are judged: files of one JSON object a line, one line a training.

A line holds `arch` (a JSON object, or a preset's name), `seed`, `test_accuracy` (0..1), `recipe` and `images` (to train
and validate on). Where it has `set` (`band`: networks of like MACs, which a search within a budget has to rank;
`broad`: over a wide range), `val_loss` (nats, what a search sees of a training) and `seconds` (of the training), these
are read, too, and what else stands there is not. One comes with the package, `fashion-mnist`, which
`benchmarks/truth/make.py` makes; `published` is no file, but what the authors of the presets report: there recipes are
mixed, and make for a part of the differences.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import search_spaces
from nas.core.arch import Arch
from nas.core.errors import InputError, brief, suggest
from nas.networks.building import cost_of

SHIPPED = Path(__file__).with_name("truths")
DEFAULT, PUBLISHED = "fashion-mnist", "published"
IMAGENET_IMAGES = 1_281_167  # to learn from
BAND = (0.4, 0.6)  # quantiles of MACs between which a published network is of the band
SETS = ("broad", "band")


@dataclass(frozen=True)
class Known:
    """A network whose accuracy is known.

    Attributes:
        arch: the network.
        set: `broad` or `band`.
        accuracies: on the test split, 0..1, one of each training.
        val_losses: of the same trainings; NaN where the file does not say.
        seconds: that each took; likewise.
    """

    arch: Arch
    set: str
    accuracies: tuple[float, ...]
    val_losses: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Truth:
    """What a file holds.

    Attributes:
        file: the file; of `published` its name alone.
        networks: in its order, each once.
        recipe: of all trainings, by name.
        images: that each had to train and validate on.
    """

    file: Path
    networks: tuple[Known, ...]
    recipe: str
    images: int

    @property
    def losses(self) -> np.ndarray:
        """What a search sees of each network: the validation loss of its first training, or the negative of its
        accuracy where the file has no losses. Shape: (n,)
        """
        seen = np.array([each.val_losses[0] if each.val_losses else math.nan for each in self.networks])
        return seen if np.isfinite(seen).all() else np.array([-each.accuracies[0] for each in self.networks])


def names() -> list[str]:
    """Names of the truths that there are without a file of one's own, as `load` takes them."""
    return sorted([PUBLISHED, *(path.stem for path in SHIPPED.glob("*.jsonl") if path.is_file())])


def load(name: str | os.PathLike[str]) -> Truth:
    """A truth, from the path of its file or from its name; raises as `find` and `read` do."""
    return published() if str(name) == PUBLISHED and not Path(name).is_file() else read(find(name))


def published() -> Truth:
    """What the authors of the presets report, see `search_spaces.PUBLISHED`; the band is the middle fifth by MACs."""
    presets, known = search_spaces.presets(), search_spaces.published()
    reported = {presets[name]: each.top1 for name, each in sorted(known.items()) if each.top1 is not None}
    macs = np.array([cost_of(arch).macs for arch in reported])
    low, high = np.quantile(macs, BAND)
    sets = np.where((low <= macs) & (macs <= high), "band", "broad").tolist()
    networks = (Known(arch, part, (top1,)) for (arch, top1), part in zip(reported.items(), sets, strict=True))
    return Truth(Path(PUBLISHED), tuple(networks), "published", IMAGENET_IMAGES)


def find(name: str | os.PathLike[str]) -> Path:
    """The file of a truth, from its path or from the name of a shipped file.

    Raises:
        InputError: where neither exists.
    """
    for path in (Path(name), SHIPPED / f"{name}.jsonl"):
        if path.is_file():
            return path
    raise InputError(f"{suggest('truth', str(name), names())} It is no file either; benchmarks/truth/make.py makes one")


def read(file: Path) -> Truth:
    """Read a truth; a last line that is still being written, so without its end, does not count.

    Raises:
        InputError: naming file, line and what is wrong.
    """
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a truth: {error}") from error
    found: dict[Arch, dict[int, tuple[float, float, float]]] = {}
    sets: dict[Arch, str] = {}
    trained: list[tuple[str, Any]] = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), 1):
        where = f"{file}:{number}"
        data = _object(line, where)
        arch = _arch(data["arch"], f"{where}: arch")
        accuracy, seed = data["test_accuracy"], data["seed"]
        if isinstance(accuracy, bool) or not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
            raise InputError(f"{where}: test_accuracy: expected 0 to 1, got {brief(accuracy)}")
        said = data.get("set", SETS[0])
        if said not in SETS or sets.setdefault(arch, said) != said:
            raise InputError(f"{where}: set: expected broad or band, one for each network, got {brief(said)}")
        trained.append((str(data["recipe"]), data["images"]))
        if trained[-1] != trained[0]:
            raise InputError(f"{where}: trained as {trained[-1]}, the first as {trained[0]}; a truth has one recipe")
        if seed in found.setdefault(arch, {}):
            raise InputError(f"{where}: network {arch.id} with seed {brief(seed)} stands there twice")
        found[arch][seed] = (float(accuracy), _number(data, "val_loss", where), _number(data, "seconds", where))
    if not trained:
        raise InputError(f"{file}: no network stands there yet")
    networks = tuple(Known(arch, sets[arch], *zip(*seeds.values(), strict=True)) for arch, seeds in found.items())
    return Truth(file, networks, *trained[0])


def _number(data: dict[str, Any], key: str, where: str) -> float:
    """A number of a line; NaN where it has none."""
    value = data.get(key)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: {key}: expected a number, got {brief(value)}")
    return float(value)


def _arch(given: Any, where: str) -> Arch:
    """A network from its JSON object, or from the name of a preset."""
    if not isinstance(given, str):
        return Arch.from_json(json.dumps(given), where)
    presets = search_spaces.presets()
    if given not in presets:
        raise InputError(f"{where}: {suggest('preset', given, presets)}")
    return presets[given]


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}; remove the line") from error
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected an object, got {brief(data)}")
    for key in ("arch", "seed", "test_accuracy", "recipe", "images"):
        if key not in data:
            raise InputError(f"{where}: {key} is missing")
    return data
