"""Trained weights from anywhere: what timm publishes, a file of ours or of timm's model, the folder of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import Tensor, nn

import search_spaces
from nas.core.arch import Arch
from nas.core.errors import InputError, suggest
from nas.core.ops import Leaf
from nas.evaluation.checkpoint import read_passport, read_weights
from nas.networks.building import Network, load_arch, load_weights, with_classes
from nas.timm_models import timm_name

OF_RUNS = ("weights.pt", "best.pt")  # of `nas train`, of `nas search`
SOURCES = "a file (.pt, .safetensors), the folder of a run, timm or timm:TAG"


class Loaded(NamedTuple):
    """What a network got.

    Attributes:
        source: where the weights come from: a path, or a model of timm with its tag.
        id: hash of what the network holds now.
        notes: what was not taken as it is, in sentences; empty where everything was.
        fresh_classifier: whether the classifier is not among what was taken.
    """

    source: str
    id: str
    notes: tuple[str, ...]
    fresh_classifier: bool = False


def load_pretrained(network: Network, source: str, *, whole: bool = False) -> Loaded:
    """Give a network trained weights.

    Weights for another number of classes leave the classifier fresh. Learned tables of positions are brought to the
    network's image size (`Op.tables`). All else has to fit.

    Args:
        network: gets them.
        source: `timm` for those that timm publishes for this preset, `timm:TAG` for those of one of its tags; the
            folder of a run; or a file: a state dict of `torch.save` or a `.safetensors`, with the names of ours or of
            timm's model of the same architecture.
        whole: whether a fresh classifier is an error, as for what will not be trained any more.

    Raises:
        InputError: no such weights, timm's cannot be fetched, or they do not fit, naming the first three tensors.
    """
    where, state = _read(source, network.arch)
    state = _under_our_names(state, network)
    notes: list[str] = []
    own = network.state_dict()
    classes = _other_classes(state, network)
    if classes is not None:
        has = f"is for {classes} classes" if classes else "is not among them"
        text = f"the classifier of these weights {has}, the network's for {network.arch.classes}"
        if whole:
            raise InputError(f"{where}: {text}; take weights for these classes")
        notes.append(f"{text}: that starts fresh")
        kept = {name: value for name, value in state.items() if not _is_classifiers(name, network)}
        state = kept | {name: value for name, value in own.items() if _is_classifiers(name, network)}
    resized = _resized(state, network)
    if resized:
        side = network.arch.input_shape[-1]
        notes.append(f"{len(resized)} learned tables of positions are of other images: resized for a side of {side}")
    load_weights(network, {**state, **resized}, where, "name weights of this very architecture")
    return Loaded(where, digest_of(network), tuple(notes), classes is not None)


def arch_of(source: str, arch: str | None = None) -> Arch:
    """The architecture that weights belong to.

    Args:
        source: as `load_pretrained` takes it.
        arch: a preset or a JSON file; None for the file beside the weights, of the same name or `arch.json`.

    Raises:
        InputError: there is none, saying what is expected.
    """
    if arch is not None:
        return load_arch(arch)
    if timm_tag(source) is not None and not Path(source).exists():
        raise InputError(f"weights {source}: of which preset? Name it (arch)")
    file = _file_of(source)
    beside = [file.with_suffix(".json"), file.with_name("arch.json")]
    found = next((path for path in beside if path.is_file()), None)
    if found is None:
        raise InputError(
            f"{file}: which architecture has these weights? None of {', '.join(path.name for path in beside)} lies "
            "beside them; name a preset or a file of it (arch)"
        )
    return load_arch(found)


def passport_beside(source: str) -> dict[str, Any]:
    """What a `.safetensors`, or that beside a file of weights, knows of them (`Data.passport`); empty without one.

    Args:
        source: as `load_pretrained` takes it.
    """
    if timm_tag(source) is not None and not Path(source).exists():
        return {}
    file = _file_of(source).with_suffix(".safetensors")
    return read_passport(file) if file.is_file() else {}


def digest_of(model: nn.Module, name: str = "") -> str:
    """Twelve hex digits of a model's weights, and of a name."""
    digest = hashlib.sha256(name.encode())
    for key, value in model.state_dict().items():
        digest.update(key.encode() + value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def timm_tag(source: str) -> str | None:
    """The tag in `timm:TAG`, "" for `timm`; None for any other source."""
    name, _, tag = source.partition(":")
    return tag if name == "timm" else None


def create_from_timm(name: str, channels: int, remedy: str) -> nn.Module:
    """timm's model with its published weights.

    Args:
        name: with or without a tag.
        channels: of the images; timm adapts the first convolution.
        remedy: what to do where they cannot be had.

    Raises:
        InputError: there are none, none of this tag, or they cannot be fetched.
    """
    model, _, tag = name.partition(".")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{model}.*")]
    if tag and tag not in tags:
        raise InputError(f"{suggest(f'tag of {model} in timm', tag, tags)}")
    try:
        return cast(nn.Module, timm.create_model(name, pretrained=True, in_chans=channels))
    except (RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"timm's weights of {name} cannot be fetched ({reason}); {remedy}") from error


def _read(source: str, arch: Arch) -> tuple[str, Mapping[str, Tensor]]:
    """Where the weights come from, and tensors by name, ours or timm's."""
    path = Path(source)
    tag = timm_tag(source)
    if tag is not None and not path.exists():
        name = _published(arch) + (f".{tag}" if tag else "")
        remedy = (
            f"fetch them where there is internet, and name the file (--weights {name.partition('.')[0]}.safetensors)"
        )
        return f"timm's {name}", create_from_timm(name, arch.input_shape[0], remedy).state_dict()
    path = _file_of(source)
    return str(path), read_weights(path)


def _file_of(source: str) -> Path:
    """The file of weights that is meant: this one, or that of a run."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = [path / name for name in OF_RUNS if (path / name).is_file()]
        if not files:
            raise InputError(f"{source}: no trained weights in this folder, neither {' nor '.join(OF_RUNS)}")
        return files[0]
    if not path.exists():
        raise InputError(f"weights {source}: there is no such file; expected {SOURCES}")
    return path


def _published(arch: Arch) -> str:
    """What timm calls its implementation of a preset, for other classes and image sizes, too."""
    stages = with_classes(arch, 1000).stages
    for preset, known in search_spaces.presets().items():
        if with_classes(known, 1000).stages == stages:
            name = timm_name(preset)
            if name is None:
                raise InputError(f"weights of timm: it publishes none for {preset}; expected {SOURCES}")
            return name
    raise InputError(
        f"weights of timm: it publishes those of presets (nas spaces lists them), and {arch.family} {arch.id} is none"
    )


def _under_our_names(state: Mapping[str, Tensor], network: Network) -> Mapping[str, Tensor]:
    """A state dict of ours as it is, one of timm's with our names; what is neither as it is, for the error."""
    own = network.state_dict()
    convert = getattr(search_spaces.family_of(network.arch.family), "from_timm", None)
    if convert is None or len(own.keys() & state.keys()) > len(own) // 2:
        return state
    try:
        found = cast(Mapping[str, Tensor], convert(state, network.arch))
    except (LookupError, RuntimeError, ValueError):  # of another architecture
        return state
    return found if len(own.keys() & found.keys()) > len(own.keys() & state.keys()) else state


def _classifiers(network: Network) -> tuple[str, ...]:
    """The beginnings of the names of what knows the classes."""
    return tuple(
        f"stages.{index}.{number}."
        for index, stage in enumerate(network.arch.stages)
        for number, block in enumerate(stage)
        if "classes" in block.names()
    )


def _is_classifiers(name: str, network: Network) -> bool:
    return name.startswith(_classifiers(network))


def _other_classes(state: Mapping[str, Tensor], network: Network) -> int | None:
    """The number of classes of the weights where the network has another, 0 where they have no classifier."""
    own = {name: value for name, value in network.state_dict().items() if _is_classifiers(name, network)}
    if not own.keys() & state.keys():
        return 0
    pairs = [(own[name].shape, state[name].shape) for name in own if name in state]
    other = [theirs[0] for mine, theirs in pairs if theirs and mine != theirs and mine[1:] == theirs[1:]]
    return other[0] if other else None


def _resized(state: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """The tables that were learned on maps of another side, for those of this network."""
    found = {}
    own = network.state_dict()
    for place, leaf in network.named_modules():
        if isinstance(leaf, Leaf):
            for key, change in leaf.op.tables().items():
                name = f"{place}.body.{key}"
                if name in state and state[name].shape != own[name].shape:
                    found[name] = change(state[name])
    return found
