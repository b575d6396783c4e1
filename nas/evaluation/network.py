"""What training adds to a network: further resolutions, dropout, and all streams as outputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nas.core.blocks import Logits
from nas.core.errors import InputError
from nas.core.ops import BlockModule, LayerNorm, Leaf, Residual
from nas.networks.building import Network


class TrainedNetwork(nn.Module):
    """A model at one or several resolutions that gives all its streams, the logits under `x`.

    Shape: (N, C, side, side) -> tensors by name. A model that is no `Network` has only the one stream.

    Args:
        model: its parameters are trained.
        sides: resolutions besides its own.
    """

    def __init__(self, model: nn.Module, sides: Sequence[int] = ()) -> None:
        super().__init__()
        self.model = model
        twins = {side: at_side(model, side) for side in sides} if isinstance(model, Network) else {}
        self.twins = [twins]  # in a list: their parameters are the model's and belong to no other module

    def forward(self, x: Tensor) -> dict[str, Any]:
        network = self.twins[0].get(x.shape[-1], self.model)
        return network.streams(x) if isinstance(network, Network) else {"x": network(x)}

    @property
    def models(self) -> list[nn.Module]:
        """The model and its twins."""
        return [self.model, *self.twins[0].values()]

    def train(self, mode: bool = True) -> TrainedNetwork:
        """Training or eval mode, at all resolutions."""
        for twin in self.twins[0].values():
            twin.train(mode)
        return super().train(mode)


def at_side(network: Network, side: int) -> Network:
    """The same network for images of another side; parameters, statistics and drop path rates are those of `network`.

    What never learns and is another at each side (T2T-ViT's positions, a fixed sinusoid) is the twin's own.

    Raises:
        InputError: its weights depend on the side (attention biases, positions), or it takes no such images.
    """
    channels = network.arch.input_shape[0]
    try:
        twin = Network(dataclasses.replace(network.arch, input_shape=(channels, side, side)))
    except (InputError, RuntimeError) as error:
        raise InputError(f"multi_scale: {network.arch.family} takes no images of {side} pixels: {error}") from error
    ours, theirs = (dict(each.state_dict()) for each in (network, twin))
    fixed = {name for name, value in twin.named_parameters() if not value.requires_grad}
    for name in fixed & ours.keys():
        if ours[name].shape != theirs[name].shape:
            del ours[name], theirs[name]
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise InputError(
                f"multi_scale: {name} of {network.arch.family} is another at {side} pixels than at "
                f"{network.arch.input_shape[1]}, so one network cannot learn at both; leave multi_scale out"
            )
    for kind in ("_parameters", "_buffers"):
        for name, part in twin.named_modules():
            for key in getattr(part, kind):
                if f"{name}.{key}".lstrip(".") in ours:
                    getattr(part, kind)[key] = getattr(network.get_submodule(name), kind)[key]
    for mine, source in zip(_residuals(twin), _residuals(network), strict=True):
        mine.drop_path = source.drop_path
    return twin.to(next(network.parameters()).device)


def add_dropout(model: nn.Module, classifier: float, branches: float) -> list[RemovableHandle]:
    """Zero parts of activations at random in training; the handles take that away.

    Args:
        model: a network.
        classifier: share of what reaches the classifier.
        branches: share of what attention and MLP give, in residuals that begin with a layer norm.

    Raises:
        InputError: the model is none of ours, or has no classifier of one input or no such residuals.
    """
    name = model.arch.family if isinstance(model, Network) else type(model).__name__
    bodies = [residual.body for residual in _residuals(model) if _begins_with_norm(residual.body)]
    if branches and not bodies:
        raise InputError(
            f"branch_dropout: no residual of {name} begins with a layer norm, so nothing would be dropped; "
            f"set branch_dropout=0"
        )
    handles = []
    if classifier:
        last = model.stages[-1][-1] if isinstance(model, Network) else None  # type: ignore[index]
        if not isinstance(last, BlockModule) or not isinstance(last.block, Logits):
            raise InputError(f"dropout: {type(model).__name__} does not end in Logits; leave dropout out")
        handles.append(last.register_forward_pre_hook(functools.partial(_dropped_inputs, rate=classifier)))
    if branches:
        dropped = functools.partial(_dropped_output, rate=branches)
        handles += [body.register_forward_hook(dropped) for body in bodies]
    return handles


def _begins_with_norm(body: nn.Module) -> bool:
    first = next((part for part in body.modules() if isinstance(part, Leaf)), None)
    return first is not None and isinstance(first.op, LayerNorm)


def _dropped_inputs(module: nn.Module, inputs: tuple[Any, ...], rate: float) -> tuple[Any, ...]:
    return (nn.functional.dropout(inputs[0], rate, module.training), *inputs[1:])


def _dropped_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor, rate: float) -> Tensor:
    return nn.functional.dropout(output, rate, module.training)


def _residuals(model: nn.Module) -> list[Residual]:
    return [part for part in model.modules() if isinstance(part, Residual)]


def block_modules(model: nn.Module) -> list[BlockModule]:
    """All blocks of a network, in order; none of a model that is none of ours."""
    return [part for part in model.modules() if isinstance(part, BlockModule)]
