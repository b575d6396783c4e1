"""What an untrained network says of itself: figures from one batch or a few, without a training.

Each is a function of a model, which it changes: give it a fresh one. Higher is better, and no figure is an accuracy.
All see the network as one that has begun to learn: batch norms use the batch's own statistics, everything else is in
eval mode (no dropout, hard selections of tokens), and layer scales, whose 1e-5 keeps branches out of the first steps,
are 1. What they see does not depend on how a block is written: activations are caught where torch computes them,
weights are those of all convolutions and linear layers, and blocks are read at the map or tokens `x` that they give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nas.core.ops import BlockModule, Leaf, Scale

#: as torch calls them; all are positive exactly where their input is
ACTIVATIONS = frozenset({"elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "relu6", "silu"})
#: what they give for an input of 0
GATES = {"exp": 1.0, "hardsigmoid": 0.5, "sigmoid": 0.5}
BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORMS = BATCH_NORM, nn.LayerNorm, nn.GroupNorm
LAYERS = nn.modules.conv._ConvNd, nn.Linear


def naswot(model: nn.Module, images: Tensor) -> float:
    """How differently a network's activations see the images: log |det(K + K')| (arXiv:2006.04647).

    Entry (i, j) of K + K' counts the activations, over all layers and positions, that are on for both images or off for
    both. Gates (sigmoids) and softmax are no activations here; Mobile-Former's dynamic ReLU is, at its kink.

    Args:
        model: any network.
        images: (N, C, H, W); the figure grows with N, so compare at one N.

    Returns:
        -inf where two images give the same code.
    """
    _begun(model)
    codes = _Codes(len(images), images.device)
    with torch.no_grad(), codes:
        model(images)
    return float(torch.linalg.slogdet(codes.agreements)[1])


class _Codes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, images: int, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.agreements = torch.zeros(images, images, dtype=torch.float64, device=device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1].rstrip("_")  # the last: one that works in place
        count = len(self.agreements)
        if name in ACTIVATIONS and args[0].numel() % count == 0:
            on = (args[0] > 0).reshape(count, -1).float()
            both = on @ on.T
            counts = both.diagonal()
            self.agreements += on.shape[1] - counts[:, None] - counts + 2 * both
        return func(*args, **(kwargs or {}))


def synflow(model: nn.Module, input_shape: Sequence[int]) -> float:
    """How much flows through the weights: log of sum |w| dR/d|w| (arXiv:2006.05467), R the sum of the logits.

    All weights are made positive and the input is ones; no image is needed. Norms are left out: a layer norm removes
    what an all-positive network gives, and what is left is noise. The flow is that of a linear network: activations
    pass everything on (a ReLU6 would cut it off), attention takes means, and gates stay as they are for 0.

    Args:
        model: any network.
        input_shape: (C, H, W).
    """
    _begun(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NORMS):
                setattr(module, name, nn.Identity())
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    weights = _weights(model)
    with _Linear():
        total = model(torch.ones(1, *input_shape, dtype=torch.float64, device=weights[0].device)).sum()
    gradients = torch.autograd.grad(total, weights, allow_unused=True)
    flow = sum(float((w.detach() * g).sum()) for w, g in zip(weights, gradients, strict=True) if g is not None)
    return math.log(flow) if flow > 0 else -math.inf


class _Linear(TorchFunctionMode):
    """Leaves of a network what is linear in its input; what no longer depends on it cannot overflow either."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = getattr(func, "__name__", "").strip("_"), kwargs or {}
        if name in ACTIVATIONS:
            return args[0]
        if name in GATES:
            return torch.full_like(args[0], GATES[name])
        if name == "softmax":
            return torch.full_like(args[0], 1 / args[0].shape[given["dim"] if "dim" in given else args[1]])
        if name == "mul" and all(isinstance(each, Tensor) and each.grad_fn is not None for each in args):
            return max(args, key=torch.Tensor.numel)  # one of two that come from the input is a gate
        if name == "scaled_dot_product_attention":
            query, key, *others = args
            return func(torch.zeros_like(query), torch.zeros_like(key), *others, **given)
        return func(*args, **given)


def zico(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """How steady gradients are from batch to batch: sum over layers of log sum mean|g| / std(g) (arXiv:2301.11300).

    Mean and standard deviation are over the batches, each with gradients of its own; weights whose gradient is the same
    in all batches, such as 0, do not count.

    Args:
        model: any network.
        batches: two or more of images (N, C, H, W) and labels (N,).
    """
    _begun(model)
    weights = _weights(model)
    sums: dict[int, Tensor] = {}  # of |g|, g, g squared, of a layer: not all batches at once
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels)
        for number, g in enumerate(torch.autograd.grad(loss, weights, allow_unused=True)):
            if g is not None:
                g = g.double()
                sums[number] = sums.get(number, 0) + torch.stack([g.abs(), g, g * g])
    return sum(_steadiness(each / len(batches)) for each in sums.values())


def _steadiness(means: Tensor) -> float:
    size, mean, square = means
    variance = square - mean**2
    varies = variance > 1e-12 * square  # what is left is rounding
    ratio = float((size[varies] / variance[varies].sqrt()).sum())
    return math.log(ratio) if ratio else 0.0


def expressivity(model: nn.Module, images: Tensor) -> float:
    """How many directions features fill: over blocks, the sum of the entropy of their principal components' shares.

    AZ-NAS (arXiv:2403.19232). The features of a block are its map's or tokens' positions in all images, each a
    vector of the channels; a component's share is its part of their variance. Blocks that give no positions (heads) and
    those that join streams beside others (Mobile-Former's bridges) do not count.

    Args:
        model: a network made of blocks.
        images: (N, C, H, W).
    """
    _begun(model)
    with torch.no_grad():
        return sum(_entropy(given) for _, given in _blocks(model, images) if given.ndim > 2)


def _entropy(given: Tensor) -> float:
    features = _positions(given).double()
    features = features - features.mean(0)
    variances = torch.linalg.eigvalsh(features.T @ features).clamp_min(0)
    total = variances.sum()
    return float(torch.special.entr(variances / total).sum()) if total > 0 else 0.0


def trainability(model: nn.Module, images: Tensor, seed: int = 0) -> float:
    """How evenly gradients pass blocks: the mean over blocks of 2 - s - 1 / s, which is 0 at best.

    AZ-NAS (arXiv:2403.19232). s is the largest singular value of a block's Jacobian between a position's
    channels going out and coming in, estimated from random signs sent back: g_in^T g_out / positions. Only blocks that
    keep the positions have one; bridges do not count.

    Args:
        model: a network made of blocks.
        images: (N, C, H, W).
        seed: of the signs.
    """
    _begun(model)
    signs = torch.Generator().manual_seed(seed)
    found = []
    for taken, given in _blocks(model, images.clone().requires_grad_()):
        if taken.ndim < 3 or given.ndim < 3 or _counts(taken) != _counts(given):
            continue
        sent = (torch.randint(0, 2, given.shape, generator=signs) * 2.0 - 1).to(given)
        (back,) = torch.autograd.grad(given, taken, sent, retain_graph=True)
        s = float(torch.linalg.matrix_norm(_positions(back).T @ _positions(sent), 2)) / len(_positions(sent))
        found.append(2 - s - (1 / s if s else math.inf))
    return sum(found) / len(found) if found else math.nan


def _blocks(model: nn.Module, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """What each block takes and gives as `x`, in order."""
    calls: list[tuple[Tensor, Tensor]] = []

    def listen(module: BlockModule, taken: tuple[Tensor, ...], given: Any) -> None:
        block = module.block
        if "x" in block.takes and "x" in block.gives and not block.bridge:
            out = given[block.gives.index("x")] if len(block.gives) > 1 else given
            calls.append((taken[block.takes.index("x")], out))

    handles = [block.register_forward_hook(listen) for block in _outer_blocks(model)]
    model(images)
    for handle in handles:
        handle.remove()
    yield from calls


def _outer_blocks(module: nn.Module) -> Iterator[BlockModule]:
    """The blocks of a model; what a block is made of is part of it."""
    for child in module.children():
        if isinstance(child, BlockModule):
            yield child
        else:
            yield from _outer_blocks(child)


def _positions(tensor: Tensor) -> Tensor:
    """(N, C, H, W) or (N, T, C) -> (positions, C)."""
    return (tensor.flatten(2).transpose(1, 2) if tensor.ndim == 4 else tensor).flatten(0, 1)


def _counts(tensor: Tensor) -> int:
    return len(_positions(tensor))


def _weights(model: nn.Module) -> list[Tensor]:
    """Of all layers that have any to learn."""
    layers = (module.weight for module in model.modules() if isinstance(module, LAYERS))
    return [weight for weight in layers if weight.requires_grad]


def _begun(model: nn.Module) -> None:
    """Set a model up as this module's docstring says."""
    model.eval()
    for module in model.modules():
        if isinstance(module, BATCH_NORM):
            module.train()
        if isinstance(module, Leaf) and isinstance(module.op, Scale):
            with torch.no_grad():
                for parameter in module.body.parameters():
                    parameter.fill_(1.0)
