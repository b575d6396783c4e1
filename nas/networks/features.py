"""Networks as backbones: the last map of every resolution, for detection and segmentation heads.

The interface is that of timm's feature extraction: a list of maps, and a `feature_info` that says their channels and
strides. `nas.build(arch, features_only=True)` makes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from nas.core.arch import Arch, steps_of
from nas.core.errors import InputError
from nas.core.ops import Block, BlockModule, Shape

Place = tuple[int, int]  # the number of a stage, and of a block in it


class StageMap(NamedTuple):
    """The last map of one resolution.

    Attributes:
        place: the block that gives it.
        channels: C of the map.
        side: its height and width.
        stride: pixels of the image from one position to the next.
        is_map: False where the block gives tokens, which are turned back into a map.
        prefix: tokens in front of those of the map, such as a class token.
    """

    place: Place
    channels: int
    side: int
    stride: int
    is_map: bool
    prefix: int

    @property
    def module(self) -> str:
        """The name of the block's module in the network."""
        return "stages.{}.{}".format(*self.place)


def stage_maps(arch: Arch) -> tuple[StageMap, ...]:
    """The maps that a network of this arch can give, strides ascending, the head left out.

    Two stages at one resolution have one map, and a stage that lowers it twice has two. Every step down counts as a
    whole factor: a map of side 10 out of one of side 19 has twice its stride. Behind a block that drops positions there
    are no maps.
    """
    side, stride, prefix = Shape(1, *arch.input_shape).side, 1, 0
    found = {}
    for (place, block), call in zip(_places(arch), steps_of(arch), strict=True):
        if place[0] == len(arch.stages) - 1 or block.no_map:
            break
        prefix += block.prefix_tokens
        if "x" in block.gives:
            x = call.outputs[block.gives.index("x")]
            prefix = 0 if x.is_map else prefix
            x_side = x.side if x.is_map else Shape(x[0], x[1] - prefix, x[2]).side
            stride, side = stride * round(side / x_side), x_side
            found[stride] = StageMap(place, x.channels, side, stride, x.is_map, prefix)
    return tuple(found.values())


class FeatureNetwork(nn.Module):
    """A network without its head that gives the maps of its stages, in timm's manner.

    The names of its weights are those of the whole network, of which it takes what it has: `load_state_dict` of a
    trained network's weights is strict but for the blocks that no map depends on. As any network it is built for
    one image size; for another, build from `dataclasses.replace(arch, input_shape=(3, 320, 320))`.

    Shape: (N, C, H, W) -> list of maps (N, channels, H / stride, W / stride), strides ascending.

    Attributes:
        arch: the whole architecture.
        feature_info: timm's `FeatureInfo`: `channels()`, `reduction()` (strides) and `module_name()`.
    """

    def __init__(self, arch: Arch, stages: Sequence[nn.Module], out_indices: int | Iterable[int] | None = None) -> None:
        """Take what is needed of a network's stages; the modules are shared, not copied.

        Args:
            arch: the architecture of the network.
            stages: the network's stages, each the modules of its blocks.
            out_indices: which of the maps to give, counted from the highest resolution, negative from the lowest;
                a single number means so many of the last; None means all.

        Raises:
            InputError: an index is out of range, or the network has a block behind which there are no maps.
        """
        from timm.models import FeatureInfo

        for _, block in _places(arch):
            if block.no_map:
                raise InputError(f"{block} has no features for detection and segmentation: {block.no_map}")

        super().__init__()
        self.arch = arch
        maps = stage_maps(arch)
        indices = _absolute(out_indices, len(maps))
        self.feature_info = FeatureInfo(
            [{"num_chs": each.channels, "reduction": each.stride, "module": each.module} for each in maps], indices
        )
        self._maps = {maps[index].place: maps[index] for index in indices}
        kept = _needed(arch, self._maps)
        self.stages = nn.ModuleList(
            nn.ModuleDict({str(n): cast(nn.ModuleList, stages[k])[n] for stage, n in kept if stage == k})
            for k in range(kept[-1][0] + 1)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Run the blocks that the maps depend on.

        Raises:
            InputError: the images have another size than the network was built for, and a block cannot take them.
        """
        try:
            return list(self._run({"x": x}))
        except RuntimeError as error:
            if x.shape[1:] == self.arch.input_shape:
                raise
            raise InputError(
                f"this network was built for images {Shape(*self.arch.input_shape)}, got {Shape(*x.shape[1:])}. For "
                "another size build it from dataclasses.replace(arch, input_shape=...)"
            ) from error

    def _run(self, streams: dict[str, Any]) -> Iterator[Tensor]:
        for number, stage in enumerate(self.stages):
            for name, block in cast(nn.ModuleDict, stage).items():
                cast(BlockModule, block).advance(streams)
                found = self._maps.get((number, int(name)))
                if found is not None:
                    yield streams["x"] if found.is_map else _to_map(streams["x"][:, found.prefix :], found.side)

    def own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the whole network without the weights of the blocks that are left out here."""
        left_out = tuple("stages.{}.{}.".format(*place) for place, _ in _places(self.arch) if not self._has(place))
        return {name: value for name, value in state.items() if not name.startswith(left_out)}

    def _has(self, place: Place) -> bool:
        return place[0] < len(self.stages) and str(place[1]) in cast(nn.ModuleDict, self.stages[place[0]])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the weights of this network, or of the whole one."""
        return super().load_state_dict(self.own(state_dict), strict, assign)


def _to_map(x: Tensor, side: int) -> Tensor:
    """(N, side * side, C) -> (N, C, side, side), a view: the positions of one channel do not become neighbours."""
    return x.transpose(1, 2).view(x.shape[0], x.shape[2], side, side)


def _places(arch: Arch) -> Iterator[tuple[Place, Block]]:
    for index, stage in enumerate(arch.stages):
        for number, block in enumerate(stage):
            yield (index, number), block


def _needed(arch: Arch, wanted: Iterable[Place]) -> list[Place]:
    """The blocks that `x` behind the wanted blocks depends on, in order."""
    wanted, open_streams, kept = set(wanted), set[str](), []
    for place, block in reversed(list(_places(arch))):
        if place in wanted:
            open_streams.add("x")
        if open_streams.intersection(block.gives):
            open_streams = open_streams.difference(block.gives).union(block.takes)
            kept.append(place)
    return kept[::-1]


def _absolute(indices: int | Iterable[int] | None, count: int) -> list[int]:
    if indices is None or isinstance(indices, int):
        indices = range(-count if indices is None else -indices, 0)
    asked = list(indices)
    if not asked or not all(-count <= index < count for index in asked):
        raise InputError(
            f"out_indices: the network has {count} maps, expected numbers from 0 to {count - 1}; got {asked}"
        )
    return sorted({index % count for index in asked})
