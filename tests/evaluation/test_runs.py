"""Training runs in folders of their own."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nas.core.errors import InputError, RunError
from nas.evaluation.datasets import _streamed
from nas.evaluation.runs import train_arch
from nas.networks.building import with_classes
from search_spaces.dynamicvit import SMALL_DEIT, make


def test_a_folder_of_another_architecture_is_refused_before_anything_is_written(tmp_path):
    there, asked = (make(SMALL_DEIT, 32, 3, (1,), (keep,), side=32, classes=10) for keep in (50, 70))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "arch.json").write_text(there.to_json())
    with pytest.raises(InputError, match=rf"run: .* {there.id}, .* {asked.id}; choose another folder \(--out\)"):
        train_arch(with_classes(asked, 1000), "digits", folder, {"epochs": 1}, limit=40)
    assert [path.name for path in folder.iterdir()] == ["arch.json"]
    assert (folder / "arch.json").read_text() == there.to_json()


def small_arch():
    return make(SMALL_DEIT, 32, 3, (1,), (50,), side=32, classes=10)


def write_images(root: Path, shift: int) -> None:
    """Two classes of 12 training and 4 test images of noise; BMP, so that files of all folders have equal sizes."""
    rng = np.random.default_rng(shift)
    for part, n in (("train", 12), ("val", 4)):
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 128, (8, 8, 3)) + 127 * number
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{i + shift}.bmp")


def test_a_folder_of_images_never_gets_the_weights_of_another_of_equal_size(tmp_path, monkeypatch):
    monkeypatch.setattr(_streamed, "_loaders", lambda: 0)
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("A", "B", "other/A")):
        write_images(tmp_path / name, 100 * number)
    found = {}
    for name in ("A", "B", "other/A"):
        found[name] = train_arch(small_arch(), f"imagefolder:{name}", None, {"epochs": 1, "batch_size": 8}, name="net")
    folders = {name: Path(facts["weights"]).parent for name, facts in found.items()}
    assert len(set(folders.values())) == 3
    assert [folder.name.rpartition("-")[0] for folder in folders.values()] == [
        f"train-net-imagefolder-{name}" for name in ("A", "B", "A")
    ]
    for name, folder in folders.items():
        assert json.loads((folder / "result.json").read_text())["data_fingerprint"] == found[name]["data_fingerprint"]
    before = (folders["A"] / "weights.pt").read_bytes(), (folders["A"] / "checkpoint.pt").read_bytes()
    with pytest.raises(InputError, match=r"checkpoint of another training: data\.fingerprint is '\w+' there, '\w+' he"):
        train_arch(small_arch(), "imagefolder:B", folders["A"], {"epochs": 1, "batch_size": 8})
    assert ((folders["A"] / "weights.pt").read_bytes(), (folders["A"] / "checkpoint.pt").read_bytes()) == before


def test_a_second_training_into_a_folder_is_refused_naming_the_first(tmp_path):
    folder, said = tmp_path / "run", []

    def meanwhile(*args):
        with pytest.raises(RunError) as caught:
            train_arch(small_arch(), "digits", folder, {"epochs": 1}, limit=200)
        said.append(str(caught.value))

    train_arch(small_arch(), "digits", folder, {"epochs": 1}, limit=200, progress=meanwhile)
    assert len(said) == 1
    assert f"{folder} is in use by process {os.getpid()} on" in said[0]
    train_arch(small_arch(), "digits", folder, {"epochs": 1}, limit=200)  # the first has ended


def test_one_thread_trains_unless_more_are_asked_for_and_the_result_says_so(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for number, (asked, used) in enumerate([({}, 1), ({"threads": 2}, 2), ({"threads": None}, 3)]):
            seen = []
            facts = train_arch(
                small_arch(),
                "digits",
                tmp_path / str(number),
                {"epochs": 1},
                limit=200,
                progress=lambda *args, seen=seen: seen.append(torch.get_num_threads()),
                **asked,
            )
            assert seen == [used]
            assert facts["threads"] == used
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(RunError, match=r"run.*cannot be written"):
        train_arch(small_arch(), "digits", tmp_path / "run", {"epochs": 1}, limit=200)
