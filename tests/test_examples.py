"""The example of a family of one's own: the contracts of the built-in ones, and figures of others."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import search_spaces
from nas.core import plugins
from nas.networks.building import build, cost_of, load_arch, load_weights
from nas.networks.python import export_python
from tests.networks.test_python import ALONE
from tests.small import assert_close, lively

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def convnext(monkeypatch):
    """The family of the example, known as long as the test runs."""
    monkeypatch.setenv("NAS_PLUGINS", str(EXAMPLES))
    yield search_spaces.family("convnext")
    search_spaces.family.cache_clear()


def test_a_family_of_ones_own_keeps_the_contracts_of_those_that_are_built_in():
    """What `tests/test_families.py` tests of every family, in a process that knows this one as well."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_families.py"]
    command += ["-k", "convnext"]
    env = os.environ | {"NAS_PLUGINS": str(EXAMPLES)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.rpartition(" passed")[0].split()[-1]) >= 30  # 20 contracts, of two spaces and a preset


def test_convnext_is_as_published(convnext):
    cost = cost_of(load_arch("convnext-t"))
    assert cost.params == 28_589_128  # timm's convnext_tiny
    assert cost.macs == pytest.approx(4.5e9, abs=0.05e9)  # table 1 of the paper, to its last digit


def test_convnext_gives_the_outputs_of_timms(convnext):
    theirs = lively(timm.create_model("convnext_tiny")).eval()
    ours = build(load_arch("convnext-t")).eval()
    load_weights(ours, convnext.from_timm(theirs.state_dict(), ours.arch), "timm")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(ours(images), theirs(images))


def test_a_network_of_the_family_becomes_plain_pytorch(convnext, tmp_path):
    arch = convnext.SMALL.sample(random.Random(0))
    network, images = lively(build(arch)).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.save({"images": images, "logits": network(images), "lacking": 0}, tmp_path / "net.seen")
    torch.save(network.state_dict(), tmp_path / "net.pt")
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    export_python(network, tmp_path / "net.py")
    command = [sys.executable, "-c", ALONE, str(tmp_path), "net"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""})
    assert done.stdout == "equal: net\n", done.stderr
    assert plugins.OUTSIDE not in (tmp_path / "net.py").read_text()
