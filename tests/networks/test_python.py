"""A network as a file of plain PyTorch: the same outputs where nas cannot be imported."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import search_spaces
from nas.core.arch import Arch
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
    return export_python(arch, folder / f"{name}.py").stem


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
