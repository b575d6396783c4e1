"""Weight sharing: a child architecture runs on slices of the weights of a larger one.

There is no second, "dynamic" version of any block: the child is its ordinary model, called with the slices
(`torch.func.functional_call`). A slice takes the leading indices of every part of every axis (`Op.parts`), so a fused
q|k|v keeps its three parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from nas.core.arch import Arch
from nas.core.errors import InputError
from nas.core.ops import BlockModule, Leaf, Op, Unit
from nas.networks.building import Network


def slices(large: Network, arch: Arch) -> dict[str, Tensor]:
    """The state dict of `arch` cut out of the weights of `large`; single-part slices are views of them.

    In every stage the n-th block of a class takes the weights of the n-th block of that class.

    Args:
        large: a network in training form, at least as deep and wide everywhere.
        arch: the child.

    Raises:
        InputError: where the child is larger, or has a block that `large` lacks, naming it.
    """
    with torch.device("meta"):
        child = Network(arch)
    found = {}
    for prefix, mine, theirs in _pairs(child, large):
        for (name, leaf), source in zip(
            _weighted_leaves(mine), (leaf for _, leaf in _weighted_leaves(theirs)), strict=True
        ):
            if type(leaf.op) is not type(source.op):
                raise InputError(f"{prefix}{name}: {leaf.op} cannot take weights of {source.op}")
            for key, tensor in source.body.state_dict(keep_vars=True).items():
                wanted = leaf.body.state_dict()[key].shape
                found[f"{prefix}{name}.body.{key}"] = _cut(tensor, wanted, key, leaf.op, source.op)
        learned = theirs.state_dict(keep_vars=True)
        for key, tensor in mine.state_dict().items():  # what no op holds, such as a table of tokens
            if prefix + key not in found:
                found[prefix + key] = _cut(learned[key], tensor.shape, key, mine.block, theirs.block)
    return found


def _pairs(child: Network, large: Network) -> Iterator[tuple[str, BlockModule, BlockModule]]:
    for index, (mine, theirs) in enumerate(zip(child.stages, large.stages, strict=True)):
        seen: Counter[type] = Counter()
        for number, module in enumerate(cast(nn.ModuleList, mine)):
            block = cast(BlockModule, module)
            kind = type(block.block)
            same = [other for other in map(_block, cast(nn.ModuleList, theirs)) if type(other.block) is kind]
            if seen[kind] >= len(same):
                raise InputError(f"stage {index + 1}: the larger network has {len(same)} {kind.__name__}, one too few")
            yield f"stages.{index}.{number}.", block, same[seen[kind]]
            seen[kind] += 1


def _block(module: nn.Module) -> BlockModule:
    return cast(BlockModule, module)


def _weighted_leaves(block: nn.Module) -> list[tuple[str, Leaf]]:
    return [(n, m) for n, m in block.named_modules() if isinstance(m, Leaf) and m.state_dict()]


def _cut(tensor: Tensor, wanted: torch.Size, key: str, small: Unit, large: Unit) -> Tensor:
    for axis, size in enumerate(wanted):
        mine = _parts(small, key).get(axis, (size,))
        theirs = _parts(large, key).get(axis, (tensor.shape[axis],))
        if len(mine) > len(theirs) or any(want > have for want, have in zip(mine, theirs, strict=False)):
            raise InputError(f"{small}: {key}, axis {axis}: parts {mine} do not fit into {theirs}")
        pieces = torch.split(tensor, list(theirs), axis)[: len(mine)]
        cut = [piece.narrow(axis, 0, want) for piece, want in zip(pieces, mine, strict=True)]
        tensor = cut[0] if len(cut) == 1 else torch.cat(cut, axis)
    return tensor


def _parts(unit: Unit, key: str) -> dict[int, tuple[int, ...]]:
    return unit.parts().get(key, {}) if isinstance(unit, Op) else {}
