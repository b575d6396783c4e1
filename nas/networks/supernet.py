"""One set of weights for all networks of a space.

There is a tensor for each weight of the n-th block of a form in a stage, as large as any network of the space needs it
there; a network takes its slices (`nas.networks.weights`). So blocks of different classes, such as the kinds of a
hybrid space, have weights of their own, and no network has to contain all others.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nas.core.arch import Arch, steps_of
from nas.core.errors import InputError
from nas.core.ops import Block, BlockModule, Row
from nas.core.space import Space
from nas.networks.building import Network
from nas.networks.weights import Piece, Place, Sizes, cut, fits, form_of, joined_sizes, pieces


class _Form(NamedTuple):
    """What a row says of its weights: the form of its block, and its pieces on the meta device."""

    name: str
    pieces: tuple[Piece, ...]


@functools.cache
def _form(row: Row) -> _Form:
    with torch.device("meta"):
        block = _module(row)
    return _Form(form_of(block), tuple(piece for piece in pieces(block) if piece.learned))


def _module(row: Row) -> BlockModule:
    return cast(Block, row.unit).module(*row.inputs)


class Supernet(nn.Module):
    """The weights that all networks of a space share.

    Args:
        space: what it is called in errors.
        weights: by the name of their place and their key there.
        sizes: of the parts of each.
    """

    def __init__(self, space: str, weights: Mapping[str, Tensor], sizes: Mapping[str, Sizes]) -> None:
        super().__init__()
        self.space, self.weights, self.sizes = space, dict(weights), dict(sizes)
        for name, tensor in weights.items():
            if not isinstance(tensor, nn.Parameter):
                tensor = self.weights[name] = nn.Parameter(tensor)
            path, _, key = name.rpartition(".")  # optimizers ask for the names of parameters that end in `.bias`
            path = path.replace(".", "/")
            if path not in self._modules:
                self.add_module(path, nn.Module())
            cast(nn.Module, self._modules[path]).register_parameter(key, tensor)
        self._hollow: dict[tuple[Row, int], BlockModule] = {}

    @classmethod
    def fresh(cls, space: Space, seed: int = 0) -> Supernet:
        """With weights drawn from `seed` as those of fresh networks are.

        A slice begins as a part of the largest block that has it.
        """
        rows: dict[Place, set[Row]] = {}
        for index, layer in enumerate(space._walk):
            for laid, head in {(step.rows, len(step.head)) for steps in layer.values() for step in steps}:
                body = len(laid) - head
                for stage, part in ((index, laid[:body]), (index + 1, laid[body:])):
                    for place, row in zip(_places(stage, part), part, strict=True):
                        rows.setdefault(place, set()).add(row)
        weights: dict[str, Tensor] = {}
        sizes: dict[str, Sizes] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for place in sorted(rows):
                begun = _begun(rows[place])
                weights |= {f"{place}/{key}": weight for key, (weight, _) in begun.items()}
                sizes |= {f"{place}/{key}": found for key, (_, found) in begun.items()}
        return cls(space.name, weights, sizes)

    def network(self, arch: Arch) -> Network:
        """The network of an arch without weights of its own: they are on the meta device, statistics of norms are not.

        Its blocks are remembered, and those of a later network of like blocks: use one at a time.
        """
        device = next(self.parameters()).device
        seen: Counter[Row] = Counter()
        modules = []
        for call in steps_of(arch):
            key = call.row, seen[call.row]
            if key not in self._hollow:
                self._hollow[key] = _hollow(call.row, device)
            modules.append(self._hollow[key])
            seen[call.row] += 1
        return Network(arch, modules)

    def slices(self, arch: Arch) -> dict[str, Tensor]:
        """The weights of an arch by their names in its state dict; those of a single part are views.

        Raises:
            InputError: the space has no such network, naming what is beyond it.
        """
        found = {}
        steps = iter(steps_of(arch))
        for index, stage in enumerate(arch.stages):
            rows = [next(steps).row for _ in stage]
            for number, (place, row) in enumerate(zip(_places(index, rows), rows, strict=True)):
                where = f"supernet of {self.space}: stage {arch.stage_name(index)}: "
                for piece in _form(row).pieces:
                    name = f"{place}/{piece.key}"
                    if name not in self.weights:
                        kind = type(row.unit).__name__
                        raise InputError(f"{where}no weights for {place.number + 1} {kind} in {arch.family} {arch.id}")
                    have, what = self.sizes[name], f"{where}{row.unit}: {piece.name}"
                    found[f"stages.{index}.{number}.{piece.name}"] = cut(self.weights[name], have, piece.sizes, what)
        return found

    def channels_last(self) -> Supernet:
        """Itself, with weights of convolutions in that memory format."""
        for weight in self.weights.values():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        return self


def _places(stage: int, rows: Iterable[Row]) -> Iterator[Place]:
    """The places of the weights of a stage's blocks."""
    seen: Counter[str] = Counter()
    for row in rows:
        form = _form(row).name
        yield Place(stage, form, seen[form])
        seen[form] += 1


@torch.no_grad()
def _begun(rows: set[Row]) -> dict[str, tuple[Tensor, Sizes]]:
    """Fresh weights of a place for blocks of one form, with the sizes of their parts, by key."""
    sizes: dict[str, Sizes] = {}
    for row in rows:
        for piece in _form(row).pieces:
            sizes[piece.key] = joined_sizes(sizes.get(piece.key, piece.sizes), piece.sizes)
    largest: list[Row] = []
    for row in sorted(rows, key=lambda row: (-sum(piece.tensor.numel() for piece in _form(row).pieces), str(row))):
        if not any(_covers(other, row) for other in largest):
            largest.append(row)
    begun = {key: torch.zeros([sum(parts) for parts in found]) for key, found in sizes.items()}
    learns = {}
    for row in reversed(largest):
        block = _module(row)
        block.block.init(block.body)
        for piece in pieces(block):
            if piece.learned:
                place = torch.arange(begun[piece.key].numel()).view(begun[piece.key].shape)
                chosen = cut(place, sizes[piece.key], piece.sizes, piece.key)
                begun[piece.key].view(-1)[chosen.reshape(-1)] = piece.tensor.reshape(-1)
                learns[piece.key] = piece.tensor.requires_grad
    return {key: (nn.Parameter(weight, learns[key]), sizes[key]) for key, weight in begun.items()}


def _covers(large: Row, small: Row) -> bool:
    return all(
        fits(mine.sizes, theirs.sizes) for mine, theirs in zip(_form(small).pieces, _form(large).pieces, strict=True)
    )


def _hollow(row: Row, device: torch.device) -> BlockModule:
    """The module of a row with its weights on the meta device and everything else where it is used."""
    with torch.random.fork_rng(devices=[]):
        block = _module(row)
    for part in block.modules():
        for key, weight in part._parameters.items():
            if weight is not None:
                part._parameters[key] = nn.Parameter(weight.to("meta"), weight.requires_grad)
        for key, value in part._buffers.items():
            if value is not None:
                part._buffers[key] = value.to(device)
    return block
