"""What leads in a network's weights: an order by importance for every axis that a smaller network takes the front of.

Children of a trained network take the leading parts of its weights (`nas.networks.weights`), so what leads has to be
what matters. Channels that go together (the residual stream of a stage in all its blocks, the hidden units of an MLP,
heads, Mobile-Former's tokens) are found by following them through the network (`Op.wires`); channels that an op without
wires touches keep their order. An order of any of them leaves the outputs as they are.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.core import ops
from nas.core.arch import Arch
from nas.core.channels import Group, Layout, Part, fix, fixed, found, fresh, join, width
from nas.core.ops import BlockModule, Leaf, Shape
from nas.networks.building import Network, input_shape_of

Scores = Mapping[str, Tensor]  # of every parameter by its name, one for each of its values


@dataclass(frozen=True)
class Place:
    """Where the things of an axis stand in a tensor of the state dict: from `start` on, `inner` indices for each."""

    name: str
    axis: int
    start: int
    inner: int


@dataclass(frozen=True)
class Axis:
    """Things of a network that have one order.

    Attributes:
        size: how many.
        unit: so many neighbours move together, such as the channels of a group of a convolution.
        front: the first ones, which stay.
        places: everywhere they stand.
    """

    size: int
    unit: int
    front: int
    places: tuple[Place, ...]

    @property
    def name(self) -> str:
        """The first place, such as `stages.0.0.body.0.body.0.weight:0`, which no other axis has."""
        place = self.places[0]
        return f"{place.name}:{place.axis}" + (f"+{place.start}" if place.start else "")


@functools.lru_cache(maxsize=64)
def axes_of(arch: Arch) -> tuple[Axis, ...]:
    """Every axis of a network whose order is free, in the order in which the network reaches them."""
    with torch.device("meta"):
        network = Network(arch).eval()
        image = torch.empty(input_shape_of(arch))
    listener = _Listener(network, image)
    ops._recorders.append(listener)
    try:
        with torch.no_grad():
            network(image)
    finally:
        ops._recorders.remove(listener)
    return listener.axes()


class _Listener:
    """Follows layouts from op to op; a `Recorder`."""

    def __init__(self, network: Network, image: Tensor) -> None:
        self.state = network.state_dict(keep_vars=True)
        self.names = {id(module): name for name, module in network.named_modules()}
        self.tables = {_storage(value): name for name, value in network.named_parameters()}
        self.held: dict[str, dict[int, Layout]] = {}
        self.layouts: dict[int, tuple[Tensor, Layout]] = {}  # by storage; tensors are kept, so that none is used again
        self._put(image, fixed(image.shape[1]))

    def leaf(self, leaf: Leaf, inputs: tuple[Tensor, ...]) -> ops.Tensors:
        given = [self._of(tensor) for tensor in inputs]
        result = cast(ops.Tensors, leaf.body(*inputs))
        outputs = (result,) if isinstance(result, Tensor) else tuple(result)
        wires = leaf.op.wires(*given)
        if wires is None:
            for layout in given:
                fix(layout)
        for number, output in enumerate(outputs):
            self._put(output, fixed(_channels(output)) if wires is None else wires.gives[number])
        for name, axes in (wires.held if wires is not None else {}).items():
            full = f"{self.names[id(leaf)]}.body.{name}"
            if full in self.state:
                self._hold(full, axes)
        return result

    def block(self, module: BlockModule, inputs: tuple[Tensor, ...]) -> ops.Tensors:
        return cast(ops.Tensors, module.body(*inputs))

    def _hold(self, name: str, axes: Mapping[int, Layout]) -> None:
        for axis, layout in axes.items():
            assert width(layout) == self.state[name].shape[axis], f"{name}, axis {axis}: {width(layout)} channels"
            join(self.held.setdefault(name, {}).setdefault(axis, layout), layout)  # an op may be used twice

    def _of(self, tensor: Tensor) -> Layout:
        key = _storage(tensor)
        if key not in self.layouts and key in self.tables:  # a table that no op holds, (1, things, channels)
            self._put(tensor, self._table(self.tables[key]))
        if key not in self.layouts:
            return fixed(_channels(tensor))
        layout = self.layouts[key][1]
        if width(layout) == _channels(tensor):
            return layout
        fix(layout)  # a view of other channels than those of the whole
        return fixed(_channels(tensor))

    def _table(self, name: str) -> Layout:
        """The layout of a table's channels; the first of its things is read by itself, and stays."""
        shape = self.state[name].shape
        channels = fresh(shape[-1])
        things = (Part(Group(shape[1], front=1)),)
        self._hold(name, {1: things, 2: channels})
        return channels

    def _put(self, tensor: Tensor, layout: Layout) -> None:
        self.layouts[_storage(tensor)] = tensor, layout

    def axes(self) -> tuple[Axis, ...]:
        places: dict[int, list[Place]] = {}
        groups: dict[int, Group] = {}
        for name, axes in self.held.items():
            for axis, layout in axes.items():
                start = 0
                for group, inner in found(layout):
                    groups[id(group)] = group
                    places.setdefault(id(group), []).append(Place(name, axis, start, inner))
                    start += group.size * inner
        free = [group for group in groups.values() if not group.fixed and group.size > group.unit + group.front]
        return tuple(Axis(g.size, g.unit, g.front, tuple(places[id(g)])) for g in free)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _channels(tensor: Tensor) -> int:
    return Shape(*tensor.shape).channels if tensor.ndim > 1 else tensor.numel()


def magnitude(network: nn.Module) -> dict[str, Tensor]:
    """Squares of the weights."""
    return {name: value.detach().square() for name, value in network.named_parameters()}


def norm_scale(network: nn.Module) -> dict[str, Tensor]:
    """Absolute scales of batch norms (arXiv:1708.06519), whatever else there is counts nothing.

    What has no batch norm keeps its order.
    """
    norms = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    return {
        name: value.detach().abs() if name in norms else torch.zeros_like(value)
        for name, value in network.named_parameters()
    }


def taylor(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Squares of weight times gradient: what the loss would change by to first order (arXiv:1906.10771, eq. 8).

    The loss is the cross-entropy of one batch, averaged over the heads of a classifier; the network is in eval mode
    meanwhile, its gradients are as before.

    Args:
        network: a trained one.
        images: (N, C, H, W).
        labels: (N).
    """
    training = network.training
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    try:
        logits = network.eval()(images)
        loss = nn.functional.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    finally:
        network.train(training)
    zeros = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    return zeros | {
        name: (value.detach() * gradient).square()
        for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
        if gradient is not None
    }


def order_of(network: Network, scores: Scores) -> dict[str, Tensor]:
    """For every axis, by its name, the places of its things by falling importance; equal ones stay as they are.

    A thing's importance is the sum of the scores of all values that belong to it, in all places.

    Args:
        network: whose axes.
        scores: of `magnitude`, `norm_scale` or `taylor`.
    """
    found = {}
    for axis in axes_of(network.arch):
        total = torch.zeros(axis.size, dtype=torch.float64)
        for place in axis.places:
            if place.name in scores:
                score = scores[place.name].narrow(place.axis, place.start, axis.size * place.inner)
                total += score.movedim(place.axis, 0).reshape(axis.size, -1).double().sum(1).cpu()
        runs = total.view(-1, axis.unit).sum(1)
        runs[: axis.front] = torch.inf
        best = runs.argsort(descending=True, stable=True)
        found[axis.name] = (best[:, None] * axis.unit + torch.arange(axis.unit)).flatten()
    return found


def permuted(network: Network, order: Mapping[str, Tensor]) -> Network:
    """A copy of a network whose things stand in this order; its outputs are the same.

    Args:
        network: in training form.
        order: of `order_of`; axes that are not in it stay as they are.
    """
    result = copy.deepcopy(network)
    state: dict[str, Any] = dict(network.state_dict())
    for axis in axes_of(network.arch):
        if axis.name in order:
            for place in axis.places:
                things = order[axis.name].to(state[place.name].device)
                indices = (things[:, None] * place.inner + torch.arange(place.inner, device=things.device)).flatten()
                part = state[place.name].narrow(place.axis, place.start, len(indices))
                moved = part.index_select(place.axis, indices)
                rest = state[place.name].clone()
                rest.narrow(place.axis, place.start, len(indices)).copy_(moved)
                state[place.name] = rest
    result.load_state_dict(state)
    return result
