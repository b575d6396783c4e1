"""From an arch to its network: build it, put it into deployed form, count what it costs."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

import search_spaces
from nas.core.arch import Arch, steps_of
from nas.core.errors import InputError, suggest
from nas.core.ops import Block, BlockModule, Residual, Shape
from nas.core.tracing import fuse_in_place, macs_of_unit, params_of_unit
from nas.networks.features import FeatureNetwork


class Network(nn.Module):
    """The model of an arch: its stages in order, each a list of block modules.

    Shape: (N, C, H, W) -> (N, classes); in training a tuple of logits where the head has several.

    Args:
        arch: the architecture.
        modules: of its blocks, in order; None to build them.
    """

    def __init__(self, arch: Arch, modules: Iterable[BlockModule] | None = None) -> None:
        super().__init__()
        self.arch = arch
        if modules is None:
            modules = (cast(Block, call.row.unit).module(*call.row.inputs) for call in steps_of(arch))
        blocks = iter(modules)
        self.stages = nn.ModuleList(nn.ModuleList(next(blocks) for _ in stage) for stage in arch.stages)

    def forward(self, x: Tensor) -> Any:
        """Run every block on the streams that it takes."""
        return self.streams(x)["x"]

    def streams(self, x: Tensor) -> dict[str, Any]:
        """All streams behind the last block, by name: the logits are `x`; losses may read others (`kept`, `tokens`)."""
        streams: dict[str, Any] = {"x": x}
        for stage in self.stages:
            for block in cast(nn.ModuleList, stage):
                cast(BlockModule, block).advance(streams)
        return streams


@overload
def build(arch: Arch, *, seed: int = 0, drop_path: float = 0.0, features_only: Literal[False] = False) -> Network: ...
@overload
def build(arch: Arch, *, seed: int = 0, drop_path: float = 0.0, features_only: Literal[True]) -> FeatureNetwork: ...
def build(
    arch: Arch, *, seed: int = 0, drop_path: float = 0.0, features_only: bool = False
) -> Network | FeatureNetwork:
    """The network of an arch in training form, with fresh weights drawn from `seed`.

    Args:
        arch: the architecture.
        seed: of the weights; the global random state is left as it was.
        drop_path: rate of the last block; it grows linearly from 0 at the first (arXiv:1603.09382, sec. 3).
        features_only: no head; the network gives the list of its stages' maps, for detection and segmentation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(arch)
        for stage in network.stages:
            for block in cast(nn.ModuleList, stage):
                cast(BlockModule, block).block.init(cast(BlockModule, block).body)
    set_drop_path(network, drop_path)
    return FeatureNetwork(arch, list(network.stages)) if features_only else network


def set_drop_path(network: nn.Module, rate: float) -> None:
    """Give every residual its drop path probability: linear over the blocks that have residuals, 0 at the first."""
    blocks = [block for stage in cast(Any, network).stages for block in stage]
    inner = [[part for part in block.modules() if isinstance(part, Residual)] for block in blocks]
    groups = [residuals for residuals in inner if residuals]
    for number, residuals in enumerate(groups):
        for residual in residuals:
            residual.drop_path = rate * number / max(len(groups) - 1, 1) * residual.share / 100


def fuse(model: nn.Module) -> nn.Module:
    """A copy of a model in deployed form and eval mode; outputs equal within 1e-5."""
    return fuse_in_place(copy.deepcopy(model))


@dataclass(frozen=True)
class Cost:
    """What an arch costs anywhere, without a table.

    Attributes:
        params: learned parameters of the training form.
        macs: multiply-adds of convolutions, linears and matrix products at batch 1, training form.
        peak_bytes: most bytes of activations alive at once at batch 1, fp32, deployed form.
    """

    params: int
    macs: int
    peak_bytes: int


def cost_of(arch: Arch) -> Cost:
    """Parameters, multiply-adds and peak activation bytes of an arch, from its memoized blocks."""
    calls = steps_of(arch)
    return Cost(
        params=sum(params_of_unit(call.row) for call in calls),
        macs=sum(macs_of_unit(call.row) for call in calls),
        peak_bytes=max(call.peak_bytes for call in calls),
    )


def load_arch(name: str | os.PathLike[str]) -> Arch:
    """An arch from a preset name or a JSON file.

    Raises:
        InputError: for an unknown preset, naming the closest ones, or a file that is no arch, saying where.
    """
    presets = search_spaces.presets()
    if str(name) in presets:
        return presets[str(name)]
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        try:
            return Arch.from_json(path.read_text(encoding="utf-8-sig"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read as an arch file: {error}") from error
    raise InputError(
        f"{suggest('preset', str(name), presets)} nas spaces lists the presets; a file of an arch ends in .json."
    )


def with_classes(arch: Arch, classes: int) -> Arch:
    """The same architecture for another number of classes; its other blocks, and their table rows, stay."""

    def fit(block: Block) -> Block:
        return dataclasses.replace(block, classes=classes) if hasattr(block, "classes") else block  # type: ignore[call-arg]

    stages = tuple(tuple(fit(block) for block in stage) for stage in arch.stages)
    return dataclasses.replace(arch, classes=classes, stages=stages)


def input_shape_of(arch: Arch, batch: int = 1) -> Shape:
    """The shape of a batch of images for an arch."""
    return Shape(batch, *arch.input_shape)


def load_weights(
    network: nn.Module, state: Mapping[str, Tensor], where: str, remedy: str = "use the arch file saved beside it"
) -> None:
    """Load a state dict, every tensor by name and shape; a feature network takes its part of the whole network's.

    Args:
        network: gets them.
        state: tensors by name.
        where: they come from.
        remedy: what to do where they do not fit.

    Raises:
        InputError: naming the first three that are missing, unexpected and of another shape.
    """
    own = network.state_dict()
    state = network.own(state) if isinstance(network, FeatureNetwork) else state
    lacking = [f"lacks {name}" for name in own if name not in state]
    further = [f"has {name}, which the network does not" for name in state if name not in own]
    misshapen = [
        f"{name} is {tuple(value.shape)}, the network's is {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if lacking or further or misshapen:
        lines = [line for problems in (lacking, further, misshapen) for line in _first_three(problems)]
        shown = "".join(f"\n  {line}" for line in lines)
        raise InputError(f"{where} does not fit this architecture; {remedy}:{shown}")
    network.load_state_dict(dict(state))


def _first_three(problems: list[str]) -> list[str]:
    more = [f"and {len(problems) - 3} more of that kind"] if len(problems) > 3 else []
    return problems[:3] + more
