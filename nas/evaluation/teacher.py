"""Frozen teachers: a preset or a found architecture with its weights, or any classifier of timm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

import search_spaces
from nas.core.arch import Arch
from nas.core.errors import InputError, suggest
from nas.core.ops import BlockModule
from nas.evaluation.checkpoint import read_weights
from nas.evaluation.data import Normalisation, normalisation
from nas.evaluation.pretrained import create_from_timm, digest_of, load_pretrained, timm_tag
from nas.networks.building import Network, build, load_arch, load_weights, with_classes
from nas.timm_models import from_timm, timm_name

IMAGENET = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


class Answer(NamedTuple):
    """What a teacher says about images: logits (N, classes), and where asked for its patch tokens behind the last norm.

    Attributes:
        logits: (N, classes).
        tokens: (N, T, C), or None.
        token_logits: (N, T, classes) of a teacher that classifies tokens (LV-ViT), or None.
    """

    logits: Tensor
    tokens: Tensor | None = None
    token_logits: Tensor | None = None


class Teacher:
    """A frozen model in eval mode.

    Attributes:
        name: a preset, a file of an arch, or a model of timm.
        model: the network.
        arch: ours, None for a model of timm.
        id: hash of name and weights.

    Args:
        side: of the images it takes, in pixels.
        given: the normalisation of the images that it is asked about.
        learned: that of the images it learned from; None for the same.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        arch: Arch | None,
        side: int,
        given: Normalisation | None = None,
        learned: Normalisation | None = None,
    ) -> None:
        self.name, self.arch, self.side = name, arch, side
        self.change = None if given is None or learned is None or given == learned else _change(given, learned)
        self.model = model.eval().requires_grad_(False)
        self.id = digest_of(model, name)

    def to(self, device: torch.device) -> Teacher:
        """The same teacher, on `device`."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor, *, tokens: bool = False) -> Answer:
        """What it says about images (N, C, H, W), which are brought to its own normalisation and resolution."""
        if self.change is not None:
            factor, offset = (value.to(images.device)[:, None, None] for value in self.change)
            images = images * factor + offset
        if images.shape[-1] != self.side:
            images = nn.functional.interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        if not tokens:
            return Answer(self.model(images).float())
        return _our_tokens(self.model, images) if isinstance(self.model, Network) else _timm_tokens(self.model, images)


def _change(given: Normalisation, learned: Normalisation) -> tuple[Tensor, Tensor]:
    """Factor and offset of each channel, from one normalisation to another."""
    mean, std, own_mean, own_std = (torch.tensor(each) for each in (*given, *learned))
    return std / own_std, (mean - own_mean) / own_std


def load_teacher(
    name: str,
    weights: str | os.PathLike[str] | None,
    input_shape: tuple[int, int, int],
    classes: int,
    given: Normalisation | None = None,
) -> Teacher:
    """A teacher for images (C, H, W) of `classes` classes.

    Our networks take images as the data normalise them, those of timm as timm says of the model (its `pretrained_cfg`),
    which is how its scripts train them.

    Args:
        name: a preset, a JSON file of an arch, or a model that timm knows.
        weights: for ours as `load_pretrained` takes them; for a model of timm a state dict, None or `timm` for its
            published ones.
        input_shape: of the student's images; other resolutions are resized.
        classes: of the data set.
        given: the normalisation of the student's images (`Split.normalisation`).

    Raises:
        InputError: unknown name, no weights, another number of classes or channels, or a model of timm whose images
            are normalised otherwise than ImageNet's while nobody knows how the student's are.
    """
    if name in search_spaces.presets() or Path(name).suffix == ".json":
        teacher = _ours(name, weights, classes)
    elif timm.is_model(name):
        teacher = _from_timm(name, weights, input_shape, classes, given)
    else:
        known = [*search_spaces.presets(), *timm.list_models()]
        raise InputError(
            f"{suggest('teacher', name, known)} nas spaces lists our presets; a file of an arch ends in .json."
        )
    with torch.no_grad():
        logits = _tried(teacher, input_shape)
    if logits.shape[1] != classes:
        raise InputError(
            f"teacher {name} gives {logits.shape[1]} logits, the data has {classes} classes; take one trained on them"
        )
    return teacher


def _ours(name: str, weights: str | os.PathLike[str] | None, classes: int) -> Teacher:
    if weights is None:
        raise InputError(
            f"teacher {name}: without weights it knows nothing; name the file that nas train wrote, or timm for those "
            "that timm publishes"
        )
    arch = with_classes(load_arch(name), classes)
    model = build(arch)
    load_pretrained(model, str(weights), whole=True)
    return Teacher(name, model, arch, arch.input_shape[1])


def _from_timm(
    name: str,
    weights: str | os.PathLike[str] | None,
    input_shape: tuple[int, int, int],
    classes: int,
    given: Normalisation | None,
) -> Teacher:
    tag = "" if weights is None else timm_tag(str(weights))
    if weights is None or tag is not None:
        named = f"{name.partition('.')[0]}.{tag}" if tag else name
        model = create_from_timm(named, input_shape[0], "name a file of the teacher's")
    else:
        model = timm.create_model(name, in_chans=input_shape[0], num_classes=classes)
        remedy = f"name one of timm's {name} for {classes} classes"
        load_weights(model, read_weights(Path(weights)), str(weights), remedy)
    facts = cast(Any, model).pretrained_cfg
    learned = None if isinstance(model, Network) else normalisation(facts["mean"], facts["std"], input_shape[0])
    if given is None and learned not in (None, normalisation(*IMAGENET, input_shape[0])):
        raise InputError(
            f"teacher {name} takes images of mean {facts['mean']} and std {facts['std']}, and the data set does not "
            f"say how it normalises its own; give its Split a `normalisation`, or take a teacher with ImageNet's"
        )
    side = facts["input_size"][1] if facts.get("fixed_input_size", False) else input_shape[1]
    return Teacher(name, model, None, side, given, learned)


def _tried(teacher: Teacher, input_shape: tuple[int, int, int]) -> Tensor:
    try:
        return teacher(torch.zeros(1, *input_shape)).logits
    except RuntimeError as error:
        shape = "x".join(map(str, input_shape))
        raise InputError(
            f"teacher {teacher.name} takes no images {shape}: {str(error).partition(chr(10))[0]}"
        ) from error


def _our_tokens(network: Network, images: Tensor) -> Answer:
    """The head's first block takes the norm of what reaches it, of the class token only: here it is that of all."""
    head = [cast(BlockModule, block) for block in cast(nn.ModuleList, network.stages[-1])]
    norm = getattr(head[0].body, "norm", None)
    if norm is None:
        raise InputError(f"distill_tokens: a {network.arch.family} has no tokens behind a last norm; take DeiT, LV-ViT")
    reached: list[Tensor] = []
    handle = head[0].register_forward_pre_hook(lambda module, inputs: reached.append(inputs[0]))
    try:
        logits = network(images).float()
    finally:
        handle.remove()
    tokens = norm(reached[0])
    classify = getattr(head[-1].body, "token_logits", None)
    return Answer(logits, tokens[:, 1:].float(), None if classify is None else classify(tokens)[:, 1:].float())


def _timm_tokens(model: Any, images: Tensor) -> Answer:
    tokens = model.forward_features(images)
    if tokens.ndim != 3 or not hasattr(model, "num_prefix_tokens"):
        raise InputError(f"distill_tokens: {type(model).__name__} of timm has no patch tokens; take a DeiT")
    return Answer(model.forward_head(tokens).float(), tokens[:, model.num_prefix_tokens :].float())


def start_from(teacher: Teacher, student: Network) -> None:
    """Give a student the teacher's weights; a network that drops tokens takes those of its host.

    Raises:
        InputError: the two are not of the same architecture.
    """
    arch, state = _as_ours(teacher)
    convert = getattr(search_spaces.family_of(student.arch.family), "from_host", None)
    found: Mapping[str, Tensor] = state if convert is None else convert(state, arch, student.arch)
    added = {key: value for key, value in student.state_dict().items() if key not in found} if convert else {}
    load_weights(student, {**found, **added}, f"teacher {teacher.name}")


def _as_ours(teacher: Teacher) -> tuple[Arch, Mapping[str, Tensor]]:
    if teacher.arch is not None:
        return teacher.arch, teacher.model.state_dict()
    for preset in search_spaces.presets():
        if timm_name(preset) == teacher.name.partition(".")[0]:  # behind the dot is what it was trained on
            return load_arch(preset), from_timm(preset, teacher.model.state_dict())
    raise InputError(f"start: {teacher.name} of timm is no preset of ours, so a student cannot start from its weights")
