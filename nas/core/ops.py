"""Ops and blocks: frozen data that builds modules, and the op vocabulary shared by all families.

An `Op` is a leaf that a latency table can price; a `Block` composes ops. Both are frozen dataclasses of a few numbers
whose fields, with the shapes of their inputs, are the key of a table row, the recipe of the module and what a profiler
times, all at once. Norms fold in the deployed form (`Op.fused`), which is what traces, tables and exports use.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nas.core.channels import Layout, Wires, fixed, fresh, join, move_together, times
from nas.core.errors import InputError, brief, suggest

T = TypeVar("T")
Tensors = Tensor | tuple[Tensor, ...]

# ops apply these to what their own layer has just made, so those work in place that need only their result backward
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": functools.partial(nn.ReLU, inplace=True),
    "relu6": functools.partial(nn.ReLU6, inplace=True),
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
}


#: the legal values of whole-number fields of ops and blocks, by name; of all others 1 to `LARGEST`
LARGEST = 1 << 16
BOUNDS: dict[str, tuple[int, int]] = {
    "branch": (1, 100),
    "classes": (1, 1_000_000),
    "convs": (1, 8),
    "expand": (1, 64),
    "expands": (1, 64),
    "heads": (1, 1024),
    "keep": (1, 100),
    "kernel": (1, 255),
    "layers": (1, 128),
    "patch": (1, 128),
    "percent": (1, 100),
    "ratio": (1, 64),
    "stride": (1, 64),
}
LONGEST = 64  # characters of a text, entries of a tuple
MOST_SIZES = 6  # of a shape


class Shape(tuple[int, ...]):
    """The shape of one tensor, batch first: a map (N, C, H, W), tokens (N, T, D) or a vector (N, C)."""

    def __new__(cls, *sizes: int) -> Shape:
        return super().__new__(cls, sizes)

    @property
    def is_map(self) -> bool:
        """Whether this is an image-like map (N, C, H, W)."""
        return len(self) == 4

    @property
    def channels(self) -> int:
        """C of a map or vector, D of tokens."""
        return self[1] if self.is_map else self[-1]

    @property
    def side(self) -> int:
        """Side of the square map, or of the square map that tokens came from.

        Raises:
            InputError: for maps and token lists that are not square.
        """
        side = self[2] if self.is_map else round(self[1] ** 0.5)
        if side * side != (self[2] * self[3] if self.is_map else self[1]):
            raise InputError(f"{self} is not square: maps and images must be as high as they are wide")
        return side

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read `1x48x56x56`."""
        if not re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6})*", text):
            raise InputError(f"shape: expected sizes like 1x48x56x56, got {brief(text)}")
        sizes = tuple(map(int, text.split("x")))
        if len(sizes) > MOST_SIZES or max(sizes) > LARGEST:  # no token may be left
            raise InputError(f"shape: expected up to {MOST_SIZES} sizes of at most {LARGEST}, got {brief(text)}")
        return cls(*sizes)


class Choice:
    """The values that a field of a block, or a width or depth of a stage, can take; written by `one_of`."""

    def __init__(self, values: Sequence[Any]) -> None:
        if not values or len(set(values)) != len(values):
            raise InputError(f"one_of needs distinct values, got {list(values)}")
        self.values = tuple(values)

    def __repr__(self) -> str:
        return f"one_of({', '.join(map(repr, self.values))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and self.values == other.values

    def __hash__(self) -> int:
        return hash(self.values)


class FromStage:
    """What `from_stage` writes."""

    def __repr__(self) -> str:
        return "from_stage()"


_FROM_STAGE = FromStage()


def one_of(*values: T) -> T:
    """A choice, standing where a value would stand: `expand: int = one_of(3, 4, 6)`."""
    return cast(T, Choice(values))


def from_stage() -> Any:
    """A field that the stage or the space fills in: the channels going out, the number of classes."""
    return _FROM_STAGE


_REGISTRY: dict[str, type[Unit]] = {}


@dataclass(frozen=True)
class Unit:
    """What ops and blocks have in common: fields, a text form, a registry by class name, and `build`.

    Attributes:
        bounds: the legal values of whole-number fields, by name, where they are not those of `BOUNDS`.
    """

    bounds: ClassVar[Mapping[str, tuple[int, int]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__hash__ = Unit.__hash__  # type: ignore[method-assign]  # kept by @dataclass, which would not cache it
        known = _REGISTRY.get(cls.__name__)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(
                f"{cls.__module__}.{cls.__name__}: the name is taken by {known.__module__}; table rows and arch files "
                "name blocks by class, so rename one of them, or import the block instead of writing it again"
            )
        _REGISTRY[cls.__name__] = cls

    def __post_init__(self) -> None:
        for field in self._fields():
            _check_value(type(self), field.name, getattr(self, field.name))

    def __hash__(self) -> int:  # cached: units are looked up far more often than made
        cached = self.__dict__.get("_cached_hash")
        if cached is None:
            values = tuple(getattr(self, field.name) for field in self._fields())
            cached = hash((type(self).__name__, values))
            object.__setattr__(self, "_cached_hash", cached)
        return int(cached)

    def __getstate__(self) -> dict[str, Any]:  # the hash of a text differs from process to process
        return {key: value for key, value in self.__dict__.items() if key != "_cached_hash"}

    @classmethod
    @functools.cache
    def names(cls) -> frozenset[str]:
        """The names of the fields."""
        return frozenset(field.name for field in dataclasses.fields(cls))

    @classmethod
    @functools.cache
    def _fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        return dataclasses.fields(cls)

    def unfilled(self) -> tuple[str, ...]:
        """The names of the fields without a value: choices, and those that the stage fills in."""
        values = {field.name: getattr(self, field.name) for field in self._fields()}
        return tuple(name for name, value in values.items() if isinstance(value, Choice) or value is _FROM_STAGE)

    def open_fields(self) -> dict[str, Choice]:
        """The fields that are still choices, by name."""
        values = {field.name: getattr(self, field.name) for field in self._fields()}
        return {name: value for name, value in values.items() if isinstance(value, Choice)}

    def resolved(self, values: dict[str, Any]) -> Unit:
        """This unit with its open fields and its `from_stage` fields taken from `values`."""
        filled = {}
        for field in self._fields():
            value = getattr(self, field.name)
            if isinstance(value, Choice) or value is _FROM_STAGE:
                if field.name not in values:
                    raise InputError(f"{type(self).__name__}.{field.name} is still open: {value!r}")
                filled[field.name] = values[field.name]
        return dataclasses.replace(self, **filled) if filled else self

    def __str__(self) -> str:
        fields = " ".join(f"{field.name}={_show(getattr(self, field.name))}" for field in self._fields())
        return f"{type(self).__name__} {fields}".strip()

    #: build(*shapes) -> module, for inputs of these shapes: one for each tensor (a map; tokens; a map and tokens)
    build: ClassVar[Callable[..., nn.Module]]


def _check_value(cls: type[Unit], name: str, value: Any) -> None:
    if isinstance(value, Choice):
        for choice in value.values:
            _check_value(cls, name, choice)
    elif isinstance(value, tuple):
        if len(value) > LONGEST:
            raise InputError(f"{cls.__name__}.{name}: expected at most {LONGEST} entries, got {len(value)}")
        for item in value:
            _check_value(cls, name, item)
    elif isinstance(value, str):
        legal = ACTIVATIONS if name == "act" else None
        if len(value) > LONGEST or (legal is not None and value not in legal):
            expected = f"at most {LONGEST} characters" if legal is None else " or ".join(legal)
            raise InputError(f"{cls.__name__}.{name}: expected {expected}, got {brief(value)}")
    elif isinstance(value, int):  # a bool is one
        low, high = cls.bounds.get(name) or BOUNDS.get(name, (1, LARGEST))
        if not low <= value <= high and not isinstance(value, bool):
            raise InputError(f"{cls.__name__}.{name}: expected {low} to {high}, got {brief(value)}")
    elif value is not _FROM_STAGE:  # floats make unstable keys
        raise InputError(f"{cls.__name__}.{name}: expected int, bool, str or tuples of them, got {brief(value)}")


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(str, value)) + "," if isinstance(value, tuple) else str(value)


def unit_class(name: str) -> type[Unit]:
    """The op or block class of this name.

    Raises:
        InputError: naming the closest known classes.
    """
    if name not in _REGISTRY:
        raise InputError(suggest("block or op", name, _REGISTRY))
    return _REGISTRY[name]


def is_known(name: str) -> bool:
    """Whether an op or block class of this name is loaded."""
    return name in _REGISTRY


def make_unit(name: str, values: dict[str, Any]) -> Unit:
    """An op or block from its class name and fields, checked against the class's declared types."""
    cls = unit_class(name)
    fields = {field.name: field for field in cls._fields()}
    for key, value in values.items():
        if key not in fields:
            raise InputError(f"{name}: {suggest('field', key, fields)}")
        kind = str(fields[key].type)
        if kind in _TYPES and (not isinstance(value, _TYPES[kind]) or (kind == "int" and isinstance(value, bool))):
            raise InputError(f"{name}.{key}: expected {kind}, got {brief(value)}")
    unit = cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    still_open = [f.name for f in fields.values() if getattr(unit, f.name) is _FROM_STAGE] + list(unit.open_fields())
    if still_open:
        raise InputError(f"{name}: field {still_open[0]!r} has no value")
    return unit


_TYPES: dict[str, type] = {"int": int, "bool": bool, "str": str}


def parse_unit(name: str, text: str) -> Unit:
    """An op or block from its class name and a text like `cin=3 act=relu`, as `str(unit)` writes it."""
    kinds = {field.name: str(field.type) for field in unit_class(name)._fields()}
    values: dict[str, Any] = {}
    for item in text.split():
        key, equals, value = item.partition("=")
        if key in values:
            raise InputError(f"{name}: field {key!r} stands there twice")
        if not equals or key not in kinds:
            raise InputError(f"{name}: cannot read field {item!r}; known fields: {', '.join(kinds) or 'none'}")
        values[key] = _read(value, kinds[key], f"{name}.{key}")
    return make_unit(name, values)


def _read(text: str, kind: str, where: str) -> Any:
    if kind.startswith("tuple"):
        parts = (part for part in text.split(",") if part)
        return tuple(_whole(part, where) if re.fullmatch(r"-?[0-9]+", part) else part for part in parts)
    if kind == "str":
        return text
    if not re.fullmatch(r"-?[0-9]+", text):
        raise InputError(f"{where}: expected {kind}, got {brief(text)}")
    number = _whole(text, where)
    if kind == "bool" and number not in (0, 1):
        raise InputError(f"{where}: expected 0 or 1, got {brief(text)}")
    return bool(number) if kind == "bool" else number


def _whole(text: str, where: str) -> int:
    if len(text) > 18:  # no field goes so far, and Python refuses to read the longest
        raise InputError(f"{where}: expected a whole number of at most 18 digits, got {len(text)}")
    return int(text)


class Row(NamedTuple):
    """The key of a table row: an op or block and the shapes of its inputs."""

    unit: Unit
    inputs: tuple[Shape, ...]

    def __str__(self) -> str:
        return f"{self.unit} @ {', '.join(map(str, self.inputs))}"


def parse_row(text: str) -> Row:
    """Read what `str(row)` writes.

    Raises:
        InputError: for a block or op that is not loaded, or what cannot be read.
    """
    unit, _, shapes = text.partition(" @ ")
    name, _, values = unit.partition(" ")
    return Row(parse_unit(name, values), tuple(Shape.parse(shape) for shape in shapes.split(", ") if shape))


class Recorder(Protocol):
    """What a trace installs to see the calls of ops and blocks while a model runs."""

    def leaf(self, leaf: Leaf, inputs: tuple[Tensor, ...]) -> Tensors:
        """Run and record one op."""

    def block(self, module: BlockModule, inputs: tuple[Tensor, ...]) -> Tensors:
        """Run and record one block."""


_recorders: list[Recorder] = []


class Leaf(nn.Module):
    """An op inside a model: runs its body, and tells the recorder where a trace listens."""

    def __init__(self, op: Op, body: nn.Module) -> None:
        super().__init__()
        self.op = op
        self.body = body

    def forward(self, *inputs: Tensor) -> Any:
        """Inputs and outputs as the op documents them."""
        if _recorders:
            return _recorders[-1].leaf(self, inputs)
        return self.body(*inputs)

    def fuse(self) -> None:
        """Put this op into its deployed form, in place."""
        self.body = self.op.fused(self.body)

    def extra_repr(self) -> str:
        """The op's text."""
        return str(self.op)


class BlockModule(nn.Module):
    """A block inside a model: one call in a trace, one row at block level."""

    def __init__(self, block: Block, shapes: tuple[Shape, ...]) -> None:
        super().__init__()
        self.block = block
        self.body = block.build(*shapes)

    def advance(self, streams: dict[str, Any]) -> None:
        """Take the block's tensors from these streams, by name, and put what it gives back among them."""
        given = self(*(streams[name] for name in self.block.takes))
        streams.update(zip(self.block.gives, given if len(self.block.gives) > 1 else (given,), strict=True))

    def forward(self, *inputs: Tensor) -> Any:
        """One or several tensors in, one or several out, as the block documents them."""
        if _recorders:
            return _recorders[-1].block(self, inputs)
        return self.body(*inputs)


@dataclass(frozen=True)
class Block(Unit):
    """Base of all blocks: a composition of ops; `build` gets one shape for each stream that the block takes.

    A network carries its tensors in named streams: `x`, which begins as the image and ends as the logits, and whatever
    else blocks give (Mobile-Former's tokens `z`). Streams that a block does not name pass it by untouched, and are no
    part of its key. A block without any op (a learned table) costs no time and has no row.

    Attributes:
        takes, gives: names of the streams.
        prefix_tokens: tokens that the block puts in front of those of the map in `x`, such as a class token; they stay
            there until a block gives a map.
        no_map: why `x` can not be made a map from this block on; empty where it can.
        bridge: whether it only ever joins streams beside other blocks and never follows itself; a profile then times it
            among those.
        in_host: whether it is part of the host where a recipe tells one from what is added to it (`host_lr`,
            `host_frozen`); false for DynamicViT's prediction modules.
    """

    takes: ClassVar[tuple[str, ...]] = ("x",)
    gives: ClassVar[tuple[str, ...]] = ("x",)
    prefix_tokens: ClassVar[int] = 0
    no_map: ClassVar[str] = ""
    bridge: ClassVar[bool] = False
    in_host: ClassVar[bool] = True

    def module(self, *shapes: Shape) -> BlockModule:
        """The block's module, ready to be a part of a network."""
        return BlockModule(self, shapes)

    def prepare(self, body: nn.Module, recipe: Any) -> None:
        """Set up what `build` returned for a training by a `nas.evaluation.recipe.Recipe`; by default nothing."""

    @staticmethod
    def loss(blocks: Sequence[Any], streams: Mapping[str, Any], recipe: Any) -> Tensor | None:
        """A further term of the loss of a training, with its weight; None, as by default, for none.

        A block's class that has one is asked once for each batch.

        Args:
            blocks: all blocks of a network that have this very `loss`, in order.
            streams: all streams behind the last block, in training mode; the logits are `x`.
            recipe: a `nas.evaluation.recipe.Recipe`.
        """
        return None

    def init(self, module: nn.Module) -> None:
        """Set the block's first weights as its paper does; by default Linears as vision transformers have them."""
        for part in module.modules():
            if isinstance(part, nn.Linear):
                trunc_normal(part)


@dataclass(frozen=True)
class Op(Unit):
    """Base of all ops: a leaf that a table can price.

    Attributes:
        fixed_in_host: whether its weights stay as they are in a host with a learning rate of its own.
    """

    fixed_in_host: ClassVar[bool] = False

    def body(self) -> nn.Module:
        """The module that does the work, in training form."""
        raise NotImplementedError

    def module(self) -> Leaf:
        """The op as a leaf of a model."""
        return Leaf(self, self.body())

    def build(self, *shapes: Shape) -> nn.Module:
        """The op as a leaf; shapes are not needed, since an op's fields say everything."""
        return self.module()

    def fused(self, body: nn.Module) -> nn.Module:
        """The deployed form of `body`: norms folded, outputs equal within 1e-5. Called once, in eval mode."""
        return body

    def scaled(self, body: nn.Module, gamma: Tensor) -> nn.Module | None:
        """The fused `body` with its output channels multiplied by `gamma` (C), or None where that cannot fold."""
        return None

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        """Parts of parameter axes, {parameter: {axis: sizes}}, for axes that hold several things side by side (q|k|v).

        A smaller op's weights are the leading indices of every part; axes not named here are one part.
        """
        return {}

    def wires(self, *given: Layout) -> Wires | None:
        """How channels run through the op, for inputs of these layouts; by default unknown: they stay in order."""
        return None

    def tables(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Parameters as large as the map, {parameter: what makes this op's of one for a map of another side}."""
        return {}


@dataclass(frozen=True)
class Conv(Op):
    """k x k convolution, batch norm and activation, timed as one op since runtimes fuse them.

    Shape: (N, cin, H, W) -> (N, cout, ceil(H / stride), ceil(W / stride)) for odd kernels.
    """

    cin: int
    cout: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    act: str = "none"
    bias: bool = False
    norm: bool = True

    def body(self) -> nn.Module:
        conv = nn.Conv2d(
            self.cin, self.cout, self.kernel, self.stride, self.kernel // 2, groups=self.groups, bias=self.bias
        )
        act = [activation(self.act)] if self.act != "none" else []
        return nn.Sequential(conv, *([nn.BatchNorm2d(self.cout)] if self.norm else []), *act)

    def fused(self, body: nn.Module) -> nn.Module:
        conv, *norm = list(cast(nn.Sequential, body))[: 2 if self.norm else 1]
        return _chain(
            _folded(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm[0])) if norm else conv, activation(self.act)
        )

    def scaled(self, body: nn.Module, gamma: Tensor) -> nn.Module | None:
        return scale_rows(body, gamma) if self.act == "none" else None

    def wires(self, *given: Layout) -> Wires | None:
        (x,) = given
        if self.groups == 1:
            out = fresh(self.cout)
            return Wires([out], conv_wires(out, x))
        each, rest = divmod(self.cout, self.cin)
        if rest or (each > 1 and self.groups < self.cin):
            return None
        move_together(x, self.cin // self.groups)
        out = times(x, each)
        return Wires([out], conv_wires(out))


@dataclass(frozen=True)
class Linear(Op):
    """Linear map over the last axis, with activation. Shape: (..., cin) -> (..., cout)."""

    cin: int
    cout: int
    act: str = "none"
    bias: bool = True

    def body(self) -> nn.Module:
        return _chain(nn.Linear(self.cin, self.cout, bias=self.bias), activation(self.act))

    def scaled(self, body: nn.Module, gamma: Tensor) -> nn.Module | None:
        return scale_rows(body, gamma) if self.act == "none" else None

    def wires(self, *given: Layout) -> Wires | None:
        out = fresh(self.cout)
        place = "" if self.act == "none" else "0."
        return Wires([out], linear_wires(place, out, given[0]))


@dataclass(frozen=True)
class Classifier(Op):
    """The last Linear; with `heads` = 2 the second learns from a teacher (distillation, arXiv:2012.12877, sec. 4).

    Shape: (N, cin) -> (N, classes). With several heads: a tuple of logits in training, their average in eval; the
    deployed form is one Linear, since an average of linear maps is linear.
    """

    cin: int
    classes: int
    heads: int = 1

    def body(self) -> nn.Module:
        return _Heads(self.cin, self.classes, self.heads)

    def fused(self, body: nn.Module) -> nn.Module:
        heads = [cast(nn.Linear, head) for head in cast(_Heads, body).heads]
        merged = nn.Linear(self.cin, self.classes, device=heads[0].weight.device, dtype=heads[0].weight.dtype)
        merged.weight = nn.Parameter(torch.stack([head.weight for head in heads]).mean(0))
        merged.bias = nn.Parameter(torch.stack([head.bias for head in heads]).mean(0))
        return merged

    def wires(self, *given: Layout) -> Wires | None:
        return Wires([fixed(self.classes)], {f"heads.{n}.weight": {1: given[0]} for n in range(self.heads)})


class _Heads(nn.Module):
    def __init__(self, cin: int, classes: int, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(cin, classes) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensors:
        outputs = tuple(head(x) for head in self.heads)
        if len(outputs) == 1 or self.training:
            return outputs if len(outputs) > 1 else cast(Tensor, outputs[0])
        return cast(Tensor, sum(outputs) / len(outputs))


@dataclass(frozen=True)
class LayerNorm(Op):
    """Layer norm over the last axis; `eps` is added to the variance. Shape: (N, T, dim) -> same."""

    dim: int
    eps: str = "1e-5"  # fields are no floats

    def body(self) -> nn.Module:
        return nn.LayerNorm(self.dim, float(self.eps))

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], norm_wires("", given[0]))


@dataclass(frozen=True)
class Scale(Op):
    """Layer scale: a learned factor per channel, starting at 1e-5 (arXiv:2103.17239, sec. 2).

    Shape: (N, dim, H, W) or (N, T, dim) -> same.
    """

    dim: int

    def body(self) -> nn.Module:
        return _Scale(self.dim)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {"gamma": {0: given[0]}})


class _Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma.view(1, -1, 1, 1) if x.ndim == 4 else self.gamma)


@dataclass(frozen=True)
class Add(Op):
    """Sum of two tensors of one shape, as at the end of a residual branch."""

    def body(self) -> nn.Module:
        return _Add()

    def wires(self, *given: Layout) -> Wires | None:
        return Wires([join(*given)], {})


class _Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@dataclass(frozen=True)
class Concat(Op):
    """Channels of the first tensor, then those of the second: maps (N, C, H, W), (N, D, H, W), or tokens, vectors."""

    def body(self) -> nn.Module:
        return _Concat()

    def wires(self, *given: Layout) -> Wires | None:
        return Wires([given[0] + given[1]], {})


class _Concat(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((x, y), 1 if x.ndim == 4 else -1)


@dataclass(frozen=True)
class PoolMixer(Op):
    """Average pooling less its input, PoolFormer's token mixer (arXiv:2111.11418, sec. 3.2). Map -> same shape.

    The border averages only what lies inside the map, as the published code does (`count_include_pad=False`).
    """

    kernel: int = 3

    def body(self) -> nn.Module:
        return _PoolMixer(self.kernel)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {})


class _PoolMixer(nn.Module):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(kernel, 1, kernel // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.pool(x)) - x


@dataclass(frozen=True)
class ToTokens(Op):
    """Map to tokens: (N, C, H, W) -> (N, H*W, C). An op, since runtimes copy for the transpose."""

    def body(self) -> nn.Module:
        return _ToTokens()

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {})


class _ToTokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2).contiguous()


@dataclass(frozen=True)
class ToMap(Op):
    """Tokens back to a square map: (N, side*side, C) -> (N, C, side, side)."""

    side: int

    def body(self) -> nn.Module:
        return _ToMap(self.side)

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {})


class _ToMap(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], self.side, self.side)


@dataclass(frozen=True)
class Mean(Op):
    """Global average: a map (N, C, H, W) or tokens (N, T, C) -> (N, C)."""

    def body(self) -> nn.Module:
        return _Mean()

    def wires(self, *given: Layout) -> Wires | None:
        return Wires(given[:1], {})


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1)


@dataclass(frozen=True)
class BiasAttention(Op):
    """Multi-head attention with a learned bias per head and distance |dy|, |dx| on a square grid.

    EfficientFormer (arXiv:2206.01191, sec. 4) after LeViT (arXiv:2104.01136, sec. 4). Query, key and value sizes do not
    depend on `dim`; one Linear makes q, k and v, laid out [q | k | v] inside each head.

    Shape: (N, side*side, dim) -> same.
    """

    dim: int
    side: int
    heads: int = 8
    key_dim: int = 32
    value_dim: int = 128

    def body(self) -> nn.Module:
        return _BiasAttention(self)

    def fused(self, body: nn.Module) -> nn.Module:
        return _FusedBiasAttention(self, cast(_BiasAttention, body))

    def scaled(self, body: nn.Module, gamma: Tensor) -> nn.Module | None:
        attention = cast(_FusedBiasAttention, body)
        attention.proj = scale_rows(attention.proj, gamma)
        return attention

    def parts(self) -> dict[str, dict[int, tuple[int, ...]]]:
        qkv = (self.key_dim, self.key_dim, self.value_dim) * self.heads
        return {"qkv.weight": {0: qkv}, "qkv.bias": {0: qkv}}

    def tables(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {"bias": functools.partial(resized, side=self.side)}

    def wires(self, *given: Layout) -> Wires | None:
        heads, out = fresh(self.heads), fresh(self.dim)
        each = times(heads, 2 * self.key_dim + self.value_dim)
        held = linear_wires("qkv.", each, given[0]) | linear_wires("proj.", out, times(heads, self.value_dim))
        return Wires([out], held | {"bias": {0: heads}})


class _BiasAttention(nn.Module):
    index: Tensor

    def __init__(self, op: BiasAttention) -> None:
        super().__init__()
        self.op = op
        self.qkv = nn.Linear(op.dim, op.heads * (2 * op.key_dim + op.value_dim))
        self.proj = nn.Linear(op.heads * op.value_dim, op.dim)
        self.bias = nn.Parameter(torch.zeros(op.heads, op.side**2))
        steps = torch.arange(op.side)
        distance = (steps[:, None] - steps[None, :]).abs()
        rows, columns = distance[:, None, :, None], distance[None, :, None, :]
        self.register_buffer("index", (rows * op.side + columns).reshape(op.side**2, op.side**2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias[:, self.index]
        return cast(Tensor, self.proj(_attend(self.qkv(x), self.op, bias, self.op.key_dim**-0.5)))


class _FusedBiasAttention(nn.Module):
    """The bias gathered once, and the softmax scale inside the query weights."""

    bias: Tensor

    def __init__(self, op: BiasAttention, body: _BiasAttention) -> None:
        super().__init__()
        self.op = op
        self.proj: nn.Module = body.proj
        self.register_buffer("bias", body.bias[:, body.index].detach())
        factor = torch.ones(op.heads, 2 * op.key_dim + op.value_dim, device=self.bias.device, dtype=self.bias.dtype)
        factor[:, : op.key_dim] = op.key_dim**-0.5
        self.qkv = scale_rows(body.qkv, factor.flatten())

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.proj(_attend(self.qkv(x), self.op, self.bias, 1.0)))


def _attend(qkv: Tensor, op: BiasAttention, bias: Tensor, scale: float) -> Tensor:
    """(N, T, heads * (2 key + value)) -> (N, T, heads * value)."""
    per_head = qkv.view(*qkv.shape[:2], op.heads, -1).transpose(1, 2)  # (N, heads, T, 2 key + value)
    query, key, value = torch.split(per_head, [op.key_dim, op.key_dim, op.value_dim], dim=3)
    scores = query @ key.transpose(2, 3)
    weights = ((scores * scale if scale != 1.0 else scores) + bias).softmax(-1)
    mixed: Tensor = weights @ value
    return mixed.transpose(1, 2).flatten(2)


class Residual(nn.Module):
    """x + drop_path(scale(body(x))): a container, no op; the sum is an `Add` and the scale a `Scale`.

    Args:
        body: the branch; its output has the shape of its input.
        scale: channels of a layer scale behind the branch, None for none.
        share: the part of its block's drop path rate that this branch takes, in percent.
    """

    def __init__(self, body: nn.Module, scale: int | None = None, share: int = 100) -> None:
        super().__init__()
        self.body = body
        self.share = share
        self.scale: nn.Module | None = None if scale is None else Scale(scale).module()
        self.drop_path = 0.0  # probability of leaving the branch out for a sample, in training
        self.add = Add().module()

    def forward(self, x: Tensor, *others: Tensor) -> Any:
        """Map or tokens -> same shape; the branch reads `others` as well."""
        y = self.branch(x, *others)
        return self.add(x, y) if _recorders else x + y  # a call less where nobody listens

    def branch(self, x: Tensor, *others: Tensor) -> Any:
        """What is added to x, for blocks that add in another way."""
        y = self.body(x, *others)
        if self.scale is not None:
            y = self.scale(y)
        if self.training and self.drop_path:  # arXiv:1603.09382
            keep = x.new_ones(x.shape[0], *[1] * (x.ndim - 1))
            y = y * nn.functional.dropout(keep, self.drop_path)
        return y

    def fuse(self) -> None:
        """Fold the layer scale into the last op of the branch where that op is linear in its output."""
        last = self.body
        while isinstance(last, nn.Sequential):
            last = last[-1]
        if not isinstance(self.scale, Leaf) or not isinstance(last, Leaf):
            return
        scaled = last.op.scaled(last.body, cast(_Scale, self.scale.body).gamma)
        if scaled is not None:
            last.body, self.scale = scaled, None


def in_order(*ops: Op) -> nn.Sequential:
    """Ops one behind the other, as a module."""
    return nn.Sequential(*(op.module() for op in ops))


def activation(name: str) -> nn.Module:
    """The activation module of this name.

    Raises:
        InputError: naming the known activations.
    """
    if name not in ACTIVATIONS:
        raise InputError(suggest("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]()


def trunc_normal(layer: nn.Linear | nn.Conv2d) -> None:
    """Weights from a truncated normal of deviation 0.02, bias 0."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution with the batch norm behind it folded in; on the meta device only its shape, which is faster."""
    if not conv.weight.is_meta:
        return fuse_conv_bn_eval(conv, norm)
    kernel, stride, padding = cast(Any, (conv.kernel_size, conv.stride, conv.padding))
    return nn.Conv2d(conv.in_channels, conv.out_channels, kernel, stride, padding, groups=conv.groups, device="meta")


def _chain(first: nn.Module, act: nn.Module) -> nn.Module:
    return first if isinstance(act, nn.Identity) else nn.Sequential(first, act)


def conv_wires(out: Layout, x: Layout | None = None, place: str = "") -> dict[str, dict[int, Layout]]:
    """What a `Conv`'s parameters hold, for a plain one or, without `x`, a depthwise or grouped one."""
    weight = {0: out} if x is None else {0: out, 1: x}
    return {f"{place}0.weight": weight, f"{place}0.bias": {0: out}} | norm_wires(f"{place}1.", out)


def linear_wires(place: str, out: Layout, x: Layout) -> dict[str, dict[int, Layout]]:
    """What a linear layer's or plain convolution's parameters hold."""
    return {f"{place}weight": {0: out, 1: x}, f"{place}bias": {0: out}}


def norm_wires(place: str, x: Layout) -> dict[str, dict[int, Layout]]:
    """What a norm's parameters and statistics hold."""
    return {f"{place}{name}": {0: x} for name in ("weight", "bias", "running_mean", "running_var")}


def resized(table: Tensor, side: int, front: int = 0) -> Tensor:
    """A learned table over a square grid, for a grid of another side: bicubic, with antialiasing, as timm does.

    Args:
        table: (A, front + s * s, ...), a value or vector for every place of an s x s grid, row by row.
        side: of the grid that is asked for.
        front: entries before those of the grid, such as a class token's; they stay.

    Raises:
        InputError: the table is of no square grid.
    """
    kept, grid = table[:, :front], table[:, front:].movedim(1, -1)  # (A, ..., s * s)
    have = round(grid.shape[-1] ** 0.5)
    if have**2 != grid.shape[-1]:
        raise InputError(f"a table of {tuple(table.shape)}: expected {front} and a square number of places, for a map")
    if have == side:
        return table
    channels = grid.reshape(1, -1, have, have).float()
    found = nn.functional.interpolate(channels, (side, side), mode="bicubic", antialias=True).to(table.dtype)
    return torch.cat([kept, found.reshape(*grid.shape[:-1], side**2).movedim(-1, 1)], 1)


def scale_rows(layer: nn.Module, gamma: Tensor) -> nn.Module:
    """A Linear or Conv2d with output channel i multiplied by gamma[i]."""
    linear = cast(nn.Linear, layer)
    linear.weight = nn.Parameter(linear.weight * gamma.view(-1, *[1] * (linear.weight.ndim - 1)))
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias * gamma)
    return layer
