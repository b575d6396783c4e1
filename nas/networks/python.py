"""A network as one readable file of plain PyTorch, without nas: its blocks as they stand in their families' files.

From the sources of the blocks that an architecture has, everything is copied that their modules need to run and to be
trained, and nothing else: not how they are searched, folded or priced. The weights keep their names.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from nas import __version__
from nas.core.arch import Arch, steps_of
from nas.core.errors import InputError, MeasureError
from nas.core.files import whole
from nas.core.ops import Choice, FromStage
from nas.core.plugins import OUTSIDE
from nas.networks.building import Network

TOLERANCE = 1e-5

OPS = "nas.core.ops"
#: what the file has of its own in place of what nas has under these names
OWN = {(OPS, name): name for name in ("Op", "Block", "Leaf", "BlockModule", "Residual", "Shape", "activation")} | {
    ("nas.core.errors", "InputError"): "ValueError"
}
#: methods that only nas calls
LEFT_OUT = frozenset(
    {"wires", "parts", "tables", "fused", "fuse", "scaled", "init", "prepare", "loss", "hints", "extra_repr"}
)
OPEN = frozenset({"one_of", "from_stage"})  # stand where the value of a field is chosen

PRELUDE = '''
class Shape(tuple):
    """The shape of one tensor, batch first: a map (N, C, H, W), tokens (N, T, D) or a vector (N, C)."""

    def __new__(cls, *sizes):
        return super().__new__(cls, sizes)

    @property
    def is_map(self):
        return len(self) == 4

    @property
    def channels(self):
        return self[1] if self.is_map else self[-1]

    @property
    def side(self):
        """Side of the square map, or of the square map that tokens came from."""
        return self[2] if self.is_map else round(self[1] ** 0.5)


class Leaf(nn.Module):
    """A layer, in `body`."""

    def __init__(self, op):
        super().__init__()
        self.op = op
        self.body = op.body()

    def forward(self, *inputs):
        return self.body(*inputs)


@dataclass(frozen=True)
class Op:
    """Numbers that describe a layer; `body` makes it."""

    def module(self):
        return Leaf(self)


class BlockModule(nn.Module):
    """A block of layers, in `body`; takes and gives tensors by their names."""

    def __init__(self, block, shapes):
        super().__init__()
        self.block = block
        self.body = block.build(*shapes)

    def forward(self, *inputs):
        return self.body(*inputs)

    def advance(self, streams):
        given = self(*(streams[name] for name in self.block.takes))
        streams.update(zip(self.block.gives, given if len(self.block.gives) > 1 else (given,)))


@dataclass(frozen=True)
class Block:
    """Numbers that describe a block; `build` makes it for inputs of these shapes."""

    takes: ClassVar[tuple[str, ...]] = ("x",)
    gives: ClassVar[tuple[str, ...]] = ("x",)

    def module(self, *shapes):
        return BlockModule(self, shapes)


class Residual(nn.Module):
    """x + drop_path(scale(body(x)))."""

    def __init__(self, body, scale=None, share=100):
        super().__init__()
        self.body = body
        self.scale = None if scale is None else Scale(scale).module()
        self.drop_path = 0.0  # probability of leaving the branch out for a sample, in training

    def forward(self, x, *others):
        return x + self.branch(x, *others)

    def branch(self, x, *others):
        y = self.body(x, *others)
        if self.scale is not None:
            y = self.scale(y)
        if self.training and self.drop_path:
            y = y * nn.functional.dropout(x.new_ones(x.shape[0], *[1] * (x.ndim - 1)), self.drop_path)
        return y


def activation(name):
    return ACTIVATIONS[name]()
'''

NETWORK = '''
class Network(nn.Module):
    """Images {shape}, normalised, to logits (N, {classes}).

    In training a tuple of logits where the head has several.
    """

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(block.module(*(Shape(*shape) for shape in shapes)) for block, *shapes in stage)
            for stage in STAGES
        )

    def forward(self, x):
        streams = {{"x": x}}
        for stage in self.stages:
            for block in stage:
                block.advance(streams)
        return streams["x"]


def load(path):
    """The network with the weights of a .safetensors or .pt file, in eval mode."""
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    network = Network()
    network.load_state_dict(state)
    return network.eval()
'''


def export_python(
    model: Network, path: str | os.PathLike[str], passport: Mapping[str, Any] | None = None, weights: str | None = None
) -> float:
    """Write a network as a Python file that needs PyTorch alone; see `python_source`.

    Returns:
        The largest difference between its outputs and the model's, over the largest output.

    Raises:
        InputError: as `python_source`.
        MeasureError: the outputs differ; `path` is as it was.
    """
    with whole(path) as temporary:
        temporary.write_text(python_source(model.arch, passport, weights), encoding="utf-8")
        off = _difference(temporary, model)
        if not off <= TOLERANCE:
            raise MeasureError(f"{path}: as plain PyTorch its outputs differ by {off:.2g} of the largest; not written")
    return off


def _difference(path: Path, model: Network) -> float:
    """How far the outputs of a file are from those of its model, on random numbers."""
    name = f"_{path.name.replace('.', '_')}"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        copy = module.Network()
    finally:
        del sys.modules[name]
    copy.load_state_dict(model.state_dict())
    images = torch.randn(1, *model.arch.input_shape, generator=torch.Generator().manual_seed(0))
    was_training = model.training
    with torch.no_grad():
        expected, got = model.eval()(images), copy.eval()(images)
    model.train(was_training)
    return float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


def python_source(arch: Arch, passport: Mapping[str, Any] | None = None, weights: str | None = None) -> str:
    """The source of a module with `Network`, which takes the state dict that nas saves, and `load(path)`.

    Args:
        arch: the architecture.
        passport: of its weights (`read_passport`): the names of classes and the normalisation become constants.
        weights: a file of them, for the docstring.

    Raises:
        InputError: the source of a block cannot be read, or needs more of nas than can be copied, naming what.
    """
    steps = iter(steps_of(arch))
    stages = [[next(steps).row for _ in stage] for stage in arch.stages]
    used = {type(row.unit) for stage in stages for row in stage}
    copied = _Copied()
    copied.need(OPS, "ACTIVATIONS")
    copied.need(OPS, "Scale")
    for unit in sorted(used, key=lambda unit: unit.__name__):
        copied.need(unit.__module__, unit.__qualname__)
    listed = []
    for number, stage in enumerate(stages):
        listed += ["    [", *(f"        {_entry(row, copied)}," for row in stage), "    ],"]
        listed[-len(stage) - 2] += f"  # {arch.stage_name(number)}"
    parts = [
        "\n\n".join([_head(arch, weights), "\n".join(copied.imports())]),
        PRELUDE.strip(),
        *copied.definitions(),
        "# each block with the shapes of its inputs\nSTAGES = [\n" + "\n".join(listed) + "\n]",
        *_constants(passport or {}),
        NETWORK.format(shape=("N", *arch.input_shape), classes=arch.classes).replace("'N'", "N").strip(),
    ]
    return "\n\n\n".join(parts) + "\n"


def _head(arch: Arch, weights: str | None) -> str:
    file = Path(weights).name if weights else "best.safetensors"
    return (
        f'"""The network {arch.id} of the family {arch.family} in plain PyTorch, written by millinas {__version__}.\n\n'
        f'    network = load("{file}")\n    logits = network(images)\n"""\n\nfrom __future__ import annotations'
    )


def _entry(row: Any, copied: _Copied) -> str:
    unit = row.unit
    values = ", ".join(f"{field.name}={getattr(unit, field.name)!r}" for field in fields(unit))
    name = copied.name_of(type(unit).__module__, type(unit).__qualname__)
    shapes = "".join(f" {tuple(shape)!r}," for shape in row.inputs)
    return f"({name}({values}),{shapes})".replace("),)", "))") if shapes else f"({name}({values}),)"


def _constants(passport: Mapping[str, Any]) -> Iterator[str]:
    lines = [f"CLASS_NAMES = {list(passport['class_names'])!r}"] if passport.get("class_names") else []
    if passport.get("mean"):
        lines.append("# of each channel, of values in 0..1")
        lines += [f"{key.upper()} = {tuple(round(value, 6) for value in passport[key])}" for key in ("mean", "std")]
    if lines:
        yield "\n".join(lines)


@dataclass
class _Definition:
    """A definition at the top level of a module of ours, and what of it is changed.

    Attributes:
        node: its syntax.
        edits: parts of the module's text, from and to, with what takes their place.
    """

    node: ast.stmt
    edits: list[tuple[int, int, str]]


class _Module:
    """The text of a module of ours, and what its names mean."""

    def __init__(self, name: str) -> None:
        self.module: ModuleType = importlib.import_module(name)
        try:
            self.text = inspect.getsource(self.module)
        except (OSError, TypeError) as error:
            raise InputError(f"{name}: its source cannot be read, so its blocks cannot be copied: {error}") from error
        self.starts = [0]
        for line in self.text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.nodes: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        for node in ast.parse(self.text).body:
            self._take(node)

    def _take(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            module = importlib.util.resolve_name("." * node.level + node.module, self.module.__package__ or None)
            self.imported |= {each.asname or each.name: (module, each.name) for each in node.names}
        elif isinstance(node, ast.Import):
            self.imported |= {each.asname or each.name: (each.name, "") for each in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            self.nodes[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            self.nodes |= {target.id: node for target in targets if isinstance(target, ast.Name)}

    def at(self, line: int, column: int) -> int:
        """The place in the text of a line, from 1, and a column, in bytes as `ast` counts."""
        start = self.starts[line - 1]
        row = self.text[start : self.starts[line]]
        return start + len(row.encode()[:column].decode())

    def span(self, node: Any) -> tuple[int, int]:
        return self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset)

    def lines(self, node: Any) -> tuple[int, int]:
        """A definition with its decorators, in whole lines."""
        decorators = [each.lineno for each in getattr(node, "decorator_list", ())]
        return self.starts[min([node.lineno, *decorators]) - 1], self.starts[node.end_lineno]


class _Copied:
    """What is copied from modules of ours, and what they import from others."""

    def __init__(self) -> None:
        self.modules: dict[str, _Module] = {}
        self.found: dict[tuple[str, str], _Definition] = {}
        self.names: dict[str, tuple[str, str]] = {}  # in the file, and what each of them is
        self.outside: set[tuple[str, str, str]] = {
            ("torch", "", "torch"),
            ("torch", "nn", "nn"),
            ("dataclasses", "dataclass", "dataclass"),
            ("typing", "ClassVar", "ClassVar"),
        }

    def name_of(self, module: str, name: str) -> str:
        """What something is called in the file: its own name, or with its module's where two have one."""
        if (module, name) in OWN:
            return OWN[module, name]
        holder = self.names.setdefault(name, (module, name))
        if holder == (module, name) and name not in OWN.values():
            return name
        other = f"{name}_of_{module.rpartition('.')[2]}"
        self.names[other] = (module, name)
        return other

    def need(self, module: str, name: str) -> None:
        """Copy a definition, and all that it needs."""
        if (module, name) in OWN or (module, name) in self.found:
            return
        source = self.modules.setdefault(module, self.modules.get(module) or _Module(module))
        if name in source.imported and name not in source.nodes:
            return self._need_import(*source.imported[name], name)
        if name not in source.nodes:
            raise InputError(f"{module}: {name} cannot be copied into a file of its own: it is no definition there")
        node = source.nodes[name]
        definition = _Definition(node, [])
        self.found[module, name] = definition
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and self.name_of(module, name) != name:
            word = "class " if isinstance(node, ast.ClassDef) else "def "
            start = source.text.index(word, source.at(node.lineno, node.col_offset)) + len(word)
            definition.edits.append((start, start + len(name), self.name_of(module, name)))
        _Visitor(self, source, definition).run()

    def _need_import(self, module: str, name: str, known_as: str) -> None:
        if _is_ours(module):
            if not name or _is_module(module, name):
                raise InputError(f"{module}: the module {name or module} itself cannot be copied into a file")
            self.need(module, name)
        else:
            self.outside.add((module, name, known_as))

    def imports(self) -> list[str]:
        plain = {(module, known_as) for module, name, known_as in self.outside if not name}
        named: dict[str, set[str]] = {}
        for module, name, known_as in self.outside:
            if name:
                named.setdefault(module, set()).add(name if name == known_as else f"{name} as {known_as}")
        lines = [f"import {module}" + ("" if module == known_as else f" as {known_as}") for module, known_as in plain]
        lines += [f"from {module} import {', '.join(sorted(names))}" for module, names in named.items()]
        own = [line for line in lines if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
        others = [line for line in lines if line not in own]
        return [*sorted(own, key=_by_form), "", *sorted(others, key=_by_form)]

    def definitions(self) -> Iterator[str]:
        """The texts, each behind what it needs."""
        for module in self._in_order():
            source = self.modules[module]
            wanted = {id(each.node): each for (where, _), each in self.found.items() if where == module}
            for definition in sorted(wanted.values(), key=lambda each: each.node.lineno):
                start, end = source.lines(definition.node)
                yield _edited(source.text, start, end, definition.edits).rstrip()

    def _in_order(self) -> list[str]:
        """The modules, each behind those that it imports."""
        order: list[str] = []

        def visit(name: str) -> None:
            if name in order:
                return
            for other, _ in self.modules[name].imported.values():
                if other in self.modules and other != name:
                    visit(other)
            order.append(name)

        for name in sorted(self.modules):
            visit(name)
        return order


class _Visitor(ast.NodeVisitor):
    """Finds what a definition needs, and what is to change in it."""

    def __init__(self, copied: _Copied, source: _Module, definition: _Definition) -> None:
        self.copied, self.source, self.definition = copied, source, definition
        self.in_annotation = False

    def run(self) -> None:
        self.visit(self.definition.node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        kept = [each for each in node.body if not (isinstance(each, ast.FunctionDef) and each.name in LEFT_OUT)]
        for each in node.body:
            if each not in kept:
                self.definition.edits.append((*self.source.lines(each), ""))
        if all(isinstance(each, ast.Expr) for each in kept) and len(kept) < len(node.body) and not kept:
            self.definition.edits.append((self.source.lines(node)[1], self.source.lines(node)[1], "    pass\n"))
        has_default = _inherits_default(getattr(self.source.module, node.name))
        for each in kept:
            if isinstance(each, ast.AnnAssign) and each.value is not None and _is_open(each.value):
                start, end = self.source.span(each)[0], self.source.span(each)[1]
                declared = self.source.text[start : self.source.span(each.annotation)[1]]
                self.definition.edits.append((start, end, f"{declared} = None" if has_default else declared))
                self._annotation(each.annotation)
                continue
            has_default = has_default or (isinstance(each, ast.AnnAssign) and _is_default(each))
            self.visit(each)
        outer: list[ast.AST] = [*node.bases, *node.decorator_list, *node.keywords]
        for part in outer:
            self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
            if each is not None and each.annotation is not None:
                self._annotation(each.annotation)
        if node.returns is not None:
            self._annotation(node.returns)
        for part in (*arguments.defaults, *arguments.kw_defaults, *node.decorator_list, *node.body):
            if part is not None:
                self.visit(part)

    def _annotation(self, node: ast.expr) -> None:
        """Annotations are never evaluated: classes of ours in them are not copied for that."""
        outer, self.in_annotation = self.in_annotation, True
        self.visit(node)
        self.in_annotation = outer

    def visit_Attribute(self, node: ast.Attribute) -> None:
        value = node.value
        if isinstance(value, ast.Name) and value.id in self.source.imported:
            module, name = self.source.imported[value.id]
            whole = f"{module}.{name}" if name else module
            if _is_ours(module) and (not name or _is_module(module, name)):
                self.copied.need(whole, node.attr)
                self._rename(node, self.copied.name_of(*_home(self.copied, whole, node.attr)))
                return
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        source, name = self.source, node.id
        if name in source.nodes:
            module, original = source.module.__name__, name
            if self.in_annotation and isinstance(source.nodes[name], ast.ClassDef | ast.FunctionDef):
                return
        elif name in source.imported:
            module, original = source.imported[name]
            if not _is_ours(module):
                self.copied.outside.add((module, original, name))
                return
            if self.in_annotation:
                return
            module, original = _home(self.copied, module, original)
        else:
            if not hasattr(builtins, name) and hasattr(source.module, name) and not name.startswith("__"):
                raise InputError(f"{source.module.__name__}: {name} cannot be copied into a file of its own")
            return
        self.copied.need(module, original)
        if (called := self.copied.name_of(module, original)) != name:
            self._rename(node, called)

    def _rename(self, node: Any, name: str) -> None:
        self.definition.edits.append((*self.source.span(node), name))


def _home(copied: _Copied, module: str, name: str) -> tuple[str, str]:
    """Where something is defined that a module may have imported itself."""
    if (module, name) in OWN:
        return module, name
    source = copied.modules.setdefault(module, copied.modules.get(module) or _Module(module))
    if name not in source.nodes and name in source.imported and _is_ours(source.imported[name][0]):
        return _home(copied, *source.imported[name])
    return module, name


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ("nas", "search_spaces", OUTSIDE)


def _is_module(module: str, name: str) -> bool:
    return isinstance(getattr(importlib.import_module(module), name, None), ModuleType)


def _is_open(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in OPEN


def _inherits_default(cls: type) -> bool:
    """Whether a field from a base keeps its default, so that none without one may follow."""
    inherited = [field for base in cls.__mro__[1:] if is_dataclass(base) for field in fields(base)]
    return any(not isinstance(each.default, Choice | FromStage | type(MISSING)) for each in inherited)


def _is_default(node: ast.AnnAssign) -> bool:
    return node.value is not None and not ast.unparse(node.annotation).startswith("ClassVar")


def _by_form(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line


def _edited(text: str, start: int, end: int, edits: Iterable[tuple[int, int, str]]) -> str:
    found = text[start:end]
    for low, high, new in sorted(set(edits), reverse=True):
        found = found[: low - start] + new + found[high - start :]
    return found
