"""A network as a file of plain PyTorch: the same outputs where nas cannot be imported."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import search_spaces
from nas.core.arch import Arch
from nas.core.errors import InputError, MeasureError
from nas.evaluation.checkpoint import write_safetensors
from nas.networks import python
from nas.networks.building import build
from nas.networks.python import export_python, python_source
from tests.small import TINY, lively

# what the other process does: no module of ours, nor timm, can be imported; each network against its recorded outputs
ALONE = """
import importlib.util, sys
for name in ("nas", "search_spaces", "timm", "nas_plugins"):
    sys.modules[name] = None
import torch
folder, *names = sys.argv[1:]
for name in names:
    spec = importlib.util.spec_from_file_location(name, f"{folder}/{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    seen = torch.load(f"{folder}/{name}.seen")
    for ending in ("pt", "safetensors"):
        network = module.load(f"{folder}/{name}.{ending}")
        with torch.no_grad():
            off = (network(seen["images"]) - seen["logits"]).abs().max()  # threads change the last digits
        assert off <= 1e-5 * seen["logits"].abs().max(), (name, off)
    outputs = network.train()(seen["images"])
    sum(each.square().mean() for each in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    lacking = [key for key, value in network.named_parameters() if value.grad is None]
    assert len(lacking) == seen["lacking"], (name, lacking)
print("equal:", *names)
"""


def covering(family: str) -> list[Arch]:
    """Few archs of a family that have all blocks of its spaces and presets between them."""
    module, rng = search_spaces.family(family), random.Random(0)
    spaces = [module.SPACE, *getattr(module, "SPACES", ())]
    archs = [space.sample(rng) for space in spaces for _ in range(4)] + list(getattr(module, "PRESETS", {}).values())
    found, known = [], set()
    for arch in sorted(archs, key=lambda arch: arch.input_shape):
        blocks = {type(block) for stage in arch.stages for block in stage}
        if not blocks <= known:
            found.append(arch)
            known |= blocks
    return found


def written(arch: Arch, folder: Path, name: str) -> str:
    """Write a network's file, weights that matter, and what it gives for two images."""
    network = lively(build(arch))
    images = torch.randn(2, *arch.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network.eval()(images)
    outputs = network.train()(images)
    sum(each.square().mean() for each in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    lacking = sum(parameter.grad is None for parameter in network.parameters())
    network = lively(build(arch))  # without what training has changed
    torch.save(network.state_dict(), folder / f"{name}.pt")
    save_file(network.state_dict(), folder / f"{name}.safetensors")
    torch.save({"images": images, "logits": logits, "lacking": lacking}, folder / f"{name}.seen")
    assert export_python(network, folder / f"{name}.py") <= 1e-5
    return name


def run_alone(folder: Path, names: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", ALONE, str(folder), *names]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={"PATH": "", "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("family", search_spaces.families())
def test_every_familys_networks_give_the_same_outputs_in_plain_pytorch(family, tmp_path):
    names = [written(arch, tmp_path, f"net{number}") for number, arch in enumerate(covering(family))]
    assert names
    done = run_alone(tmp_path, names)
    assert done.stdout.startswith("equal: net0"), done.stderr


def test_the_file_has_only_what_the_network_needs():
    arch = TINY.sample(random.Random(0))
    source = python_source(arch)
    assert "nas." not in source.replace("written by millinas", "")
    assert "import search_spaces" not in source
    for word in ("wires", "fused", "one_of", "from_stage", "BiasAttention", "MobileViT", "Space("):
        assert (word in source) == (word == "BiasAttention" and "MB3D" in arch.to_text()), word
    assert max(map(len, source.splitlines())) <= 120


def test_classes_and_normalisation_are_constants(monkeypatch):
    passport = {"class_names": ["cat", "it's"], "mean": [0.5, 0.25, 0.125], "std": [1, 1, 1]}
    module = type(sys)("made")
    monkeypatch.setitem(sys.modules, "made", module)
    exec(python_source(TINY.sample(random.Random(0)), passport), module.__dict__)
    assert module.CLASS_NAMES == ["cat", "it's"]
    assert module.MEAN == (0.5, 0.25, 0.125)
    assert module.STD == (1, 1, 1)


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    network = lively(build(TINY.sample(random.Random(0))))
    (tmp_path / "net.py").write_text("before")
    source = python.python_source
    monkeypatch.setattr(python, "python_source", lambda *given: source(*given).replace("return x + ", "return x - "))
    with pytest.raises(MeasureError, match="as plain PyTorch its outputs differ"):
        export_python(network, tmp_path / "net.py")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


OWN = """
from dataclasses import dataclass

import torch
from torch import nn

from nas.core.blocks import Logits
from nas.core.ops import Add, Block, Conv, Mean, Op, Shape, from_stage, one_of
from nas.core.ops import in_order as joined
from nas.core.space import Repeat, Space
{extra}

def in_order(module):  # a name that nas has, too
    return module


class _Mean(nn.Module):  # likewise
    def forward(self, x):
        return x.amax((2, 3)){more}


@dataclass(frozen=True)
class Highest{number}(Op):
    def body(self):
        return in_order(_Mean())


@dataclass(frozen=True)
class Both{number}(Block):
    def build(self, x: Shape) -> nn.Module:
        return _Sum(joined(Mean()), joined(Highest{number}()))


class _Sum(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.add = nn.ModuleList(parts), Add().module()

    def forward(self, x):
        return self.add(*(part(x) for part in self.parts))


@dataclass(frozen=True)
class Plain{number}(Block):
    cout: int = from_stage()

    def build(self, x: Shape) -> nn.Module:
        return Conv(x.channels, self.cout, 3, 2).module()


@dataclass(frozen=True)
class Same{number}(Block):
    kernel: int = one_of(1, 3)

    def build(self, x: Shape) -> nn.Module:
        return Conv(x.channels, x.channels, self.kernel, act="relu").module()


SPACE = Space("own{number}", (3, 16, 16), 5, (Repeat(Plain{number}(), Same{number}(), 8, one_of(1, 2)),),
              (Both{number}(), Logits(heads=1)))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a family of one's own, and find its space."""
    monkeypatch.setenv("NAS_SPACES", str(tmp_path))

    def write(number: int, extra: str = "", more: str = ""):
        text = OWN.format(number=number, extra=extra, more=more)
        (tmp_path / f"own{number}.py").write_text(text)
        return search_spaces.family(f"own{number}").SPACE

    yield write
    search_spaces.family.cache_clear()


def test_two_definitions_of_one_name_are_told_apart(own, tmp_path):
    arch = own(1).sample(random.Random(0))
    name = written(arch, tmp_path, "net")
    source = (tmp_path / "net.py").read_text()
    assert source.count("class _Mean(") + source.count("class _Mean_of_own1(") == 2
    assert run_alone(tmp_path, [name]).stdout == "equal: net\n"


def test_what_cannot_be_copied_is_named(own):
    space = own(2, extra="from nas.core import tracing", more=" * tracing.BYTES_PER_VALUE")
    assert "BYTES_PER_VALUE" in python_source(space.sample(random.Random(0)))  # of a module of nas: copied
    space = own(3, extra="for _scale in (2,):\n    pass", more=" * _scale")
    with pytest.raises(InputError, match=r"own3: _scale cannot be copied into a file of its own"):
        python_source(space.sample(random.Random(0)))


def test_the_command_writes_the_file_with_what_is_known_of_the_weights(tmp_path):
    arch = TINY.sample(random.Random(0))
    network = lively(build(arch))
    (tmp_path / "arch.json").write_text(arch.to_json())
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    write_safetensors(tmp_path / "weights.safetensors", network, {"class_names": list("abcdefghij"), "mean": None})
    target = tmp_path / "net.py"
    command = [sys.executable, "-m", "nas", "export", str(tmp_path / "arch.json"), "--format", "python"]
    command += ["--weights", str(tmp_path), "--out", str(target), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["file"] == str(target)
    assert found["difference"] <= 1e-5
    assert "CLASS_NAMES = ['a', 'b'" in target.read_text()
    assert 'load("weights.pt")' in target.read_text()
