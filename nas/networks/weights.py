"""Weight sharing: a child architecture runs on slices of the weights of a larger network, or of those of a whole space.

There is no second, "dynamic" version of any block: the child is its ordinary model, called with the slices
(`torch.func.functional_call`), or filled with them. The n-th block of a form in a stage takes its weights from the n-th
block of that form there; blocks of one class have one form as long as their ops correspond. A slice takes the leading
indices of every part of every axis (`Op.parts`), so a fused q|k|v keeps its three parts, and the middle of a kernel.

Statistics of norms are never shared: what a child would write into them, others would read.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.core.ops import Block, BlockModule, Leaf
from nas.networks.building import Network

Sizes = tuple[tuple[int, ...], ...]
"""Of the parts of each axis of a tensor."""


class Piece(NamedTuple):
    """A tensor of a block.

    Attributes:
        name: in the block's state dict.
        key: in all blocks of its form.
        tensor: the weight, or a statistic of a norm.
        sizes: of its parts.
    """

    name: str
    key: str
    tensor: Tensor
    sizes: Sizes

    @property
    def learned(self) -> bool:
        """Whether it is a weight."""
        return isinstance(self.tensor, nn.Parameter)


class Place(NamedTuple):
    """What blocks of several networks have in common that share weights.

    Attributes:
        stage: from 0.
        form: of the block, see `form_of`.
        number: of blocks of this form before it in the stage.
    """

    stage: int
    form: str
    number: int

    def __str__(self) -> str:
        return f"{self.stage}/{self.form}/{self.number}"


def slices(large: Network, arch: Arch) -> dict[str, Tensor]:
    """The state dict of `arch` cut out of the weights of `large`.

    Weights of a single part are views, so that a child trains the large ones; statistics of norms are copies.

    Args:
        large: a network in training form, at least as deep and wide everywhere.
        arch: the child.

    Raises:
        InputError: where the child is larger, or has a block that `large` lacks, naming it.
    """
    with torch.device("meta"):
        child = Network(arch)
    theirs = {place: block for _, place, block in placed(large)}
    found: dict[str, Tensor] = {}
    for prefix, place, block in placed(child):
        if place not in theirs:
            same = sum(other[:2] == place[:2] for other in theirs)
            kind = type(block.block).__name__
            raise InputError(f"stage {place.stage + 1}: the larger network has {same} {kind}, one too few")
        found |= {f"{prefix}{name}": tensor for name, tensor in _sliced(theirs[place], block).items()}
    return found


@torch.no_grad()
def inherit(network: Network, large: Network) -> tuple[str, ...]:
    """Fill a network with slices of a larger one, block by block.

    A block that the larger network lacks, or has smaller, keeps what it has, and so does a classifier of other classes.

    Returns:
        Which blocks do, in words.
    """
    theirs = {place: block for _, place, block in placed(large)}
    fresh = []
    for _, place, block in placed(network):
        source = theirs.get(place)
        cut = None
        if source is not None and _classes(source.block) == _classes(block.block):
            try:
                cut = _sliced(source, block)
            except InputError:
                cut = None
        if cut is None:
            fresh.append(f"{type(block.block).__name__} of stage {place.stage + 1}")
        else:
            block.load_state_dict(cut)
    return tuple(fresh)


def _classes(block: Block) -> int | None:
    return getattr(block, "classes", None)


def placed(network: Network) -> Iterator[tuple[str, Place, BlockModule]]:
    """Every block with its prefix in the state dict and the place of its weights."""
    for index, stage in enumerate(network.stages):
        seen: Counter[str] = Counter()
        for number, module in enumerate(cast(nn.ModuleList, stage)):
            block = cast(BlockModule, module)
            form = form_of(block)
            yield f"stages.{index}.{number}.", Place(index, form, seen[form]), block
            seen[form] += 1


def form_of(block: BlockModule) -> str:
    """The class of a block, with a digest of the kinds of its ops that have weights, and of the names of these."""
    kinds = [(type(leaf.op).__name__, *leaf.body.state_dict()) for _, leaf in _weighted_leaves(block)]
    text = repr((kinds, [piece.key for piece in pieces(block) if piece.name == piece.key]))
    return f"{type(block.block).__name__}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def pieces(block: BlockModule) -> list[Piece]:
    """The tensors of a block: those of its ops in order, and what no op holds, such as a table of tokens."""
    found = []
    for number, (prefix, leaf) in enumerate(_weighted_leaves(block)):
        parts = leaf.op.parts()
        for key, tensor in leaf.body.state_dict(keep_vars=True).items():
            sizes = tuple(parts.get(key, {}).get(axis, (size,)) for axis, size in enumerate(tensor.shape))
            found.append(Piece(f"{prefix}.body.{key}", f"{number}.{key}", tensor, sizes))
    inside = {piece.name for piece in found}
    for key, tensor in block.state_dict(keep_vars=True).items():
        if key not in inside:
            found.append(Piece(key, key, tensor, tuple((size,) for size in tensor.shape)))
    return found


def _weighted_leaves(block: nn.Module) -> list[tuple[str, Leaf]]:
    return [(n, m) for n, m in block.named_modules() if isinstance(m, Leaf) and m.state_dict()]


def _sliced(large: BlockModule, small: BlockModule) -> dict[str, Tensor]:
    """The state dict of a block from a larger one of its form."""
    found = {}
    for mine, theirs in zip(pieces(small), pieces(large), strict=True):
        tensor = cut(theirs.tensor, theirs.sizes, mine.sizes, f"{small.block}: {mine.name}")
        found[mine.name] = tensor if theirs.learned else tensor.clone()
    return found


def cut(tensor: Tensor, have: Sizes, want: Sizes, what: str) -> Tensor:
    """The leading indices of every part of every axis, of kernels the middle.

    Args:
        tensor: the larger one.
        have: sizes of its parts.
        want: those of the slice.
        what: it is, in words.

    Raises:
        InputError: the slice does not fit.
    """
    for axis, (mine, theirs) in enumerate(zip(want, have, strict=True)):
        if mine == theirs:
            continue
        if not _fits(mine, theirs):
            raise InputError(f"{what}, axis {axis}: parts {mine} do not fit into {theirs}")
        if len(theirs) == 1:
            is_kernel = tensor.ndim == 4 and axis >= 2
            tensor = tensor.narrow(axis, (theirs[0] - mine[0]) // 2 if is_kernel else 0, mine[0])
            continue
        parts = zip(torch.split(tensor, list(theirs), axis), mine, strict=False)
        cuts = [part.narrow(axis, 0, size) for part, size in parts]
        tensor = cuts[0] if len(cuts) == 1 else torch.cat(cuts, axis)
    return tensor


def fits(small: Sizes, large: Sizes) -> bool:
    """Whether a tensor of these parts can be cut out of one of those."""
    return all(_fits(mine, theirs) for mine, theirs in zip(small, large, strict=True))


def _fits(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return len(small) <= len(large) and all(mine <= theirs for mine, theirs in zip(small, large, strict=False))


def joined_sizes(one: Sizes, two: Sizes) -> Sizes:
    """The smallest sizes that tensors of both can be cut out of."""
    return tuple(
        tuple(max(pair) for pair in itertools.zip_longest(a, b, fillvalue=0)) for a, b in zip(one, two, strict=True)
    )
