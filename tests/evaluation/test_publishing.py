"""Networks that are taken along: published, loaded again by nas, by timm and by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform, resolve_data_config

import nas
import nas.timm_models
from nas.core.errors import InputError, RunError
from nas.evaluation.checkpoint import read_passport, read_weights, write_safetensors
from nas.evaluation.data import load_data
from nas.evaluation.datasets import _streamed
from nas.evaluation.publishing import FILES, from_pretrained, publish
from nas.evaluation.runs import passport_of, train_arch
from nas.evaluation.training import TrainResult
from nas.networks.building import build, load_arch
from tests.small import TINY, randomize

ARCH = TINY.sample(random.Random(0))
NAMES = ["cat", "dog", "eel"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of noise in three classes, 40x30 pixels."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(30):
        path = root / NAMES[number % 3] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    """A training on these images; its weights are such that every one of them shows."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_streamed, "_loaders", lambda: 0)
        patch.setattr("nas.evaluation.runs.train", untrained)
        train_arch(ARCH, f"imagefolder:{images}", folder, {"epochs": 1, "batch_size": 8}, name="net")
    return folder


def untrained(model, data, settings, **options):
    """In place of a training: weights that matter, and made-up figures."""
    randomize(model)
    return TrainResult(1.0, 0.5, 1.1, 0.4, 2.0, 1, 10.0, (), "cpu", "fp32")


@pytest.fixture
def published(trained, tmp_path) -> Path:
    publish(trained, str(tmp_path / "net"))
    return tmp_path / "net"


@pytest.fixture
def image(images) -> Image.Image:
    with Image.open(images / "cat" / "0.png") as opened:
        return opened.copy()


def test_a_training_leaves_safetensors_with_a_passport_beside_its_weights(trained, images):
    expected, found = read_weights(trained / "weights.pt"), read_weights(trained / "weights.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    passport = read_passport(trained / "weights.safetensors")
    assert passport["class_names"] == NAMES
    assert passport["mean"] == pytest.approx([0.485, 0.456, 0.406])  # ImageNet's
    assert passport["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert passport["data"] == f"imagefolder:{images.name}"  # not where it lies
    assert json.dumps(passport["arch"]) == load_arch(trained / "arch.json").to_json()


def test_a_published_network_has_the_weights_the_classes_and_the_images_of_its_run(trained, published, images):
    assert sorted(path.name for path in published.iterdir()) == sorted(FILES)
    model = nas.from_pretrained(str(published))
    assert not model.training
    assert model.class_names == tuple(NAMES)
    reference = build(load_arch(trained / "arch.json"))
    reference.load_state_dict(torch.load(trained / "weights.pt", weights_only=True))
    data = load_data(f"imagefolder:{images}", ARCH.input_shape)
    shown = torch.cat([batch for batch, _ in data.test.batches(1)])
    prepared = torch.cat([model.prepare(data.test.images.open(index)) for index in data.test.indices])
    torch.testing.assert_close(prepared, shown)
    with torch.no_grad():
        torch.testing.assert_close(model(prepared), reference.eval()(shown))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32)])
def test_images_are_prepared_as_data_in_memory_are_shown(tmp_path, shape):
    data = load_data("digits", shape, limit=50)
    arch = dataclasses.replace(ARCH, input_shape=shape)
    (tmp_path / "arch.json").write_text(arch.to_json())
    (tmp_path / "config.json").write_text("{}")
    write_safetensors(tmp_path / "model.safetensors", build(arch), passport_of(arch, data))
    model = from_pretrained(str(tmp_path))
    assert model.class_names == tuple("0123456789")
    shown = next(data.test.batches(1))[0]
    image = Image.fromarray(data.test.images[0, 0].numpy())
    torch.testing.assert_close(model.prepare(image), shown, rtol=1e-4, atol=1e-4)


def test_timm_loads_a_published_folder_with_its_preprocessing(published, image):
    ours = from_pretrained(str(published))
    theirs = timm.create_model(f"local-dir:{published}", pretrained=True).eval()
    config = resolve_data_config({}, model=theirs)
    prepared = create_transform(**config)(image.convert("RGB"))[None]
    torch.testing.assert_close(prepared, ours.prepare(image), rtol=0, atol=2 / 255 / 0.22)  # timm scales bytes later
    with torch.no_grad():
        assert torch.equal(theirs(prepared), ours(prepared))
    assert theirs.pretrained_cfg["label_names"] == NAMES


def test_timm_adapts_a_published_network(published):
    ours = from_pretrained(str(published)).state_dict()
    other = timm.create_model(f"local-dir:{published}", pretrained=True, num_classes=7)
    same = [name for name, value in other.state_dict().items() if torch.equal(value, ours[name])]
    fresh = other.state_dict().keys() - set(same)
    assert fresh
    assert all(name.startswith(f"stages.{len(ARCH.stages) - 1}.") for name in fresh)
    maps = timm.create_model(f"local-dir:{published}", pretrained=True, features_only=True)
    assert all(torch.equal(value, ours[name]) for name, value in maps.state_dict().items())
    bare = timm.create_model(f"local-dir:{published}", pretrained=True, num_classes=0).eval()
    assert bare(torch.zeros(1, *ARCH.input_shape)).shape == (1, bare.head_hidden_size)
    with pytest.raises(InputError, match="nas_network: arch is missing"):
        timm.create_model("nas_network")


def test_the_onnx_file_gives_the_same_logits(published, image):
    model = from_pretrained(str(published))
    prepared = model.prepare(image)
    session = onnxruntime.InferenceSession(str(published / "model.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input0": prepared.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), model(prepared), rtol=1e-3, atol=1e-4)


def test_the_card_says_of_each_figure_where_it_comes_from(published):
    text = (published / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    (found,) = head["model-index"]
    assert found["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.4}]
    assert "| accuracy on test | 40.00 % | measured on 6 images" in text
    assert "| latency | - | neither measured nor predicted" in text
    assert "fingerprint `" in text
    assert "Classes: cat, dog, eel." in text


def test_the_winner_of_a_search_is_published_with_its_latencies(finished_run, tmp_path):
    result = json.loads((finished_run / "result.json").read_text())
    publish(finished_run, str(tmp_path / "winner"))
    text = (tmp_path / "winner" / "README.md").read_text()
    winner = result["winner"]
    assert f"| latency | {winner['predicted_ms']:.4g} ms | predicted from a table" in text
    assert f"| latency | {winner['measured_ms']:.4g} ms | measured, spread" in text
    assert result["provenance"]["table_hash"][:12] in text
    assert all(f"> {warning}" in text for warning in result["warnings"])
    assert (tmp_path / "winner" / "model.onnx").read_bytes() == (finished_run / "best.onnx").read_bytes()
    model = from_pretrained(str(tmp_path / "winner"))
    expected = torch.load(finished_run / "best.pt", weights_only=True)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.class_names == tuple("0123456789")


def test_another_network_is_not_written_over(trained, published, tmp_path):
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    publish(trained, str(published))  # the same one: its files stay what they are
    assert {path.name: path.read_bytes() for path in published.iterdir()} == before
    (published / "model.safetensors").write_bytes(b"another")
    with pytest.raises(InputError, match="another network is published there"):
        publish(trained, str(published))
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other things"):
        publish(trained, str(other))
    with pytest.raises(InputError, match="this is a file"):
        publish(trained, str(other / "notes.txt"))
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def no_result(run: Path) -> None:
    (run / "result.json").unlink()


def no_safetensors(run: Path) -> None:
    (run / "weights.safetensors").unlink()


def damaged(run: Path) -> None:
    (run / "weights.safetensors").write_bytes(b"nothing")


def half(run: Path) -> None:
    (run / "result.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "there is no such folder"),
        (no_result, "no finished run"),
        (no_safetensors, "no weights.safetensors.*earlier version"),
        (damaged, "cannot be read as safetensors"),
        (half, r"result\.json: cannot be read"),
    ],
)
def test_what_is_no_finished_run_is_explained(trained, tmp_path, spoil, message):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    spoil(run)
    with pytest.raises(InputError, match=message):
        publish(run, str(tmp_path / "net"))
    assert not (tmp_path / "net").exists()


def test_what_is_no_published_network_is_explained(trained, published, tmp_path):
    with pytest.raises(InputError, match="no such folder, and a network on the Hub is USER/NAME"):
        from_pretrained(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"lacks config\.json, model\.safetensors; to publish that of a run"):
        from_pretrained(str(trained))
    (published / "arch.json").write_text(TINY.sample(random.Random(5)).to_json())
    with pytest.raises(InputError, match="does not fit this architecture"):
        from_pretrained(str(published))


class Hub:
    """A Hub of one's own, a folder: what `HfApi` and `snapshot_download` do there."""

    def __init__(self, root: Path, error: Exception | None = None) -> None:
        self.root, self.error, self.private = root, error, None

    def __call__(self, **options) -> Hub:
        return self

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        if self.error:
            raise self.error
        self.private = private
        return f"https://huggingface.co/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, self.root / repo_id)

    def download(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if self.error:
            raise self.error
        return str(self.root / name)


def test_a_network_goes_to_the_hub_and_comes_back(trained, tmp_path, monkeypatch, image):
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    found = publish(trained, "someone/net", private=True)
    assert found.where == "https://huggingface.co/someone/net"
    assert hub.private is True
    model = from_pretrained("someone/net")
    assert model.class_names == tuple(NAMES)
    monkeypatch.chdir(tmp_path)  # where a folder of this name is, that is meant
    (tmp_path / "someone" / "other").mkdir()
    assert publish(trained, "someone/other").where == "someone/other"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (huggingface_hub.errors.LocalTokenNotFoundError("Token is required"), "Log in with: hf auth login"),
        (OSError("no route to host"), "OSError: no route to host"),
    ],
)
def test_what_the_hub_refuses_is_explained(trained, tmp_path, monkeypatch, error, message):
    hub = Hub(tmp_path, error)
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    with pytest.raises(RunError, match=message):
        publish(trained, "someone/net")
    with pytest.raises(InputError, match=message):
        from_pretrained("someone/net")


def test_the_command_publishes(trained, tmp_path):
    command = [sys.executable, "-m", "nas", "publish", str(trained), "--to", str(tmp_path / "net"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"where": str(tmp_path / "net"), "files": list(FILES)}
