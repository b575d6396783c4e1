"""Imports only go down the layers of the architecture; light imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [  # a lower line may use a higher one
    ["nas.core.errors", "nas.core.plain", "nas.core.units"],
    ["nas.core.files", "nas.core.plugins"],
    ["nas.profiling.device"],
    ["nas.core.remembered", "nas.core.source"],
    ["nas.core.channels"],
    ["nas.core.ops"],
    ["nas.core.tracing"],
    ["nas.core.arch"],
    ["nas.core.space"],
    ["nas.core.blocks"],
    ["search_spaces"],
    ["nas.core.parts"],
    ["nas.networks.features"],
    ["nas.networks.building", "nas.networks.python", "nas.networks.supernet", "nas.networks.weights"],
    ["nas.networks.foreign", "nas.networks.inside", "nas.networks.ordering"],
    ["nas.timm_models"],
    ["nas.tables.calibration", "nas.tables.kinds", "nas.tables.memory", "nas.tables.records"],
    ["nas.tables.card"],
    ["nas.tables.table"],
    ["nas.tables.transfer"],
    ["nas.networks.export", "nas.tables.importing"],
    ["nas.profiling"],
    ["nas.metrics"],
    ["nas.evaluation"],
    ["nas.report.schema", "nas.report.points"],
    ["nas.report.front", "nas.report.plots", "nas.report.runs"],
    ["nas.report.facts"],
    ["nas.report.explore"],
    ["nas.report.page"],
    ["nas.report.answers"],
    ["nas.search"],
    ["nas.commands"],
    ["nas.__main__"],
]
MODULES = sorted([*ROOT.glob("nas/**/*.py"), *ROOT.glob("search_spaces/**/*.py")])


def layer_of(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    return None


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("nas", "search_spaces")}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if module in ("nas", "search_spaces"):
        return  # both load what they name only when asked
    if path.name == "__init__.py" and not imports_of(path):
        return  # a room
    own = layer_of(module)
    assert own is not None, f"{module} has no layer; give it one in LAYERS and in the docs"
    lazy = {"nas.core.arch"}  # reading an arch file loads the family that defines its blocks
    upward = [n for n in imports_of(path) if (layer_of(n) or 0) > own and not (module in lazy and n == "search_spaces")]
    assert upward == []


def test_no_modules_import_each_other_in_a_ring():
    """Imports inside functions count, too; those for type checkers never happen."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    left = {name: (_needed(path) & set(names)) - {name} for name, path in names.items()}
    while free := [name for name, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    assert left == {}, "what is left stands in a ring, or above one"


def _needed(path: Path) -> set[str]:
    """The modules that a file imports, each by the longest name that is a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    idle = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(node) for each in idle for statement in each.body for node in ast.walk(statement)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = (ROOT / node.module.replace(".", "/") / alias.name).with_suffix(".py")
                package = ROOT / node.module.replace(".", "/") / alias.name / "__init__.py"
                found.add(f"{node.module}.{alias.name}" if inner.is_file() or package.is_file() else node.module)
    return found


def test_no_module_knows_a_particular_family():
    """What a family has of its own, it declares; `search_spaces` finds families by name."""
    known = {path.stem for path in ROOT.glob("search_spaces/*.py")}
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in ROOT.glob("nas/**/*.py")
        for name in imports_of(path)
        if name.startswith("search_spaces.") and name.split(".")[1] in known
    }
    assert found == set()


@pytest.mark.parametrize(
    "code", ["import nas", "import nas.commands", "import nas.report.answers", "import nas.search.shortlist"]
)
def test_light_imports_load_no_heavy_library(code):
    heavy = "torch", "pandas", "plotly", "optuna", "onnxruntime", "timm", "sklearn"
    check = f"import sys; {code}; print(*[name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == ""


def test_everything_the_package_offers_is_there():
    import nas

    assert [name for name in nas.__all__ if getattr(nas, name) is None] == []
    assert nas.load_space("efficientformer-32").name == "efficientformer-32"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nas.nothing
