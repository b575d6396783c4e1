"""From a model to what it costs: its calls of blocks and ops, multiply-adds, parameters, activation bytes.

Calls are recorded from the model itself, on the meta device, at batch 1, in eval mode and in deployed form. Compute
outside an op leaf is an error, so nothing that a table cannot price slips through; views cost nothing and are free.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nas.core import ops
from nas.core.errors import InputError, TraceError
from nas.core.ops import BlockModule, Leaf, Row, Shape, Tensors
from nas.core.remembered import remembered
from nas.core.source import code_of

T = TypeVar("T")

#: what only looks at memory in another way; anything else outside an op leaf is compute
FREE_VIEWS = frozenset(
    [
        "alias",
        "detach",
        "expand",
        "narrow",
        "permute",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unsqueeze",
        "view",
        "_reshape_alias",
    ]
)
BYTES_PER_VALUE = 4  # fp32
MOST_PARAMS, MOST_BYTES = 10**9, 16 * 10**9  # of a block: what is beyond is a slip of the pen, and ends in no memory
#: what fvcore counts by default although it is no product of weights or tokens
NOT_COUNTED = (
    "adaptive_avg_pool2d",
    "batch_norm",
    "grid_sampler",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "upsample_bilinear2d",
    "upsample_nearest2d",
)


@dataclass(frozen=True)
class Call:
    """One use of a block or op in a model.

    Attributes:
        row: the table key: the unit and the shapes of its inputs.
        outputs: shapes of the outputs.
        ops: the calls inside a block, in order; empty for an op, and for a block that computes nothing.
        peak_bytes: most bytes of activations alive at once inside the call, inputs and outputs included (fp32).
        stage: name of the stage it stands in, "" outside a network.
    """

    row: Row
    outputs: tuple[Shape, ...]
    ops: tuple[Call, ...] = ()
    peak_bytes: int = 0
    stage: str = ""


def trace(model: nn.Module, *shapes: Shape) -> tuple[Call, ...]:
    """The block calls of a model, each with its op calls; ops outside any block stand in the list as they are.

    Blocks that compute nothing stand in it as well.

    Args:
        model: on the meta device and in deployed form; it is put in eval mode.
        shapes: one shape per input tensor, batch included.

    Raises:
        TraceError: where the model computes outside its op leaves, naming the function and the block.
    """
    recorder = _Recorder()
    inputs = tuple(torch.empty(shape, device="meta") for shape in shapes)
    with torch.no_grad(), recorder.listening():
        model.eval()(*inputs)
    return tuple(recorder.calls)


class _Recorder:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._within: BlockModule | None = None
        self._in_leaf = False
        self._steps: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        ops._recorders.append(self)
        try:
            with _Strict(self):
                yield
        finally:
            ops._recorders.remove(self)

    def leaf(self, leaf: Leaf, inputs: tuple[Tensor, ...]) -> Tensors:
        self._in_leaf = True
        try:
            result = cast(Tensors, leaf.body(*inputs))
        finally:
            self._in_leaf = False
        outputs = _tensors(result)
        self._steps.append((inputs, outputs))
        self.calls.append(Call(Row(leaf.op, _shapes(inputs)), _shapes(outputs), peak_bytes=_bytes(inputs + outputs)))
        return result

    def block(self, module: BlockModule, inputs: tuple[Tensor, ...]) -> Tensors:
        if self._within is not None:  # a block made of blocks is one row; its inner blocks are part of it
            return cast(Tensors, module.body(*inputs))
        outer, self.calls, self._steps, self._within = self.calls, [], [], module
        try:
            result = cast(Tensors, module.body(*inputs))
        finally:
            self._within = None
            inner, self.calls = self.calls, outer
        outputs = _tensors(result)
        peak = _peak_bytes(self._steps, inputs, outputs)
        self.calls.append(Call(Row(module.block, _shapes(inputs)), _shapes(outputs), tuple(inner), peak))
        return result

    def refuse(self, func: Any) -> None:
        if self._in_leaf or func._schema.name.split("::")[-1] in FREE_VIEWS:
            return
        where = f"in block {self._within.block}" if self._within is not None else "outside any block"
        raise TraceError(
            f"{func} runs outside an op leaf, {where}: a table could not price it. Make it an Op (nas/core/ops.py); a "
            "reshape that has to copy is an op too (ToTokens, ToMap)"
        )


class _Strict(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.recorder.refuse(func)
        return func(*args, **(kwargs or {}))


def _tensors(value: Tensors) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _shapes(tensors: tuple[Tensor, ...]) -> tuple[Shape, ...]:
    return tuple(Shape(*tensor.shape) for tensor in tensors)


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return BYTES_PER_VALUE * sum(tensor.numel() for tensor in {_storage(t): t for t in tensors}.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _peak_bytes(
    steps: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]], inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> int:
    """Most bytes alive at once: a tensor lives from the step that makes it to the last that reads it."""
    sizes = {
        _storage(t): t.untyped_storage().nbytes() for step in [(inputs, outputs), *steps] for t in step[0] + step[1]
    }
    born = {_storage(tensor): 0 for tensor in inputs}
    dies = {_storage(tensor): 0 for tensor in inputs}
    for number, (read, made) in enumerate(steps):
        for tensor in made:
            born.setdefault(_storage(tensor), number)
        for tensor in read + made:
            dies[_storage(tensor)] = number
    for tensor in outputs:
        dies[_storage(tensor)] = max(len(steps) - 1, 0)
    alive = [
        sum(size for key, size in sizes.items() if born.get(key, 0) <= number <= dies.get(key, -1))
        for number in range(max(len(steps), 1))
    ]
    return max(alive)


@functools.cache
def calls_of_unit(row: Row) -> Call:
    """The call of one block or op in deployed form, traced once and remembered, on disk as well.

    Raises:
        InputError: it has more parameters or larger tensors than a network could have.
        TraceError: where it computes outside its op leaves.
    """
    return _once("call", row, _trace_unit, _call_data, _read_call)


def _trace_unit(row: Row) -> Call:
    (call,) = trace(_deployed(row), *row.inputs)
    if (size := max(inner.peak_bytes for inner in (call, *call.ops))) > MOST_BYTES:
        raise InputError(f"{row} needs {size:,} bytes of activations, expected at most {MOST_BYTES:,}")
    return call


def _deployed(row: Row) -> nn.Module:
    with torch.device("meta"):
        module = row.unit.build(*row.inputs) if not isinstance(row.unit, ops.Block) else row.unit.module(*row.inputs)
    if (count := sum(parameter.numel() for parameter in module.parameters())) > MOST_PARAMS:
        raise InputError(f"{row} has {count:,} parameters, expected at most {MOST_PARAMS:,}")
    return fuse_in_place(module)


@functools.cache
def deployed_bytes_of_unit(row: Row) -> int:
    """Bytes of the weights of one block or op in deployed form, fp32: what its norms hold is in its neighbours."""
    return _once("bytes", row, _count_bytes, int, _as_read)


def _count_bytes(row: Row) -> int:
    return BYTES_PER_VALUE * sum(parameter.numel() for parameter in _deployed(row).parameters())


def _call_data(call: Call) -> list[Any]:
    inner = (f"{op.row} > {_shapes_text(op.outputs)} : {op.peak_bytes}" for op in call.ops)
    return [_shapes_text(call.outputs), call.peak_bytes, *inner]


def _shapes_text(shapes: tuple[Shape, ...]) -> str:
    return " ".join(map(str, shapes))


def _read_call(row: Row, data: list[Any]) -> Call:
    shapes, peak, *inner = data
    return Call(row, _read_shapes(shapes), tuple(map(_read_op, inner)), peak)


@functools.cache
def _read_op(text: str) -> Call:
    row, _, rest = text.partition(" > ")
    outputs, _, peak = rest.partition(" : ")
    return Call(ops.parse_row(row), _read_shapes(outputs), (), int(peak))


@functools.cache
def _read_shapes(text: str) -> tuple[Shape, ...]:
    return tuple(map(Shape.parse, text.split()))


def _once(kind: str, row: Row, make: Callable[[Row], T], data: Callable[[T], Any], read: Callable[[Row, Any], T]) -> T:
    """What `make` gives of a row, read where any process has made it with the same code."""
    memory = remembered(_code_behind(cast(Hashable, type(row.unit))))
    key = f"{kind} {row.unit!r} @ {_shapes_text(row.inputs)}"
    found = memory.get(key)
    if found is not None:
        with contextlib.suppress(InputError):  # an op that is not loaded here
            return read(row, found)
    made = make(row)
    with contextlib.suppress(ValueError):  # what does not come back as it was is not remembered
        if read(row, written := data(made)) == made:
            memory.put(key, written)
    return made


@functools.cache
def _code_behind(unit: type) -> str | None:
    """The code that makes what is remembered of a class; None where files do not say what it is, such as one of a
    notebook or with a method from elsewhere.
    """
    modules = {cls.__module__ for cls in unit.__mro__}
    methods = [item for cls in unit.__mro__[:-1] for item in vars(cls).values() if isinstance(item, FunctionType)]
    is_own = getattr(sys.modules.get(unit.__module__), unit.__qualname__, None) is unit
    return code_of(unit.__module__) if is_own and all(item.__module__ in modules for item in methods) else None


def fuse_in_place(model: nn.Module) -> nn.Module:
    """Put a model into deployed form and eval mode: norms fold into their neighbours, layer scales where they can.

    Outputs stay equal within 1e-5. Ops first, then the containers that fold one op into another.
    """
    model.eval()
    with torch.no_grad():
        for kind in (Leaf, ops.Residual):
            for module in [module for module in model.modules() if isinstance(module, kind)]:
                module.fuse()
    return model.requires_grad_(False)


@functools.cache
def params_of_unit(row: Row) -> int:
    """Learned parameters of one block or op, training form; remembered on disk."""
    return _once("params", row, _count_params, int, _as_read)


def _count_params(row: Row) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in row.unit.build(*row.inputs).parameters())


@functools.cache
def macs_of_op(row: Row) -> int:
    """Multiply-adds of one op at batch 1: convolutions, linears and matrix products, by fvcore (one MAC is one).

    Norms, activations, pooling, interpolation, softmax and sums are not counted, as the papers do not; training form;
    remembered on disk.
    """
    return _once("macs", row, _trace_macs, int, _as_read)


def _trace_macs(row: Row) -> int:
    with torch.device("cpu"):
        return _count_macs(row.unit.build(*row.inputs), row.inputs)


def _as_read(row: Row, count: int) -> int:
    return count


def macs_of_unit(row: Row) -> int:
    """Multiply-adds of one block or op: the sum over its op calls."""
    call = calls_of_unit(row)
    return sum(macs_of_op(inner.row) for inner in (call.ops if isinstance(row.unit, ops.Block) else (call,)))


def _count_macs(module: nn.Module, shapes: tuple[Shape, ...]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore still scripts its losses when imported
        from fvcore.nn import FlopCountAnalysis

    with torch.no_grad():
        inputs = tuple(torch.zeros(shape) for shape in shapes)
        analysis = FlopCountAnalysis(module.eval(), inputs)
        for name in NOT_COUNTED:
            analysis.set_op_handle(f"aten::{name}", _no_macs)
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        return int(analysis.total())


def _no_macs(inputs: list[Any], outputs: list[Any]) -> Any:
    return Counter()


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> Any:
    """Scaled dot product attention, which fvcore leaves at zero: both matrix products. q (..., T, d), v (..., S, e)."""
    query, key, value = (tuple(item.type().sizes()) for item in inputs[:3])
    batch = int(torch.tensor(query[:-2]).prod())
    return Counter({"scaled_dot_product_attention": batch * query[-2] * key[-2] * (query[-1] + value[-1])})
