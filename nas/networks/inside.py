"""What goes on inside a network on some images: what its ops are given, and which channels count.

What the ops of a family make of what they are given, the family knows: `mobileformer.token_attention`,
`dynamicvit.kept_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas.core.errors import InputError
from nas.core.ops import BlockModule, Leaf, Op
from nas.networks.building import Network


def inputs_of(network: Network, images: Tensor, kind: type[Op]) -> list[tuple[Leaf, tuple[Tensor, ...]]]:
    """The ops of a kind, in the order in which they run, and what each is given; the network runs in eval mode.

    Args:
        network: in training form; an op that runs twice stands there twice.
        images: (N, C, H, W), as the network takes them.
        kind: of ops, with those derived from it.

    Raises:
        InputError: the network has no such op.
    """
    leaves = [part for part in network.modules() if isinstance(part, Leaf) and isinstance(part.op, kind)]
    if not leaves:
        raise InputError(f"{network.arch.family}, arch {network.arch.id}: has no {kind.__name__}")
    found: list[tuple[Leaf, tuple[Tensor, ...]]] = []
    with _hooked(leaves, lambda leaf, given: found.append((leaf, given))), torch.no_grad():
        _in_eval(network, images)
    return found


def channel_shares(network: Network, images: Tensor, labels: Tensor) -> list[Tensor]:
    """How much each channel of the tokens counts, behind every block that gives tokens: (C,), sums to 1.

    |activation x gradient of the logit of the label|, summed over tokens before the bars and averaged over images: the
    first-order change of that logit if the channel were 0. Where attention weighs tokens, this weighs channels.

    Raises:
        InputError: no block gives tokens.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        tensor = out[0] if isinstance(out, tuple) else out
        if tensor.dim() == 3 and tensor.requires_grad:
            seen.append(tensor)

    blocks = [part for part in network.modules() if isinstance(part, BlockModule)]
    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        with torch.enable_grad():
            logits = _in_eval(network, images)
            if not seen:
                raise InputError(f"{network.arch.family}, arch {network.arch.id}: no block of it gives tokens")
            grads = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), seen, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(tensor, grad) for tensor, grad in zip(seen, grads, strict=True) if grad is not None]
    counts = [(tensor * grad).sum(1).abs().mean(0).detach() for tensor, grad in pairs]
    return [count / count.sum() for count in counts]


def evenness(shares: Tensor) -> float:
    """How evenly shares are spread: the exponential of their entropy over their number, 1 where all are equal."""
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return float(entropy.exp() / len(shares))


def _in_eval(network: Network, images: Tensor) -> Tensor:
    """The logits, in eval mode; the network's mode is as before."""
    before = network.training
    network.eval()
    try:
        return cast(Tensor, network(images))
    finally:
        network.train(before)


@contextmanager
def _hooked(leaves: list[Leaf], see: Callable[[Leaf, tuple[Tensor, ...]], None]) -> Iterator[None]:
    hooks = [leaf.register_forward_pre_hook(cast(Any, see)) for leaf in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
